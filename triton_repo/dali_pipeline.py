"""The three views of a picture as one NVIDIA DALI graph: on GPU (nvJPEG) and on CPU, in a process or as model.dali."""

from __future__ import annotations

import ctypes
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import nvidia.dali.fn as fn
import nvidia.dali.math as dm
import nvidia.dali.types as types
from nvidia.dali import Pipeline

from models.decoding import DEFAULT_MAX_PIXELS, ImageError
from models.manifest import ModelManifest
from triton_repo.contract import IMAGE, IMAGE_SIZE, StepTensors
from triton_repo.dali_inputs import dali_ready
from triton_repo.steps import ImageSteps, Prepared

Device = Literal["cpu", "gpu"]

#: Order of the graph's outputs; Triton's backend takes them by position.
OUTPUTS = (StepTensors.LETTERBOXED, StepTensors.CENTRE, StepTensors.ORIGINAL, IMAGE_SIZE)

_INTERPOLATION = {"bilinear": types.INTERP_LINEAR, "bicubic": types.INTERP_CUBIC}
_log = logging.getLogger(__name__)


def preparation_graph(manifest: ModelManifest, device: Device, *, streaming: bool = False) -> tuple[Any, ...]:
    """Nodes in the order of `OUTPUTS`, for use inside a `Pipeline`; its input IMAGE is uint8 [n], from `dali_ready`.

    `streaming`: for one that is fed ahead. All JPEGs that the JPEG engine of a GPU can decode go there, instead of the
    share that DALI finds best, and the fed bytes are not copied: who feeds them keeps them until the views are there.

    letterboxed uint8 [C, C, 3], centre uint8 [S, S, 3], original uint8 [h, w, 3], image_size int32 [2] (w, h).
    Sizes are computed in float64 with the formulas of `models.preprocessing`: DALI's own resize modes round otherwise
    and enlarge small pictures up to the cap.
    """
    encoded = fn.external_source(name=IMAGE, dtype=types.UINT8, ndim=1, no_copy=streaming)
    full = fn.decoders.image(
        encoded,
        device="mixed" if device == "gpu" else "cpu",
        output_type=types.RGB,
        # nvJPEG repeats chroma samples by default, libjpeg interpolates them.
        jpeg_fancy_upsampling=True,
        hw_decoder_load=1.0 if streaming and device == "gpu" else None,
    )
    # Not full.shape(): the executor that Triton's backend starts does not let the CPU see what the GPU decoded. The
    # header is as good, because `dali_ready` wrote its orientation.
    shape = fn.peek_image_shape(encoded, dtype=types.INT32)
    size = fn.cast(shape[0:2], dtype=types.FLOAT64)
    cap = manifest.preprocessing.original_cap
    capped = _scaled(size, dm.min(1.0, float(cap) / dm.max(size[0], size[1]))) if cap else size
    original = _resized(full, capped) if cap else full
    return (
        _letterboxed(original, capped, manifest),
        _centre(original, capped, manifest),
        original,
        fn.stack(shape[1], shape[0]),
    )


def _letterboxed(original: Any, capped: Any, manifest: ModelManifest) -> Any:
    canvas = manifest.detector.input_size
    placed = _scaled(capped, float(canvas) / dm.max(capped[0], capped[1]))
    centred = manifest.detector.letterbox == "center"
    return fn.slice(
        _resized(original, placed),
        start=fn.cast(-dm.floor((float(canvas) - placed) / 2.0), dtype=types.INT32) if centred else [0, 0],
        shape=[canvas, canvas],
        axes=[0, 1],
        out_of_bounds_policy="pad",
        fill_values=[manifest.detector.pad_value],
    )


def _centre(original: Any, capped: Any, manifest: ModelManifest) -> Any:
    side = dm.min(capped[0], capped[1])
    first = (capped - side) / 2.0
    return fn.resize(
        original,
        size=[manifest.clip.image_size] * 2,
        roi_start=fn.cast(first, dtype=types.FLOAT),
        roi_end=fn.cast(first + side, dtype=types.FLOAT),
        interp_type=_INTERPOLATION[manifest.clip.interpolation],
        antialias=True,
    )


