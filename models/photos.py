"""Generated scenes as JPEG files with known truth, for evaluation, benchmarks, tests and the demo."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from models.scenes import SceneObject, generate_scene

#: Width and height; landscape, portrait and square, up to 2400 pixels.
QUALITY_SIZES = (
    (1600, 1200),
    (1200, 1600),
    (2400, 1350),
    (900, 900),
    (1350, 2400),
    (1280, 720),
    (1920, 1080),
    (1000, 1500),
)
STREAM_SIZES = ((1280, 960), (960, 1280), (1600, 900), (1024, 1024), (640, 480))
#: Seeds of scenes that no training run has seen.
QUALITY_SEED = 4242
STREAM_SEED = 777


@dataclass(frozen=True)
class Photo:
    """A scene as a JPEG file, and what is in it."""

    jpeg: bytes
    objects: tuple[SceneObject, ...]


def take_photo(rng: np.random.Generator, width: int, height: int) -> Photo:
    """A scene with 2 to 5 objects, JPEG quality 90."""
    scene = generate_scene(rng, width, height, int(rng.integers(2, 6)))
    buffer = io.BytesIO()
    Image.fromarray(scene.image).save(buffer, "JPEG", quality=90)
    return Photo(buffer.getvalue(), scene.objects)


def photos(count: int, seed: int, sizes: Sequence[tuple[int, int]]) -> list[Photo]:
    """Photos of the sizes in turns; the same arguments, the same photos."""
    rng = np.random.default_rng(seed)
    return [take_photo(rng, *sizes[number % len(sizes)]) for number in range(count)]
