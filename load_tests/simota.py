"""YOLOX's loss (SimOTA assignment) for a whole batch at once, without a wait for the device in between."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

_STRIDES = (8, 16, 32)
#: The numbers of YOLOX. Cells this many strides about a box's middle may find it; others at a cost of _FAR.
_CENTRE_STRIDES, _FAR = 1.5, 1e6
_CANDIDATES = 10  # best overlaps that tell how many cells shall find a box
_IOU_COST, _BOX_WEIGHT = 3.0, 5.0
_NEVER = 1e9


class Losses(NamedTuple):
    """Scalars; `total` is their sum."""

    box: Tensor
    objectness: Tensor
    classes: Tensor

    @property
    def total(self) -> Tensor:
        return self.box + self.objectness + self.classes


def cell_grid(side: int) -> Tensor:
    """float32 [cells, 3]: column, row and stride of each cell, the fine level first, row by row."""
    levels = []
    for stride in _STRIDES:
        steps = torch.arange(side // stride, dtype=torch.float32)
        x, y = torch.meshgrid(steps, steps, indexing="xy")
        levels.append(torch.stack([x, y, torch.full_like(x, stride)], -1).reshape(-1, 3))
    return torch.cat(levels)


def decode(answers: Tensor, cells: Tensor) -> Tensor:
    """[n, cells, 5 + classes] with offsets (centre, log size, in strides) -> the same with boxes xyxy, pixels."""
    strides = cells[:, 2:]
    centre = (answers[..., :2] + cells[:, :2]) * strides
    half = answers[..., 2:4].exp() * strides / 2
    return torch.cat([centre - half, centre + half, answers[..., 4:]], -1)


def simota_loss(answers: Tensor, cells: Tensor, boxes: Tensor, classes: Tensor) -> Losses:
    """`answers`: float32 [n, cells, 5 + C], offsets and probabilities. `boxes`: float32 [n, m, 4], xyxy pixels.

    `classes`: int64 [n, m], -1 where there is no box.
    """
    decoded = decode(answers, cells)
    owner, overlap = assign(decoded.detach(), cells, boxes, classes)
    chosen = owner >= 0
    count = chosen.sum().clamp(min=1)
    index = owner.clamp(min=0)
    iou = _paired_iou(decoded[..., :4], boxes.gather(1, index[..., None].expand(-1, -1, 4)))
    box = ((1 - iou.square()) * chosen).sum() / count
    objectness = F.binary_cross_entropy(answers[..., 4], chosen.float(), reduction="sum") / count
    kinds = F.one_hot(classes.clamp(min=0).gather(1, index), answers.shape[2] - 5) * overlap[..., None]
    by_class = F.binary_cross_entropy(answers[..., 5:], kinds, reduction="none")
    return Losses(_BOX_WEIGHT * box, objectness, (by_class * chosen[..., None]).sum() / count)


def assign(decoded: Tensor, cells: Tensor, boxes: Tensor, classes: Tensor) -> tuple[Tensor, Tensor]:
    """Which box each cell shall find, int64 [n, cells], -1 = none, and how much it overlaps it now, float32.

    `decoded`: detached, for no gradient shall flow through the choice.
    """
    there = (classes >= 0)[..., None]  # [n, m, 1]
    strides = cells[:, 2]
    points = (cells[:, :2] + 0.5) * strides[:, None]
    middle = (boxes[..., :2] + boxes[..., 2:]) / 2
    away = (points[None, None] - middle[:, :, None]).abs().amax(-1)  # [n, m, cells]
    near = (away < _CENTRE_STRIDES * strides) & there
    candidate = near.any(1, keepdim=True) & there
    overlap = _iou(boxes, decoded[..., :4]) * candidate
    cost = _class_cost(decoded, classes) - _IOU_COST * (overlap + 1e-8).log() + _FAR * ~near
    cost = cost.masked_fill(~candidate, _NEVER)
    wanted = overlap.topk(_CANDIDATES, -1).values.sum(-1).int().clamp(min=1)
    cheapest = cost.topk(_CANDIDATES, -1, largest=False).indices
    taken = (torch.arange(_CANDIDATES, device=cells.device) < wanted[..., None]) & there
    matching = torch.zeros_like(candidate).scatter_(2, cheapest, taken) & candidate
    disputed = matching.sum(1, keepdim=True) > 1
    winner = torch.zeros_like(matching).scatter_(1, cost.argmin(1, keepdim=True), True)
    matching = torch.where(disputed, winner, matching)
    owner = matching.float().argmax(1)
    best = overlap.gather(1, owner[:, None])[:, 0]
    return owner.masked_fill(~matching.any(1), -1), best


def _class_cost(decoded: Tensor, classes: Tensor) -> Tensor:
    """Cross entropy of the classes of each cell, weighed with its objectness, against each box: [n, m, cells]."""
    likely = (decoded[..., 5:] * decoded[..., 4:5]).sqrt()
    right, wrong = (-p.log().clamp(min=-100) for p in (likely, 1 - likely))
    nothing = wrong.sum(-1)[:, None]
    instead = (right - wrong).transpose(1, 2)  # [n, C, cells]
    return nothing + instead.gather(1, classes.clamp(min=0)[..., None].expand(-1, -1, likely.shape[1]))


def _iou(boxes: Tensor, found: Tensor) -> Tensor:
    """[n, m, 4] and [n, cells, 4] -> [n, m, cells]."""
    return _paired_iou(boxes[:, :, None], found[:, None])


def _paired_iou(one: Tensor, other: Tensor) -> Tensor:
    """Of boxes xyxy in the last axis."""
    inside = (torch.minimum(one[..., 2:], other[..., 2:]) - torch.maximum(one[..., :2], other[..., :2])).clamp(min=0)
    overlap = inside.prod(-1)
    areas = (one[..., 2:] - one[..., :2]).prod(-1) + (other[..., 2:] - other[..., :2]).prod(-1)
    return overlap / (areas - overlap + 1e-16)
