"""The image pipeline of one GPU in one process: many pictures under way, batches formed as late as possible.

A thread decodes, detects and crops; a second one embeds; a third one answers. Each waits for the device while the
others work, and what they share is a few slots: buffers for the crops of a batch on their way to their vectors.
"""

from __future__ import annotations

import queue
import threading
import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from models.decoding import DEFAULT_MAX_PIXELS, UNEMBEDDABLE, ImageError
from models.manifest import ModelManifest
from sightlog.errors import SightlogError
from triton_repo.contract import ImageInference
from triton_repo.dali_inputs import dali_picture
from triton_repo.gpu.boxes import detections_of
from triton_repo.gpu.crops import Cropper
from triton_repo.gpu.decoding import Decoder, Encoded, OutOfGpuMemory, Views
from triton_repo.gpu.networks import Detector, ImageTower
from triton_repo.gpu.streams import Mark, Stream, device_of
from triton_repo.gpu_settings import GpuSettings
from triton_repo.steps import Detections

#: What a picture's `reply` is called with.
Answer = ImageInference | Exception


class Cancelled(SightlogError):
    """Nobody waits for this picture any more; it was not looked at."""


class EngineStopped(SightlogError):
    """The pipeline broke or was closed; a new process has to take over."""


@dataclass(frozen=True, eq=False)
class _Job:
    ready: Encoded
    pixels: int
    reply: Callable[[Answer], None]
    cancelled: Callable[[], bool]


class _Slot:
    """Crops of a batch and their vectors: first the global views of n pictures, then the objects of each."""

    def __init__(self, manifest: ModelManifest, settings: GpuSettings, device: torch.device) -> None:
        clip = manifest.clip
        self.crops = torch.empty(settings.crops, clip.image_size, clip.image_size, 3, dtype=torch.uint8, device=device)
        self.vectors = torch.empty(settings.crops, clip.dim, pin_memory=device.type == "cuda")
        self.jobs: list[_Job] = []
        self.found: list[Detections] = []
        self.sizes: Any = None
        self.cropping: Mark
        self.filled: Mark
        self.embedding: Mark
        self.embedded: Mark

    @property
    def rows(self) -> int:
        return len(self.jobs) + sum(len(detections.boxes) for detections in self.found)


