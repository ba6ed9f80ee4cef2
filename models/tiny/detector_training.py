"""Trains the tiny detector on letterboxed scenes."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models.tiny.detector import INPUT_SIZE, Detector, cell_centres, detection_loss
from models.tiny.feed import SampleFeed
from models.tiny.schedule import Schedule

_BOX_WEIGHT = 2.0


def train_detector(schedule: Schedule, device: torch.device, workers: int, seed: int) -> Detector:
    """Trains for the schedule's time and returns the detector in evaluation mode."""
    torch.manual_seed(seed)
    big = device.type != "cpu"
    batch, capacity = (64, 12_000) if big else (8, 800)
    model = Detector()
    model.to(device, memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.02)
    centres = cell_centres(INPUT_SIZE, INPUT_SIZE).to(device)
    with SampleFeed("detector", INPUT_SIZE, capacity, workers, seed, device) as feed:
        for step in schedule.steps(optimizer):
            images, boxes, classes = feed.sample(batch)
            pixels, boxes = augment(images, boxes)
            with torch.autocast(device.type, torch.bfloat16, enabled=big):
                logits, edges = model.raw(pixels)
            class_loss, box_loss, iou = detection_loss(logits, edges, boxes, classes, centres)
            optimizer.zero_grad()
            (class_loss + _BOX_WEIGHT * box_loss).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 10.0)
            optimizer.step()
            if schedule.is_report(step):
                figures = {"class_loss": class_loss.item(), "box_loss": box_loss.item(), "iou": iou.item()}
                schedule.report(step, drawn=feed.drawn, **figures)
    model.eval()
    return model


def augment(images: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor]:
    """uint8 [N, 640, 640, 3] -> float32 [N, 3, 640, 640] in 0..1 in other light; half of the batches mirrored."""
    count, width = len(images), images.shape[2]
    values = images.permute(0, 3, 1, 2).float() / 255
    contrast = torch.empty(count, 1, 1, 1, device=images.device).uniform_(0.88, 1.12)
    brightness = torch.empty(count, 1, 1, 1, device=images.device).uniform_(-0.04, 0.04)
    values = (values * contrast + brightness).clamp(0, 1)
    if torch.rand(()) < 0.5:
        values = values.flip(3)
        boxes = torch.stack([width - boxes[..., 2], boxes[..., 1], width - boxes[..., 0], boxes[..., 3]], -1)
    return values.contiguous(memory_format=torch.channels_last), boxes
