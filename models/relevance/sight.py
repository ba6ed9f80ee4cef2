"""What the models see in pictures, in altered copies of them, and in close-ups of their objects."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageEnhance

Float32 = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]
Box = Sequence[float] | Float32

#: An altered copy keeps this part of each side, and then shrinks to this scale at most.
_KEPT = (0.85, 1.0)
_SCALE = (0.5, 1.0)
_LIGHT = (0.85, 1.15)
_QUALITY = (60, 90)
#: Around an object of a close-up, as a part of the longer side of its box.
_ROOM = (0.1, 0.5)
_SHORTEST = 32  # pixels; a copy is never made smaller


class Seen(Protocol):
    """As `triton_repo.contract.ImageInference`."""

    @property
    def embedding(self) -> Float32: ...
    @property
    def boxes(self) -> Float32: ...
    @property
    def object_embeddings(self) -> Float32: ...


class Eye(Protocol):
    """The pipeline that pictures and words pass: `triton_repo.inprocess.InProcessPipeline`."""

    def infer(self, data: bytes) -> Seen:
        """Encoded file bytes -> what the models see. Raises ImageError."""

    def embed_text(self, tokens: Ints) -> Float32:
        """int64 [n, context] -> float32 [n, dim]."""


Tick = Callable[[], None]


@dataclass(frozen=True)
class Gallery:
    """Pictures as the models see them.

    views: float32 [p, dim]      objects: float32 [n, dim]      owner: int64 [n], which picture each object is of
    boxes: float32 [n, 4], xyxy, pixels of the upright original
    """

    views: Float32
    objects: Float32
    owner: Ints
    boxes: Float32


def look(eye: Eye, pictures: Iterable[bytes], tick: Tick) -> Gallery:
    """`tick` is called after each picture. Raises ImageError."""
    seen = []
    for data in pictures:
        seen.append(eye.infer(data))
        tick()
    counts = [len(one.boxes) for one in seen]
    return Gallery(
        views=np.stack([one.embedding for one in seen]),
        objects=np.concatenate([one.object_embeddings for one in seen]),
        owner=np.repeat(np.arange(len(seen)), counts),
        boxes=np.concatenate([one.boxes for one in seen]).reshape(-1, 4),
    )


def views(eye: Eye, pictures: Iterable[bytes], tick: Tick) -> Float32:
    """float32 [n, dim], of whole pictures, as a query picture is seen."""
    return look(eye, pictures, tick).views


@dataclass(frozen=True)
class Copy:
    """A picture as somebody passes it on: cut a little, smaller, in other light, compressed once more."""

    jpeg: bytes
    offset: tuple[float, float]  #: x, y in pixels of the original
    scale: float

    def place(self, box: Box) -> list[float]:
        """Where a box of the original lies in the copy."""
        (left, top), scale = self.offset, self.scale
        return [(box[0] - left) * scale, (box[1] - top) * scale, (box[2] - left) * scale, (box[3] - top) * scale]


def altered(image: Image.Image, rng: np.random.Generator) -> Copy:
    """A random copy of an upright RGB picture."""
    width, height = (max(1, int(side * rng.uniform(*_KEPT))) for side in image.size)
    left, top = int(rng.integers(image.width - width + 1)), int(rng.integers(image.height - height + 1))
    scale = max(rng.uniform(*_SCALE), min(1.0, _SHORTEST / min(width, height)))
    copy = image.crop((left, top, left + width, top + height))
    copy = copy.resize((max(1, round(width * scale)), max(1, round(height * scale))), Image.Resampling.BILINEAR)
    copy = ImageEnhance.Brightness(copy).enhance(rng.uniform(*_LIGHT))
    copy = ImageEnhance.Contrast(copy).enhance(rng.uniform(*_LIGHT))
    return Copy(_jpeg(copy, rng), (left, top), scale)


def close_up(image: Image.Image, box: Box, rng: np.random.Generator) -> bytes:
    """A picture of one object, as somebody takes it who looks for more of the kind; box: xyxy in pixels of `image`."""
    x1, y1, x2, y2 = box
    side = max(x2 - x1, y2 - y1, 1.0)
    half = side * (0.5 + rng.uniform(*_ROOM))
    x, y = (x1 + x2) / 2, (y1 + y2) / 2
    left, top = max(0, int(x - half)), max(0, int(y - half))
    right, bottom = min(image.width, int(x + half) + 1), min(image.height, int(y + half) + 1)
    return _jpeg(image.crop((left, top, max(right, left + 1), max(bottom, top + 1))), rng)


def _jpeg(image: Image.Image, rng: np.random.Generator) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=int(rng.integers(*_QUALITY)))
    return buffer.getvalue()
