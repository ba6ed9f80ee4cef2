"""The networks of a manifest on a device: detector, image tower and text tower."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from models.manifest import ModelManifest
from triton_repo.gpu.graphs import BatchSizes, PixelScaling
from triton_repo.gpu.network import Network, Precision
from triton_repo.gpu_settings import GpuSettings

Progress = Callable[[str], None]


def precision(device: torch.device) -> torch.dtype:
    """Of weights and activations: half on a GPU, whose matrix units are made for it."""
    return torch.float16 if device.type == "cuda" else torch.float32


class Detector:
    """Letterboxed pictures to End2End rows."""

    def __init__(
        self, manifest: ModelManifest, device: torch.device, settings: GpuSettings, progress: Progress
    ) -> None:
        spec, dtype = manifest.detector, precision(device)
        side, rows = spec.input_size, spec.max_detections
        scaling = PixelScaling(device, dtype, value_range=spec.value_range, bgr=spec.colour_order == "bgr")
        self._graphs = BatchSizes(
            Network(manifest.path(spec.onnx), Precision(dtype, torch.float32), device),
            "images",
            torch.zeros(1, side, side, 3, dtype=torch.uint8, device=device),
            [size for size in settings.detector_sizes if size <= settings.batch] + [settings.batch],
            scaling,
            compiled=settings.compiled,
            progress=lambda line: progress(f"detector: {line}"),
        )
        # number of detections, then boxes, scores, class ids of each row: one copy to the host instead of four.
        self._found = torch.empty(settings.batch, 1 + 6 * rows, pin_memory=device.type == "cuda")
        self._rows = rows

    def start(self, letterboxed: Tensor) -> None:
        """uint8 [n, C, C, 3]; asynchronous: `rows` may be read when the stream has come so far."""
        rows = self._rows

        def keep(start: int, stop: int, outputs: tuple[Tensor, ...]) -> None:
            counts, boxes, scores, classes = (output[: stop - start] for output in outputs)
            packed = torch.cat([counts.float(), boxes.reshape(-1, 4 * rows), scores, classes.float()], dim=1)
            self._found[start:stop].copy_(packed, non_blocking=True)

        self._graphs.run(letterboxed, keep)

    def packed(self, count: int) -> npt.NDArray[np.float32]:
        """Of n pictures, float32 [n, 1 + 6 K]; overwritten by the next `start`."""
        found: npt.NDArray[np.float32] = self._found[:count].numpy()
        return found

    def rows(self, count: int) -> tuple[npt.NDArray[np.float32], ...]:
        """`packed`, taken apart."""
        return unpacked(self.packed(count))


class ImageTower:
    """Crops to vectors."""

    def __init__(
        self, manifest: ModelManifest, device: torch.device, settings: GpuSettings, progress: Progress
    ) -> None:
        spec, dtype = manifest.clip, precision(device)
        self._graphs = BatchSizes(
            Network(manifest.path(spec.image_onnx), Precision(dtype, dtype), device),
            "images",
            torch.zeros(1, spec.image_size, spec.image_size, 3, dtype=torch.uint8, device=device),
            settings.tower_sizes,
            PixelScaling(device, dtype, spec.mean, spec.std),
            compiled=settings.compiled,
            progress=lambda line: progress(f"image tower: {line}"),
        )

    def start(self, crops: Tensor, vectors: Tensor) -> None:
        """crops uint8 [n, S, S, 3] to vectors float32 [n, dim], which may be pinned memory; asynchronous."""

        def keep(start: int, stop: int, outputs: tuple[Tensor, ...]) -> None:
            vectors[start:stop].copy_(normalised(outputs[0][: stop - start]), non_blocking=True)

        self._graphs.run(crops, keep)


class TextTower:
    """Tokens to vectors."""

    def __init__(
        self, manifest: ModelManifest, device: torch.device, settings: GpuSettings, progress: Progress
    ) -> None:
        spec, dtype = manifest.clip, precision(device)
        self._device, self._dim = device, spec.dim
        self._graphs = BatchSizes(
            Network(manifest.path(spec.text_onnx), Precision(dtype, dtype), device),
            "tokens",
            torch.zeros(1, spec.context_length, dtype=torch.int64, device=device),
            settings.text_sizes,
            lambda tokens: tokens,
            compiled=False,  # a query is one row: launches are all that matters, and a graph has none
            progress=lambda line: progress(f"text tower: {line}"),
        )

    def __call__(self, tokens: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        """int64 [n, context] -> float32 [n, dim], L2-normalised."""
        vectors = torch.empty(len(tokens), self._dim)

        def keep(start: int, stop: int, outputs: tuple[Tensor, ...]) -> None:
            vectors[start:stop] = normalised(outputs[0][: stop - start]).cpu()

        with torch.no_grad():
            self._graphs.run(torch.from_numpy(np.array(tokens)).to(self._device), keep)
        result: npt.NDArray[np.float32] = vectors.numpy()
        return result


def unpacked(packed: npt.NDArray[np.float32]) -> tuple[npt.NDArray[np.float32], ...]:
    """Of n pictures: how many [n], boxes [n, K, 4] on the canvas, scores [n, K], class ids [n, K]; all float32."""
    count, rows = len(packed), packed.shape[1] // 6
    counts, boxes, scores, classes = np.split(packed, [1, 1 + 4 * rows, 1 + 5 * rows], axis=1)
    return counts[:, 0], boxes.reshape(count, rows, 4), scores, classes


def normalised(vectors: Tensor) -> Tensor:
    """float32 of length 1: the file normalises too, but in half precision the length is off by a thousandth."""
    return torch.nn.functional.normalize(vectors.float(), dim=-1)
