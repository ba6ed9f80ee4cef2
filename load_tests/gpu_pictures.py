"""Pictures of the GPU benchmark: generated scenes as JPEG files of a photograph's weight, with what is in them."""

from __future__ import annotations

import io
import math
import os
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from typing import Literal

import numpy as np
import numpy.typing as npt
from PIL import Image

from models.photos import Photo
from models.scenes import Scene, SceneObject, draw_background, draw_object, random_kind

SEED = 5150
#: Width, height and bytes of a file: the size that the figures are told for, a small one, and 12 megapixels.
FULL_HD, SMALL, LARGE = (1920, 1080), (640, 480), (4000, 3000)
FILE_BYTES = {FULL_HD: 430_000, SMALL: 75_000, LARGE: 2_300_000}
MAX_OBJECTS, MEAN_OBJECTS = 30, 10
#: Longer side of an object, pixels in a picture that is 1920 wide; in others it grows with the longer side.
OBJECT_SIDES = (40.0, 500.0)
_WIDTH = 1920
#: Side of a drawn object as a part of its radius, the mean over shapes: what reaches over the radius at one end
#: falls short at another.
_SIDE_OF_RADIUS = 2.1
_REACH = 1.22  # of the radius: the farthest that a shape reaches
_SPACING = 1.15  # of the sum of two radii; boxes may overlap a little, objects do not
_TRIES = 40
_SHRINK = 0.8  # of a radius for which no place was found
_GRAIN = 7.0  # grey levels, standard deviation: fine detail gives a file its weight, as in a photograph
_GRAIN_TILE = 256  # pixels
_QUALITIES = (40, 97)


def object_counts(pictures: int, rng: np.random.Generator) -> npt.NDArray[np.int64]:
    """How many objects each picture has: 0 to 30, mean 10, small numbers more often (density falls linearly).

    The counts are the even quantiles of that distribution in random order, so the mean holds for few pictures too.
    """
    even = np.linspace(0, 1, pictures) if pictures > 1 else np.array([0.5])
    counts: npt.NDArray[np.int64] = np.rint(MAX_OBJECTS * (1 - np.sqrt(1 - even))).astype(np.int64)
    return rng.permutation(counts)


def draw_scene(rng: np.random.Generator, width: int, height: int, count: int, grain: float = _GRAIN) -> Scene:
    """`count` objects whose sides are log-uniform in OBJECT_SIDES; one that finds no place becomes smaller.

    Fewer where even the smallest finds none, which a picture of an ordinary shape does not see.
    """
    canvas = draw_background(rng, width, height)
    scale = max(width, height) / _WIDTH / _SIDE_OF_RADIUS
    smallest, largest = (side * scale for side in OBJECT_SIDES)
    radii = np.sort(np.exp(rng.uniform(math.log(smallest), math.log(largest), count)))[::-1]
    placed: list[tuple[float, float, float]] = []
    objects: list[SceneObject] = []
    for radius in radii:
        place = _place(rng, width, height, float(radius), smallest, placed)
        if place is not None:
            placed.append(place)
            objects.append(draw_object(canvas, rng, random_kind(rng), centre=place[:2], radius=place[2]))
    return Scene(_grained(rng, canvas, grain), tuple(objects))


def make_picture(stream: np.random.SeedSequence, count: int, size: tuple[int, int]) -> Photo:
    """One picture of `size` (width, height) whose file weighs about FILE_BYTES, or its part by area."""
    rng = np.random.default_rng(stream)
    scene = draw_scene(rng, *size, count)
    area = size[0] * size[1] / (FULL_HD[0] * FULL_HD[1])
    return Photo(_weighing(Image.fromarray(scene.image), FILE_BYTES.get(size, round(430_000 * area))), scene.objects)


def make_pictures(
    count: int,
    size: tuple[int, int] = FULL_HD,
    seed: int = SEED,
    *,
    processes: int | None = None,
    start: Literal["spawn", "fork"] = "spawn",
) -> list[Photo]:
    """`count` different pictures, drawn by as many processes as there are cores; same size and seed, same pictures.

    Forked processes begin sooner, but would share the CUDA context of a caller that has one.
    """
    streams = np.random.SeedSequence([seed, *size]).spawn(count + 1)
    counts = object_counts(count, np.random.default_rng(streams.pop())).tolist()
    workers = min(processes or os.cpu_count() or 1, count)
    if workers == 1:
        return [make_picture(stream, number, size) for stream, number in zip(streams, counts, strict=True)]
    with ProcessPoolExecutor(workers, get_context(start)) as pool:
        return list(pool.map(partial(make_picture, size=size), streams, counts))


def _place(
    rng: np.random.Generator,
    width: int,
    height: int,
    radius: float,
    smallest: float,
    placed: Sequence[tuple[float, float, float]],
) -> tuple[float, float, float] | None:
    while radius >= smallest * _SHRINK:
        edge = radius * _REACH + 1
        if 2 * edge < min(width, height):
            for _ in range(_TRIES):
                x, y = float(rng.uniform(edge, width - edge)), float(rng.uniform(edge, height - edge))
                if all(math.hypot(x - a, y - b) > (radius + other) * _SPACING for a, b, other in placed):
                    return x, y, radius
        radius *= _SHRINK
    return None


def _grained(rng: np.random.Generator, canvas: npt.NDArray[np.uint8], grain: float) -> npt.NDArray[np.uint8]:
    """Grey noise over everything; a repeated tile, which is much faster than new noise for each pixel."""
    height, width = canvas.shape[:2]
    tile = rng.normal(0, grain, (_GRAIN_TILE, _GRAIN_TILE, 1)).astype(np.int16)
    tiled = np.tile(tile, (-(-height // _GRAIN_TILE), -(-width // _GRAIN_TILE), 1))[:height, :width]
    noisy: npt.NDArray[np.uint8] = np.clip(canvas + tiled, 0, 255).astype(np.uint8)
    return noisy


def _weighing(image: Image.Image, wanted: int) -> bytes:
    """The JPEG of the largest quality whose file is not heavier than `wanted` bytes."""
    low, high = _QUALITIES
    best = b""
    while low <= high:
        quality = (low + high) // 2
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=quality)
        if buffer.tell() <= wanted or not best:
            best = buffer.getvalue()
        low, high = (quality + 1, high) if buffer.tell() <= wanted else (low, quality - 1)
    return best
