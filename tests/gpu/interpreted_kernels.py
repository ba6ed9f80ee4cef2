"""Launches of the GPU kernels for tests: on a GPU, or by Triton's interpreter in a process of its own.

The interpreter is chosen when `triton` is imported, for the whole process: `in_interpreter` is what a worker starts
with.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from models.manifest import ModelManifest

Array = npt.NDArray[Any]


def in_interpreter() -> None:
    """Run before anything imports triton."""
    os.environ["TRITON_INTERPRET"] = "1"


def crops(
    device: str, manifest: ModelManifest, pictures: Sequence[Array], boxes: Sequence[Array]
) -> npt.NDArray[np.uint8]:
    """All boxes float32 [n, 4], in pixels of their picture, cut out: uint8 [sum of n, S, S, 3]."""
    import torch

    from triton_repo.gpu.boxes import squares_of
    from triton_repo.gpu.crops import Cropper
    from triton_repo.steps import Detections

    sizes = np.array([(picture.shape[1], picture.shape[0]) for picture in pictures])
    found = [Detections(one, np.zeros(len(one), np.float32), np.zeros(len(one), np.int32)) for one in boxes]
    side, count = manifest.clip.image_size, sum(map(len, boxes))
    out = torch.full((count + 1, side, side, 3), 77, dtype=torch.uint8, device=device)
    originals = [torch.from_numpy(picture).to(device) for picture in pictures]
    cropper = Cropper(manifest, torch.device(device), len(pictures), count)
    cropper.launch(originals, found, squares_of(manifest, found, sizes, sizes.astype(np.int32)), out[:count])
    assert (out[count:] == 77).all(), "it wrote beyond its crops"
    return np.asarray(out[:count].cpu().numpy())


def suppressed(device: str, boxes: Array, scores: Array, classes: Array, iou: float, least: float) -> Array:
    """As `suppression.suppress`."""
    import torch

    from triton_repo.gpu.suppression import _on_gpu

    tensors = (torch.from_numpy(array).to(device) for array in (boxes, scores, classes))
    return np.asarray(_on_gpu(*tensors, iou, least).cpu().numpy())


def convolved(
    device: str, x: Array, weight: Array, bias: Array, kernel: int, stride: int, padding: int, *, gelu: bool
) -> tuple[Array, bool]:
    """As `convolutions.depthwise`, and whether the result's channels lie together."""
    import torch

    from triton_repo.gpu.convolutions import _depthwise_on_gpu

    tensors = (torch.from_numpy(array).to(device) for array in (x, weight, bias))
    result = _depthwise_on_gpu(*tensors, kernel, stride, padding, gelu)
    return result.cpu().numpy(), result.is_contiguous(memory_format=torch.channels_last)
