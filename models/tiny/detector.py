"""The tiny detector: anchor-free, decoupled heads, one level of stride 16, and its loss."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.scenes import SHAPES

INPUT_SIZE = 640
STRIDE = 16


class SeparableBlock(nn.Module):
    """Residual depthwise 5x5 and pointwise convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            *_convolution(channels, channels, 5, groups=channels), *_convolution(channels, channels, 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


class Detector(nn.Module):
    """images float32 [N, 3, H, W], RGB in 0..1 -> boxes float32 [N, A, 4] xyxy pixels, scores float32 [N, A, 6].

    A = H/16 * W/16 cells.
    """

    def __init__(self, widths: tuple[int, int, int] = (28, 56, 104)) -> None:
        super().__init__()
        first, second, third = widths
        self.body = nn.Sequential(
            *_convolution(3, first, 6, stride=4, padding=1),
            SeparableBlock(first),
            *_convolution(first, second, 3, stride=2),
            SeparableBlock(second),
            SeparableBlock(second),
            *_convolution(second, third, 3, stride=2),
            *(SeparableBlock(third) for _ in range(5)),
        )
        self.classes = nn.Sequential(SeparableBlock(third), nn.Conv2d(third, len(SHAPES), 1))
        self.edges = nn.Sequential(SeparableBlock(third), nn.Conv2d(third, 4, 1))
        bias = self.classes[1].bias
        assert isinstance(bias, Tensor)
        nn.init.constant_(bias, -4.6)  # 1 % at the start: else thousands of empty cells drown the first steps

    def raw(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """logits [N, A, 6] and distances to left, top, right, bottom [N, A, 4] in pixels."""
        features = self.body(images)
        logits = self.classes(features).flatten(2).transpose(1, 2).float()
        edges = self.edges(features).flatten(2).transpose(1, 2).float()
        return logits, F.softplus(edges) * (2 * STRIDE)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        logits, edges = self.raw(images)
        centres = cell_centres(images.shape[2], images.shape[3]).to(edges)
        return torch.cat([centres - edges[..., :2], centres + edges[..., 2:]], -1), logits.sigmoid()


def cell_centres(height: int, width: int) -> Tensor:
    """float32 [A, 2]: x, y of each cell's centre in input pixels, row by row."""
    x = (torch.arange(width // STRIDE) + 0.5) * STRIDE
    y = (torch.arange(height // STRIDE) + 0.5) * STRIDE
    return torch.stack(torch.meshgrid(x, y, indexing="xy"), -1).reshape(-1, 2).float()


def detection_loss(
    logits: Tensor, edges: Tensor, boxes: Tensor, classes: Tensor, centres: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Focal loss on classes, GIoU loss on boxes, and the mean IoU of positive cells.

    `boxes`: float32 [N, M, 4] xyxy pixels; `classes`: int64 [N, M], -1 where there is no object;
    `centres`: float32 [A, 2]. A cell is positive for an object when its centre lies in the box and within
    a cell of the box's centre.
    """
    middle = (boxes[..., :2] + boxes[..., 2:]) / 2
    offset = centres[None, None] - middle[:, :, None]  # [N, M, A, 2]
    inside = ((centres > boxes[:, :, None, :2]) & (centres < boxes[:, :, None, 2:])).all(-1)
    positive = inside & (offset.abs().amax(-1) < STRIDE * 1.01) & (classes >= 0)[..., None]
    distance = offset.square().sum(-1).masked_fill(~positive, torch.inf)
    nearest, owner = distance.min(1)  # [N, A]
    chosen = nearest.isfinite()
    target = F.one_hot(classes.clamp(min=0).gather(1, owner), logits.shape[-1]).float() * chosen[..., None]
    probability = logits.sigmoid()
    cross_entropy = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    right = probability * target + (1 - probability) * (1 - target)
    count = chosen.sum().clamp(min=1)
    class_loss = ((1 - right).square() * cross_entropy).sum() / count

    goal = boxes.gather(1, owner[..., None].expand(-1, -1, 4))[chosen]
    cells = centres.expand(len(boxes), -1, -1)[chosen]
    goal = torch.cat([cells - goal[:, :2], goal[:, 2:] - cells], -1)
    found = edges[chosen]
    overlap = (torch.minimum(found, goal)[:, :2] + torch.minimum(found, goal)[:, 2:]).prod(1)
    hull = (torch.maximum(found, goal)[:, :2] + torch.maximum(found, goal)[:, 2:]).prod(1)
    areas = [(edge[:, :2] + edge[:, 2:]).prod(1) for edge in (found, goal)]
    union = areas[0] + areas[1] - overlap
    iou = overlap / union.clamp(min=1e-6)
    box_loss = (1 - iou + (hull - union) / hull.clamp(min=1e-6)).sum() / count
    return class_loss, box_loss, iou.sum() / count


def _convolution(
    before: int, after: int, kernel: int, stride: int = 1, groups: int = 1, padding: int | None = None
) -> list[nn.Module]:
    return [
        nn.Conv2d(
            before,
            after,
            kernel,
            stride,
            kernel // 2 if padding is None else padding,
            groups=groups,
            bias=False,
        ),
        nn.BatchNorm2d(after),
        nn.ReLU(inplace=True),
    ]
