"""Training pictures for a detector: generated scenes at its scale, drawn by many processes into memory they share."""

from __future__ import annotations

import io
import mmap
import time
from multiprocessing import get_context
from types import TracebackType
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image

from load_tests.gpu_pictures import MAX_OBJECTS, draw_scene, object_counts
from models.preprocessing import letterbox, plan_letterbox
from models.scenes import SHAPES

INPUT_SIDE = 640
#: What released YOLOX weights expect, and what `sightlog models export-yolox` writes into the manifest: grey bars at
#: the bottom or the right.
PAD_VALUE = 114
_ASPECTS = ((16, 9), (16, 9), (4, 3), (3, 4), (1, 1), (9, 16))
_LARGER, _LARGER_ODDS = (1.2, 2.4), 0.3  # of the canvas: pictures that are scaled down, as originals are
_MOST_GRAIN = 9.0  # grey levels; an original's grain is weaker once it is scaled down
_COUNTS = 1000  # quantiles of the distribution of how many objects a picture has
_FIRST_WAIT_S = 120.0


class Sample(NamedTuple):
    """One picture, or (with one more axis in front) several."""

    image: npt.NDArray[np.uint8]  #: [side, side, 3], RGB
    boxes: npt.NDArray[np.float32]  #: [MAX_OBJECTS, 4], xyxy pixels
    classes: npt.NDArray[np.int64]  #: [MAX_OBJECTS], index into SHAPES, -1 where there is no object


def draw_sample(rng: np.random.Generator, side: int = INPUT_SIDE) -> Sample:
    """A scene as the detector sees it."""
    aspect = _ASPECTS[rng.integers(len(_ASPECTS))]
    longer = side * (rng.uniform(*_LARGER) if rng.random() < _LARGER_ODDS else 1.0)
    width, height = (round(longer * part / max(aspect)) for part in aspect)
    count = int(rng.choice(object_counts(_COUNTS, rng)))
    scene = draw_scene(rng, width, height, count, grain=rng.uniform(0, _MOST_GRAIN))
    buffer = io.BytesIO()
    Image.fromarray(scene.image).save(buffer, "JPEG", quality=int(rng.integers(70, 97)))
    image = letterbox(Image.open(buffer), side, PAD_VALUE, centred=False)
    boxes, classes = np.zeros((MAX_OBJECTS, 4), np.float32), np.full(MAX_OBJECTS, -1, np.int64)
    if scene.objects:
        drawn = np.array([thing.box for thing in scene.objects], np.float32)
        boxes[: len(drawn)] = plan_letterbox(width, height, side, centred=False).to_canvas(drawn)
        classes[: len(drawn)] = [SHAPES.index(thing.shape) for thing in scene.objects]
    return Sample(image, boxes, classes)


class SharedSamples:
    """`count` samples that fork workers draw one after another; use as a context manager, before CUDA begins."""

    def __init__(self, count: int, processes: int, seed: int, side: int = INPUT_SIDE) -> None:
        self.all = Sample(
            _shared((count, side, side, 3), np.uint8),
            _shared((count, MAX_OBJECTS, 4), np.float32),
            _shared((count, MAX_OBJECTS), np.int64),
        )
        self._done = _shared((processes,), np.int64)
        fork = get_context("fork")  # others could not inherit the memory
        self._processes = [
            fork.Process(target=self._draw, args=(number, seed), daemon=True) for number in range(processes)
        ]

    def __enter__(self) -> SharedSamples:
        for process in self._processes:
            process.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for process in self._processes:
            process.terminate()
            process.join()

    @property
    def drawn(self) -> int:
        """So many rows, from the first on, are there; all workers draw about as fast."""
        return min(int(self._done.min()) * len(self._processes), len(self.all.image))

    def wait(self, count: int) -> None:
        """Returns when `count` rows (or all) are there. Raises RuntimeError when a worker fails."""
        limit = time.monotonic() + _FIRST_WAIT_S
        while self.drawn < min(count, len(self.all.image)):
            if any(process.exitcode for process in self._processes) or time.monotonic() > limit:
                raise RuntimeError("no samples come; a process that draws them has told why above")
            time.sleep(0.02)

    def _draw(self, number: int, seed: int) -> None:
        for row in range(number, len(self.all.image), len(self._processes)):
            drawn = draw_sample(np.random.default_rng([seed, row]), self.all.image.shape[1])
            self.all.image[row], self.all.boxes[row], self.all.classes[row] = drawn
            self._done[number] += 1
        self._done[number] = len(self.all.image)  # of the last row a worker may have had none


def _shared(shape: tuple[int, ...], kind: type[np.generic]) -> npt.NDArray[Any]:
    """Zeros in memory that forked processes have in common; not in /dev/shm, which containers keep small."""
    size = int(np.prod(shape)) * np.dtype(kind).itemsize
    return np.frombuffer(mmap.mmap(-1, max(size, 1)), kind, int(np.prod(shape))).reshape(shape)