def _scaled(size: Any, scale: Any) -> Any:
    """float64 [2], whole pixels: halves up, never below one."""
    return dm.max(1.0, dm.floor(size * scale + 0.5))


def _resized(picture: Any, size: Any) -> Any:
    return fn.resize(picture, size=fn.cast(size, dtype=types.FLOAT), interp_type=types.INTERP_LINEAR, antialias=True)


def serialize(manifest: ModelManifest, device: Device, path: Path) -> None:
    """Write the graph as the `model.dali` that Triton's DALI backend loads; needs no GPU.

    Batch size, threads and device come from Triton's config. Serialise with a DALI no newer than the one that loads it.
    """
    _pipeline(manifest, device, batch_size=1, threads=1, device_id=None).serialize(filename=str(path))


def gpu_present() -> bool:
    """Whether an NVIDIA driver with a device answers; asks the driver itself, which DALI would only try and fail."""
    try:
        return int(ctypes.CDLL("libcuda.so.1").cuInit(0)) == 0
    except OSError:
        return False


class DaliPreparation:
    """`ImageSteps.prepare` for batches, on DALI. For one thread; holds up to `batch_size` decoded pictures."""

    def __init__(
        self,
        manifest: ModelManifest,
        device: Device = "cpu",
        batch_size: int = 8,
        *,
        threads: int = 2,
        max_pixels: int = DEFAULT_MAX_PIXELS,
    ) -> None:
        self._steps = ImageSteps(manifest, max_pixels=max_pixels)
        self._manifest, self._device = manifest, device
        self._batch_size, self._threads, self._max_pixels = batch_size, threads, max_pixels
        self._pipeline = self._built()

    def prepare(self, pictures: Sequence[bytes]) -> list[Prepared | ImageError]:
        """Encoded files -> the same rows in the same order; a refused picture's row is its error, not raised."""
        ready: list[tuple[int, bytes]] = []
        rows: dict[int, Prepared | ImageError] = {}
        for number, data in enumerate(pictures):
            try:
                ready.append((number, dali_ready(data, self._max_pixels)))
            except ImageError as error:
                rows[number] = error
        for start in range(0, len(ready), self._batch_size):
            numbers, files = zip(*ready[start : start + self._batch_size], strict=True)
            try:
                rows.update(zip(numbers, self._run(files), strict=True))
            except RuntimeError as error:
                # Damage inside coded data fails the whole batch and ends the pipeline; DALI can't go on without the
                # culprit. Decoded one by one on CPU, it alone is refused.
                _log.warning("DALI failed a batch of %d, preparing it one by one on CPU: %s", len(files), error)
                self._pipeline = self._built()
                rows.update((number, self._alone(pictures[number])) for number in numbers)
        return [rows[number] for number in range(len(pictures))]

    def _built(self) -> Any:
        device_id = 0 if self._device == "gpu" else None
        pipeline = _pipeline(self._manifest, self._device, self._batch_size, self._threads, device_id)
        pipeline.build()
        return pipeline

    def _run(self, files: Sequence[bytes]) -> list[Prepared]:
        self._pipeline.feed_input(IMAGE, [np.frombuffer(file, np.uint8) for file in files])
        outputs = [tensors.as_cpu() for tensors in self._pipeline.run()]
        # Copied, because the next run overwrites them.
        return [Prepared(*(np.array(tensors.at(row)) for tensors in outputs)) for row in range(len(files))]

    def _alone(self, data: bytes) -> Prepared | ImageError:
        try:
            return self._steps.prepare(data)
        except ImageError as error:
            return error


def _pipeline(manifest: ModelManifest, device: Device, batch_size: int, threads: int, device_id: int | None) -> Any:
    # One batch in flight: nothing is fed ahead, so a deeper queue would only hold memory.
    pipeline = Pipeline(batch_size, threads, device_id, prefetch_queue_depth=1)
    with pipeline:
        pipeline.set_outputs(*preparation_graph(manifest, device))
    return pipeline
