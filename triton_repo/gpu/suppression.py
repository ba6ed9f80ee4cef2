"""Greedy non-maximum suppression of a whole batch with results of fixed shape, which a CUDA graph can hold."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


@torch.library.custom_op("sightlog::suppress", mutates_args=())
def suppress(boxes: Tensor, scores: Tensor, classes: Tensor, iou_threshold: float, score_threshold: float) -> Tensor:
    """The scores of candidates that survive, 0 for all others.

    boxes: float32 [n, c, 4], xyxy      scores: float32 [n, c], best first      classes: int64 [n, c]
    -> float32 [n, c]. A candidate is kept if it scores more than the threshold and no kept one of its class and picture
    before it overlaps it by more than the IoU threshold.
    """
    kept = torch.zeros_like(scores)
    for picture in range(len(boxes)):
        found: list[int] = []
        for row in range(int((scores[picture] > score_threshold).sum())):
            rivals = [other for other in found if classes[picture, other] == classes[picture, row]]
            if not (_overlap(boxes[picture, row], boxes[picture, rivals]) > iou_threshold).any():
                found.append(row)
        kept[picture, found] = scores[picture, found]
    return kept


def _overlap(box: Tensor, others: Tensor) -> Tensor:
    """IoU of [4] with [n, 4] -> [n]."""
    shared = (torch.minimum(box[2:], others[:, 2:]) - torch.maximum(box[:2], others[:, :2])).clamp(min=0).prod(1)
    union = (box[2:] - box[:2]).prod() + (others[:, 2:] - others[:, :2]).prod(1) - shared
    return torch.where(shared > 0, shared / union, torch.zeros_like(shared))


@suppress.register_fake
def _(boxes: Tensor, scores: Tensor, classes: Tensor, iou_threshold: float, score_threshold: float) -> Tensor:
    return torch.empty_like(scores)


@suppress.register_kernel("cuda")
def _on_gpu(boxes: Tensor, scores: Tensor, classes: Tensor, iou_threshold: float, score_threshold: float) -> Tensor:
    from triton_repo.gpu.kernels import suppress_kernel

    count, candidates = scores.shape
    kept = torch.empty_like(scores)
    launch: Any = suppress_kernel[(count,)]
    launch(
        boxes.contiguous(),
        scores.contiguous(),
        classes.to(torch.int32).contiguous(),
        kept,
        candidates,
        iou_threshold,
        score_threshold,
        BLOCK=1 << (candidates - 1).bit_length(),
        num_warps=8,
    )
    return kept
