"""Cuts all crops of a batch out of originals of any size, in one launch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from models.manifest import ModelManifest
from triton_repo.gpu.boxes import squares_of
from triton_repo.gpu.kernels import crop_kernel
from triton_repo.steps import Detections, ImageSteps

_SUPPORT = {"bilinear": 1, "bicubic": 2}
#: Launches whose arguments may be on their way to the device at once.
_ARGUMENTS = 8


class Cropper:
    """For one thread and stream, and up to `pictures` pictures and `crops` crops a call."""

    def __init__(self, manifest: ModelManifest, device: torch.device, pictures: int, crops: int) -> None:
        self._manifest, self._device = manifest, device
        self._steps = ImageSteps(manifest)
        pinned = device.type == "cuda"
        self._arguments = [
            (
                torch.empty(pictures, 3, dtype=torch.int64, pin_memory=pinned),
                torch.empty(crops, 6, pin_memory=pinned),
                torch.empty(pictures, 3, dtype=torch.int64, device=device),
                torch.empty(crops, 6, device=device),
            )
            for _ in range(_ARGUMENTS)
        ]
        self._calls = 0

    def __call__(
        self, originals: Sequence[Tensor], sizes: npt.NDArray[np.int32], found: Sequence[Detections], out: Tensor
    ) -> None:
        """Fill out uint8 [sum of detections, S, S, 3], picture after picture; asynchronous on a GPU.

        originals: uint8 [h, w, 3] each, capped, on the device      sizes: [n, 2], width and height before the cap
        """
        if len(out) == 0:
            return
        if self._device.type == "cuda":
            capped = np.array([(original.shape[1], original.shape[0]) for original in originals])
            self.launch(originals, found, squares_of(self._manifest, found, capped, sizes), out)
            return
        row = 0
        for original, size, detections in zip(originals, sizes, found, strict=True):
            end = row + len(detections.boxes)
            self._steps.crops(original.numpy(), size, detections.boxes, out[row:end].numpy())
            row = end

    def launch(
        self, originals: Sequence[Tensor], found: Sequence[Detections], squares: npt.NDArray[np.float32], out: Tensor
    ) -> None:
        """Run the kernel; squares: float32 [n, 5] of `boxes.squares_of`."""
        table, places, device_table, device_places = self._arguments[self._calls % _ARGUMENTS]
        self._calls += 1
        count, clip = len(squares), self._manifest.clip
        table.numpy()[: len(originals)] = [
            (original.data_ptr(), original.shape[0], original.shape[1]) for original in originals
        ]
        places.numpy()[:count, 0] = np.repeat(np.arange(len(found)), [len(d.boxes) for d in found])
        places.numpy()[:count, 1:] = squares
        device_table.copy_(table, non_blocking=True)
        device_places[:count].copy_(places[:count], non_blocking=True)
        kernel: Any = crop_kernel[(count, clip.image_size)]
        kernel(
            device_table,
            device_places,
            out,
            SIZE=clip.image_size,
            BLOCK=1 << (clip.image_size - 1).bit_length(),
            SUPPORT=_SUPPORT[clip.interpolation],
            PAD=self._manifest.detector.pad_value,
            num_warps=4,
        )
