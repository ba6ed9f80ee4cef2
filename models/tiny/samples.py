"""Training samples, made exactly as the pipeline makes its inputs: JPEG, square context crops, letterboxes."""

from __future__ import annotations

import contextlib
import io
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image

from models.preprocessing import centre_crop, letterbox, plan_letterbox, square_crop
from models.scenes import (
    PATTERN_PERIOD,
    PATTERNS,
    SHAPES,
    SceneObject,
    draw_background,
    draw_object,
    generate_scene,
    random_kind,
)
from models.tiny.captions import COLOUR_NAMES, Caption, Claim, Seen, caption_for
from models.tokenizer import EOT, PAD, SOT, ClipTokenizer

MAX_SEEN = 5  #: objects of a view that captions speak of
CAPTIONS = 4  #: captions a picture; a replayed picture comes with another one
CONTEXT = 40  #: tokens in training, all that these captions need; attention is causal, so 77 gives the same
MAX_BOXES = 8
_VISIBLE_PERIOD = 2.1  # pixels; finer patterns are lost to sampling and JPEG
_PAD_VALUE = 114
_VIEW_ODDS = 0.3
_SIZES = ((4, 3), (3, 4), (16, 9), (9, 16), (1, 1), (3, 2), (2, 3), (2, 1), (1, 2))

UInt8 = npt.NDArray[np.uint8]


class ClipBatch(NamedTuple):
    """A batch for the towers; objects are padded with -1."""

    images: UInt8  #: [n, 128, 128, 3]
    tokens: npt.NDArray[np.int32]  #: [n, CAPTIONS, CONTEXT]
    claims: npt.NDArray[np.int8]  #: [n, CAPTIONS, 7], `Caption.numbers`
    objects: npt.NDArray[np.int8]  #: [n, MAX_SEEN, 3]
    centres: npt.NDArray[np.float32]  #: [n, MAX_SEEN, 2]
    visible: npt.NDArray[np.bool_]  #: [n, MAX_SEEN], the pattern can be seen


class DetectorBatch(NamedTuple):
    """A batch for the detector; boxes are padded with class -1."""

    images: UInt8  #: [n, 640, 640, 3]
    boxes: npt.NDArray[np.float32]  #: [n, MAX_BOXES, 4] xyxy pixels
    classes: npt.NDArray[np.int64]  #: [n, MAX_BOXES]


class ClipSamples:
    """An endless source of `ClipBatch`, reproducible by its generator."""

    def __init__(self, rng: np.random.Generator, image_size: int) -> None:
        self._rng = rng
        self._size = image_size
        self._tokenizer = ClipTokenizer(CONTEXT)
        said = " ".join([*SHAPES, *(f"{shape}s" for shape in SHAPES), *COLOUR_NAMES, *PATTERNS, "crosses solid stripy"])
        said += " spotted stripes dots pattern left right above below over under higher lower without"
        self._meaningful = set(self._tokenizer_ids(said))

    def batch(self, count: int) -> ClipBatch:
        rows = [self._sample() for _ in range(count)]
        return ClipBatch(*(np.stack(column) for column in zip(*rows, strict=True)))

    def _sample(self) -> ClipBatch:
        rng = self._rng
        image, seen = view_sample(rng, self._size) if rng.random() < _VIEW_ODDS else crop_sample(rng, self._size)
        captions = [caption_for(rng, seen) for _ in range(CAPTIONS)]
        objects = np.full((MAX_SEEN, 3), -1, np.int8)
        centres = np.zeros((MAX_SEEN, 2), np.float32)
        visible = np.zeros(MAX_SEEN, np.bool_)
        for row, item in enumerate(seen):
            objects[row], centres[row], visible[row] = item.claim, (item.x, item.y), item.pattern_visible
        return ClipBatch(
            images=image,
            tokens=np.stack([self._tokens(caption) for caption in captions]),
            claims=np.array([caption.numbers() for caption in captions], np.int8),
            objects=objects,
            centres=centres,
            visible=visible,
        )

    def _tokens(self, caption: Caption) -> npt.NDArray[np.int32]:
        """Ids of a caption, sometimes with words strewn in that mean nothing here, as people's queries have them."""
        row: npt.NDArray[np.int32] = self._tokenizer.encode([caption.text])[0].astype(np.int32)
        if self._rng.random() < 0.2:
            ids = [int(token) for token in row[1 : int(row.argmax())]]
            for _ in range(self._rng.integers(1, 7)):
                stray = int(self._rng.integers(1, SOT))
                if stray not in self._meaningful and len(ids) < CONTEXT - 2:
                    ids.insert(int(self._rng.integers(len(ids) + 1)), stray)
            row[:] = PAD
            row[: len(ids) + 2] = [SOT, *ids, EOT]
        return row

    def _tokenizer_ids(self, words: str) -> list[int]:
        return [int(token) for token in ClipTokenizer(256).encode([words])[0]]


class DetectorSamples:
    """An endless source of `DetectorBatch`, reproducible by its generator."""

    def __init__(self, rng: np.random.Generator, input_size: int) -> None:
        self._rng = rng
        self._size = input_size

    def batch(self, count: int) -> DetectorBatch:
        rows = [detector_sample(self._rng, self._size) for _ in range(count)]
        return DetectorBatch(*(np.stack(column) for column in zip(*rows, strict=True)))


