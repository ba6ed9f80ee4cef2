"""Files to views on the GPU: NVIDIA DALI decodes the next batches while one is looked at."""

from __future__ import annotations

import io
import logging
import sys
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from nvidia.dali import Pipeline
from PIL import Image
from torch import Tensor

from models.decoding import ImageError
from models.manifest import ModelManifest
from triton_repo.contract import IMAGE
from triton_repo.dali_pipeline import preparation_graph
from triton_repo.steps import ImageSteps

_OUT_OF_MEMORY = ("out of memory", "memory allocation", "bad_alloc", "bad alloc")
_log = logging.getLogger(__name__)


class OutOfGpuMemory(RuntimeError):
    """One picture alone does not fit into what is left of the GPU's memory; later it may."""


#: Bytes, or where they lie: uint8 [n].
Encoded = bytes | npt.NDArray[np.uint8]


class Decodable(Protocol):
    """What a batch consists of: `ready` is what `dali_ready` made of the file."""

    @property
    def ready(self) -> Encoded: ...


Job = TypeVar("Job", bound=Decodable)


@dataclass(frozen=True)
class Views:
    """A decoded batch of n pictures, on the device.

    letterboxed: uint8 [n, C, C, 3]      centre: uint8 [n, S, S, 3]
    originals: n tensors uint8 [h, w, 3], capped      sizes: int32 [n, 2], width and height before the cap, on the host
    """

    letterboxed: Tensor
    centre: Tensor
    originals: Sequence[Tensor]
    sizes: npt.NDArray[np.int32]

    def part(self, first: int, last: int) -> Views:
        """Of the pictures first to last, not copied."""
        rows = slice(first, last)
        return Views(self.letterboxed[rows], self.centre[rows], self.originals[rows], self.sizes[rows])


class Decoder(Generic[Job]):
    """A row of batches: `feed` some, `take` them in the same order. For one thread.

    A batch that does not fit into memory is halved. A picture that DALI cannot decode is named in `refused`, and its
    neighbours are decoded without it.
    """

    def __init__(
        self,
        manifest: ModelManifest,
        device: torch.device,
        batch_size: int,
        *,
        ahead: int,
        threads: int,
        refused: Callable[[Job, Exception], None],
    ) -> None:
        """`ahead`: batches that may be fed before the first is taken."""
        self._manifest, self._device = manifest, device
        self._batch_size, self._ahead, self._threads = batch_size, ahead, threads
        self._refused = refused
        self._steps = ImageSteps(manifest, max_pixels=sys.maxsize)  # whoever prepared the files has counted
        self._fed: deque[list[Job]] = deque()
        self._waiting: deque[list[Job]] = deque()
        self._pipeline = self._built()

    def __len__(self) -> int:
        """Batches that were fed and not taken."""
        return len(self._fed) + len(self._waiting)

    def feed(self, batch: list[Job]) -> None:
        """Start decoding up to `batch_size` files."""
        self._waiting.append(batch)
        self._push()

    def take(self) -> tuple[list[Job], Views] | None:
        """The oldest batch without its refused pictures, decoded; None if none of it is left, or nothing was fed."""
        self._push()
        if not self._fed:
            return None
        try:
            outputs = self._pipeline.share_outputs()
            self._pipeline.release_outputs()
        except RuntimeError as error:
            return self._without_culprit(error)
        batch = self._fed.popleft()
        self._push()
        return batch, self._views(outputs)

    def _push(self) -> None:
        while self._waiting and len(self._fed) < self._ahead:
            batch = self._waiting.popleft()
            self._fed.append(batch)
            self._pipeline.feed_input(IMAGE, [np.frombuffer(job.ready, np.uint8) for job in batch])
            self._pipeline.schedule_run()

    def _without_culprit(self, error: RuntimeError) -> tuple[list[Job], Views] | None:
        """A failed batch ends the pipeline, and with it what was fed after."""
        failed, *after = self._fed
        self._fed.clear()
        self._pipeline = self._built()
        if any(sign in str(error).lower() for sign in _OUT_OF_MEMORY):
            torch.cuda.empty_cache()
            if len(failed) == 1:
                self._waiting.extendleft(reversed(after))
                self._refused(failed[0], OutOfGpuMemory(f"no GPU memory to decode this picture: {error}"))
                return None
            _log.warning("no GPU memory to decode %d pictures at once, halving the batch", len(failed))
            middle = len(failed) // 2
            self._waiting.extendleft(reversed([failed[:middle], failed[middle:], *after]))
            return self.take()
        self._waiting.extendleft(reversed(after))
        _log.warning("DALI failed a batch of %d, decoding it on CPU: %s", len(failed), error)
        return self._on_cpu(failed)

    def _on_cpu(self, batch: list[Job]) -> tuple[list[Job], Views] | None:
        """By the steps of the CPU path, which tell whose fault it was."""
        good, prepared = [], []
        for job in batch:
            try:
                prepared.append(self._steps.prepare(_for_pillow(bytes(job.ready))))
                good.append(job)
            except ImageError as error:
                self._refused(job, error)
        if not good:
            return None
        return good, Views(
            letterboxed=self._moved(np.stack([p.letterboxed for p in prepared])),
            centre=self._moved(np.stack([p.centre for p in prepared])),
            originals=[self._moved(p.original) for p in prepared],
            sizes=np.stack([p.size for p in prepared]),
        )

    def _moved(self, pixels: npt.NDArray[np.uint8]) -> Tensor:
        return torch.from_numpy(np.array(pixels)).to(self._device)

    def _views(self, outputs: Sequence[Any]) -> Views:
        letterboxed, centre, originals, sizes = outputs
        if self._device.type == "cuda":
            # The tensors hold DALI's buffers, which go back to it when nobody looks at them any more.
            return Views(
                torch.from_dlpack(letterboxed.as_tensor()),
                torch.from_dlpack(centre.as_tensor()),
                [torch.from_dlpack(original) for original in originals],
                np.array(sizes.as_tensor()),
            )
        return Views(
            torch.from_numpy(np.array(letterboxed.as_tensor())),
            torch.from_numpy(np.array(centre.as_tensor())),
            [torch.from_numpy(np.array(original)) for original in originals],
            np.array(sizes.as_tensor()),
        )

    def _built(self) -> Any:
        gpu = self._device.type == "cuda"
        pipeline = Pipeline(
            self._batch_size,
            self._threads,
            (self._device.index or 0) if gpu else None,
            prefetch_queue_depth=self._ahead,
        )
        with pipeline:
            pipeline.set_outputs(*preparation_graph(self._manifest, "gpu" if gpu else "cpu", streaming=True))
        pipeline.build()
        # The first run of a pipeline starts as many iterations as it may hold; from then on each starts one.
        for _ in range(self._ahead):
            pipeline.feed_input(IMAGE, [np.frombuffer(_picture(), np.uint8)])
        pipeline.schedule_run()
        for _ in range(self._ahead):
            pipeline.share_outputs()
            pipeline.release_outputs()
        return pipeline


def _for_pillow(ready: bytes) -> bytes:
    """Pillow reads uncompressed pictures, but uploads of that kind are not accepted: PNG is."""
    if not ready.startswith(b"P6"):
        return ready
    file = io.BytesIO()
    Image.open(io.BytesIO(ready), formats=("PPM",)).save(file, "PNG", compress_level=0)
    return file.getvalue()


def _picture() -> bytes:
    file = io.BytesIO()
    Image.linear_gradient("L").convert("RGB").save(file, "JPEG")
    return file.getvalue()
