"""Keeps a device busy: worker processes draw samples, a ring of them in device memory is replayed."""

from __future__ import annotations

import multiprocessing
import queue
import threading
from collections.abc import Sequence
from multiprocessing.queues import Queue
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from models.tiny.samples import ClipSamples, DetectorSamples

Part = Literal["clip", "detector"]

_WORKER_BATCH = {"clip": 64, "detector": 8}
_QUEUED = 8  # batches that wait; bounds memory when the device is slower than the workers
_FIRST_WAIT_S = 120.0


class SampleFeed:
    """Draws samples in worker processes and replays a ring of the latest ones.

    Drawing is the bottleneck, so each sample is used several times. Use as a context manager.
    """

    def __init__(self, part: Part, size: int, capacity: int, workers: int, seed: int, device: torch.device) -> None:
        """`size`: pixels of the square images; `capacity`: samples in the ring; all on `device`."""
        context = multiprocessing.get_context("spawn")
        self._queue: Queue[Any] = context.Queue(_QUEUED)
        streams = np.random.SeedSequence([seed, len(part)]).spawn(workers)
        self._processes = [
            context.Process(target=_draw, args=(part, size, stream, self._queue), daemon=True) for stream in streams
        ]
        self._capacity, self._device = capacity, device
        self._ring: list[Tensor] = []
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._broken = False
        self.drawn = 0  #: samples received so far

    def __enter__(self) -> SampleFeed:
        for process in self._processes:
            process.start()
        self._store(self._queue.get(timeout=_FIRST_WAIT_S))
        self._reader.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._reader.join()
        for process in self._processes:
            process.terminate()
            process.join()

    def sample(self, count: int) -> list[Tensor]:
        """`count` random samples of the ring, field by field, on the device.

        Raises RuntimeError when a worker has ended: training would go on with ever fewer new samples.
        """
        if self._broken:
            raise RuntimeError("a process that draws samples has ended; its error is printed above")
        with self._lock:
            index = torch.randint(min(self.drawn, self._capacity), (count,), device=self._device)
            return [field[index] for field in self._ring]

    def _read(self) -> None:
        while not self._stop.is_set():
            try:
                batch = self._queue.get(timeout=0.2)
            except queue.Empty:
                continue
            self._store(batch)
            self._broken = not all(process.is_alive() for process in self._processes)

    def _store(self, batch: Sequence[npt.NDArray[Any]]) -> None:
        fields = [torch.from_numpy(field).to(self._device) for field in batch]
        with self._lock:
            if not self._ring:
                self._ring = [
                    torch.zeros((self._capacity, *field.shape[1:]), dtype=field.dtype, device=self._device)
                    for field in fields
                ]
            place = (torch.arange(len(batch[0])) + self.drawn).to(self._device) % self._capacity
            for ring, field in zip(self._ring, fields, strict=True):
                ring[place] = field
            self.drawn += len(batch[0])


def _draw(part: Part, size: int, stream: np.random.SeedSequence, out: Queue[Any]) -> None:
    """What a worker process does until it is ended."""
    rng = np.random.default_rng(stream)
    source = ClipSamples(rng, size) if part == "clip" else DetectorSamples(rng, size)
    while True:
        out.put(tuple(source.batch(_WORKER_BATCH[part])))