def crop_sample(rng: np.random.Generator, size: int) -> tuple[UInt8, list[Seen]]:
    """One object as the pipeline crops it, neighbours at the edge included: uint8 [size, size, 3] and what it is.

    Only the object's surroundings are drawn, at the resolution of an original: whole originals would be slow.
    """
    radius = float(np.exp(rng.uniform(np.log(18), np.log(180))))
    width, height = (int(radius * rng.uniform(2.7, 4.2)) + 4 for _ in range(2))
    canvas = draw_background(rng, width, height)
    edge = radius * 1.22 + 1
    x, y = rng.uniform(edge, width - edge), rng.uniform(edge, height - edge)
    for _ in range(int(rng.integers(0, 3))):
        other = radius * rng.uniform(0.5, 1.8)
        turn, away = rng.uniform(0, 2 * np.pi), (radius + other) * rng.uniform(1.25, 1.6)
        place = (float(x + np.cos(turn) * away), float(y + np.sin(turn) * away))
        if -other / 2 < place[0] < width + other / 2 and -other / 2 < place[1] < height + other / 2:
            with contextlib.suppress(ValueError):  # the tip of a star can miss the little window
                draw_object(canvas, rng, random_kind(rng), centre=place, radius=other)
    item = draw_object(canvas, rng, random_kind(rng), centre=(float(x), float(y)), radius=radius)
    x1, y1, x2, y2 = item.box
    jitter = rng.normal(0, 0.025 * max(x2 - x1, y2 - y1), 4)
    box = np.asarray(item.box, np.float32) + jitter.astype(np.float32)
    pixels = np.asarray(_jpeg(rng, Image.fromarray(canvas)))
    crop = square_crop(pixels, box, size, margin=0.12, pad_value=_PAD_VALUE)
    return crop, [Seen(claim_of(item), x, y, radius * PATTERN_PERIOD >= _VISIBLE_PERIOD)]


def view_sample(rng: np.random.Generator, size: int) -> tuple[UInt8, list[Seen]]:
    """The centre view of a scene as the global embedding sees it, and the objects in it."""
    while True:
        aspect = _SIZES[rng.integers(len(_SIZES))]
        short = int(rng.integers(2 * size, 4 * size))
        width, height = (int(short * part / min(aspect)) for part in aspect)
        count = int(rng.integers(1, MAX_SEEN + 1))
        scene = generate_scene(rng, width, height, count, radius=(0.05, 0.34 if count == 1 else 0.2))
        seen = []
        for item in scene.objects:
            share = share_inside(item, width, height)
            if 0.1 < share < 0.75:  # cut: neither there nor not there, so no caption could be judged
                break
            if share >= 0.75:
                x1, y1, x2, y2 = item.box
                radius = (x2 - x1 + y2 - y1) / 4 * size / short
                shown = radius * PATTERN_PERIOD >= _VISIBLE_PERIOD
                seen.append(Seen(claim_of(item), (x1 + x2) / 2, (y1 + y2) / 2, shown))
        else:
            if seen:
                return centre_crop(_jpeg(rng, Image.fromarray(scene.image)), size), seen


def detector_sample(
    rng: np.random.Generator, size: int
) -> tuple[UInt8, npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    """A letterboxed scene uint8 [size, size, 3], boxes float32 [MAX_BOXES, 4], classes int64 [MAX_BOXES]."""
    aspect = _SIZES[rng.integers(len(_SIZES))]
    scale = size / max(aspect) * (rng.uniform(1.2, 2.2) if rng.random() < 0.25 else 1.0)
    width, height = (max(32, round(part * scale * rng.uniform(0.9, 1.0))) for part in aspect)
    largest = 0.22 if rng.random() < 0.5 else 0.13
    scene = generate_scene(rng, width, height, int(rng.integers(0, MAX_BOXES)), radius=(0.032, largest))
    canvas = letterbox(_jpeg(rng, Image.fromarray(scene.image)), size, _PAD_VALUE)
    boxes = np.zeros((MAX_BOXES, 4), np.float32)
    classes = np.full(MAX_BOXES, -1, np.int64)
    if scene.objects:
        found = np.array([item.box for item in scene.objects], np.float32)
        boxes[: len(found)] = plan_letterbox(width, height, size).to_canvas(found)
        classes[: len(found)] = [SHAPES.index(item.shape) for item in scene.objects]
    return canvas, boxes, classes


def claim_of(item: SceneObject) -> Claim:
    """All three attributes of an object."""
    return Claim(SHAPES.index(item.shape), COLOUR_NAMES.index(item.colour), PATTERNS.index(item.pattern))


def share_inside(item: SceneObject, width: int, height: int) -> float:
    """How much of an object's box lies in the centre square."""
    side = min(width, height)
    left, top = (width - side) / 2, (height - side) / 2
    x1, y1, x2, y2 = item.box
    inside = max(0.0, min(x2, left + side) - max(x1, left)) * max(0.0, min(y2, top + side) - max(y1, top))
    return inside / ((x2 - x1) * (y2 - y1))


def _jpeg(rng: np.random.Generator, image: Image.Image) -> Image.Image:
    """Through a JPEG of random quality, most of the time."""
    if rng.random() < 0.15:
        return image
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=int(rng.integers(72, 97)))
    return Image.open(buffer).convert("RGB")