class Engine:
    """Pictures in, `ImageInference` out, through callbacks. Every picture that was taken is answered exactly once."""

    def __init__(
        self,
        manifest: ModelManifest,
        settings: GpuSettings | None = None,
        *,
        gpu: int = 0,
        max_pixels: int = DEFAULT_MAX_PIXELS,
        broken: Callable[[BaseException], None] = lambda error: None,
        progress: Callable[[str], None] = lambda line: None,
    ) -> None:
        """Ready when it returns. `broken` is told of the error that ended the pipeline, after all were answered."""
        self._manifest = manifest
        settings = settings or GpuSettings()
        # A slot holds what one picture may bring, whatever it was set to.
        settings = replace(settings, crops=max(settings.crops, 1 + manifest.detector.max_detections))
        self._settings = settings
        self._max_pixels, self._broken = max_pixels, broken
        self._device = device_of(settings, gpu)
        with Stream(self._device).entered():
            self._detector = Detector(manifest, self._device, settings, progress)
            self._tower = ImageTower(manifest, self._device, settings, progress)
            self._cropper = Cropper(manifest, self._device, settings.batch, settings.crops)
            slots = [_Slot(manifest, settings, self._device) for _ in range(settings.slots)]
        self._waiting: deque[_Job] = deque()
        self._changed = threading.Condition()
        self._free: queue.SimpleQueue[_Slot | None] = queue.SimpleQueue()
        for slot in slots:
            self._free.put(slot)
        self._cropped: queue.SimpleQueue[_Slot | None] = queue.SimpleQueue()
        self._embedded: queue.SimpleQueue[_Slot | None] = queue.SimpleQueue()
        self._under_way: set[_Job] = set()
        self._stopping: BaseException | None = None
        self._count: Counter[str] = Counter()
        self._seconds: defaultdict[str, float] = defaultdict(float)
        self._threads = [
            threading.Thread(target=self._ended_by_errors, args=(work,), name=work.__name__, daemon=True)
            for work in (self._look, self._embed, self._answer)
        ]
        for thread in self._threads:
            thread.start()

    def submit(
        self, data: bytes, reply: Callable[[Answer], None], cancelled: Callable[[], bool] = lambda: False
    ) -> None:
        """Take one encoded file; blocks while two batches wait, which holds the rest where it comes from.

        `reply` is called once, from another thread, with the result, `ImageError` (the picture's own fault),
        `Cancelled`, `OutOfGpuMemory` or `EngineStopped`. `cancelled` is asked before the work begins.
        """
        try:
            ready, pixels = dali_picture(data, self._max_pixels)
        except ImageError as error:
            reply(error)
            return
        self.submit_ready(ready, pixels, reply, cancelled)

    def submit_ready(
        self,
        ready: Encoded,
        pixels: int,
        reply: Callable[[Answer], None],
        cancelled: Callable[[], bool] = lambda: False,
    ) -> None:
        """The same with a file that `dali_picture` made ready; it must stay as it is until the reply."""
        job = _Job(ready, pixels, reply, cancelled)
        with self._changed:
            self._changed.wait_for(lambda: len(self._waiting) < 2 * self._settings.batch or self._stopping)
            if self._stopping is None:
                self._under_way.add(job)
                self._waiting.append(job)
                self._changed.notify_all()
                return
        reply(EngineStopped(f"the pipeline ended: {self._stopping}"))

    def stats(self) -> dict[str, float]:
        """Counters since the start: images, batches, crops; seconds by stage; bytes of GPU memory at present."""
        figures: dict[str, float] = {
            **self._count,
            **{f"{stage}_seconds": value for stage, value in self._seconds.copy().items()},
        }
        if self._device.type == "cuda":
            free, total = torch.cuda.mem_get_info(self._device)
            figures["gpu_memory_used_bytes"] = total - free
            figures["torch_reserved_bytes"] = torch.cuda.memory_reserved(self._device)
        return figures

    def close(self) -> None:
        """Answer what was taken with `EngineStopped` and end the threads."""
        self._stop(EngineStopped("it was closed"))
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join(timeout=30)

    def _look(self) -> None:
        """Thread 1: files to crops."""
        settings = self._settings
        stream = Stream(self._device, urgent=True)
        held: list[_Slot] = []
        looked_at: tuple[Mark, Views] | None = None
        with stream.entered():
            decoder: Decoder[_Job] = Decoder(
                self._manifest,
                self._device,
                settings.batch,
                ahead=settings.decode_ahead,
                threads=settings.dali_threads,
                refused=self._reply,
            )

            def fill(*, idle: bool = False) -> None:
                # A slot first, then the batch: whatever comes while no slot is free joins the batch.
                while len(decoder) < settings.decode_ahead:
                    block = idle and not len(decoder)
                    if len(held) <= len(decoder):
                        try:
                            held.append(self._slot(block=block))
                        except queue.Empty:
                            return
                    batch = self._next_batch(block=block)
                    if not batch:
                        return
                    decoder.feed(batch)

            while self._stopping is None:
                fill(idle=True)
                started = time.perf_counter()
                taken = decoder.take()
                self._seconds["decode_wait"] += time.perf_counter() - started
                if looked_at:
                    # DALI may take its buffers back only when nothing reads them any more.
                    looked_at[0].wait()
                    looked_at = None
                if taken:
                    self._crop_all(stream, *taken, held, fill)
                    looked_at = (stream.mark(), taken[1])
                    del taken

    def _slot(self, *, block: bool = True) -> _Slot:
        slot = self._free.get(block)
        if slot is None:
            raise EngineStopped("the pipeline ended")
        return slot

    def _next_batch(self, *, block: bool) -> list[_Job]:
        """As many waiting pictures as a batch may have; those that nobody waits for are dropped."""
        batch: list[_Job] = []
        pixels = 0
        with self._changed:
            if block:
                self._changed.wait_for(lambda: self._waiting or self._stopping)
            while self._waiting and len(batch) < self._settings.batch:
                job = self._waiting[0]
                if batch and pixels + job.pixels > self._settings.batch_pixels:
                    break
                self._waiting.popleft()
                pixels += job.pixels
                batch.append(job)
            self._changed.notify_all()
        gone = [job for job in batch if job.cancelled()]
        for job in gone:
            self._reply(job, Cancelled("the caller gave up"))
        return [job for job in batch if job not in gone] if gone else batch

    def _crop_all(
        self, stream: Stream, jobs: list[_Job], views: Views, held: list[_Slot], meanwhile: Callable[[], None]
    ) -> None:
        """One decoded batch; halved as long as there is no memory for it."""
        try:
            started = stream.mark()
            self._detector.start(views.letterboxed)
            detected = stream.mark()
            meanwhile()
            detected.wait()
            self._seconds["detect"] += detected.seconds_since(started)
            capped = np.array([(original.shape[1], original.shape[0]) for original in views.originals])
            found = detections_of(self._manifest, self._detector.rows(len(jobs)), capped, views.sizes)
            for first, last in self._groups(found):
                slot = held.pop() if held else self._slot()
                self._crop(stream, slot, jobs[first:last], views.part(first, last), found[first:last])
        except torch.OutOfMemoryError as error:
            torch.cuda.empty_cache()
            if len(jobs) == 1:
                self._reply(jobs[0], OutOfGpuMemory(str(error)))
                return
            middle = len(jobs) // 2
            for first, last in ((0, middle), (middle, len(jobs))):
                self._crop_all(stream, jobs[first:last], views.part(first, last), held, lambda: None)
        self._count["batches"] += 1

    def _groups(self, found: Sequence[Detections]) -> list[tuple[int, int]]:
        """Runs of pictures whose crops fit into a slot."""
        groups: list[tuple[int, int]] = []
        first, rows = 0, 0
        for number, detections in enumerate(found):
            needed = 1 + len(detections.boxes)
            if rows + needed > self._settings.crops:
                groups.append((first, number))
                first, rows = number, 0
            rows += needed
        return [*groups, (first, len(found))]

    def _crop(self, stream: Stream, slot: _Slot, jobs: list[_Job], views: Views, found: list[Detections]) -> None:
        slot.jobs, slot.found, slot.sizes = jobs, found, views.sizes
        count = len(jobs)
        slot.cropping = stream.mark()
        slot.crops[:count].copy_(views.centre, non_blocking=True)
        self._cropper(views.originals, views.sizes, found, slot.crops[count : slot.rows])
        slot.filled = stream.mark()
        self._cropped.put(slot)

    def _embed(self) -> None:
        """Thread 2: crops to vectors."""
        stream = Stream(self._device)
        with stream.entered():
            while (slot := self._cropped.get()) is not None:
                stream.after(slot.filled)
                slot.embedding = stream.mark()
                self._tower.start(slot.crops[: slot.rows], slot.vectors)
                slot.embedded = stream.mark()
                self._embedded.put(slot)

    def _answer(self) -> None:
        """Thread 3: vectors to replies."""
        while (slot := self._embedded.get()) is not None:
            slot.embedded.wait()
            started = time.perf_counter()
            self._seconds["crop"] += slot.filled.seconds_since(slot.cropping)
            self._seconds["embed"] += slot.embedded.seconds_since(slot.embedding)
            jobs, found, sizes = slot.jobs, slot.found, slot.sizes
            vectors = slot.vectors[: slot.rows].numpy().copy()
            self._count["images"] += len(jobs)
            self._count["crops"] += len(vectors)
            slot.jobs, slot.found = [], []
            self._free.put(slot)
            finite = np.isfinite(vectors).all()
            row = len(jobs)
            for number, (job, detections) in enumerate(zip(jobs, found, strict=True)):
                end = row + len(detections.boxes)
                answer = _inference(sizes[number], detections, vectors[number], vectors[row:end])
                self._reply(job, answer if finite else _checked(answer))
                row = end
            self._seconds["reply"] += time.perf_counter() - started

    def _reply(self, job: _Job, answer: Answer) -> None:
        with self._changed:
            if job not in self._under_way:
                return
            self._under_way.remove(job)
        job.reply(answer)

    def _ended_by_errors(self, work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException as error:
            if self._stop(error):
                self._broken(error)

    def _stop(self, cause: BaseException) -> bool:
        """Whether this was what stopped it."""
        with self._changed:
            if self._stopping is not None:
                return False
            self._stopping = cause
            left = list(self._under_way)
            self._waiting.clear()
            self._changed.notify_all()
        for job in left:
            self._reply(job, EngineStopped(f"the pipeline ended: {cause}"))
        self._cropped.put(None)
        self._embedded.put(None)
        self._free.put(None)
        return True


def _checked(answer: ImageInference) -> Answer:
    """Half precision ends at 65504: a network that was trained beyond it has no answer to some pictures."""
    if np.isfinite(answer.embedding).all() and np.isfinite(answer.object_embeddings).all():
        return answer
    return ImageError(UNEMBEDDABLE, "the image tower gave no finite vector for it; serve these models on CPU")


def _inference(
    size: npt.NDArray[np.int32], detections: Detections, vector: Any, objects: npt.NDArray[np.float32]
) -> ImageInference:
    return ImageInference(
        width=int(size[0]),
        height=int(size[1]),
        embedding=vector,
        boxes=detections.boxes,
        scores=detections.scores,
        class_ids=detections.class_ids,
        object_embeddings=objects,
    )
