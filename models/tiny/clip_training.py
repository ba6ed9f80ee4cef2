"""Trains the two CLIP towers: contrastive, with every true caption of a picture in the batch as a positive."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.tiny.captions import ANY, NOTHING, RELATIONS
from models.tiny.clip import IMAGE_SIZE, ImageTower, TextTower
from models.tiny.feed import SampleFeed
from models.tiny.samples import CAPTIONS
from models.tiny.schedule import Schedule

_MAX_SCALE = 60.0  # a sharper softmax overfits the few captions that are ambiguous


def train_clip(schedule: Schedule, device: torch.device, workers: int, seed: int) -> tuple[ImageTower, TextTower]:
    """Trains for the schedule's time and returns both towers in evaluation mode."""
    torch.manual_seed(seed)
    big = device.type != "cpu"
    batch, capacity = (1024, 150_000) if big else (128, 20_000)
    image, text = ImageTower().to(device), TextTower().to(device)
    scale = nn.Parameter(torch.tensor(math.log(10.0), device=device))
    parameters = [*image.parameters(), *text.parameters(), scale]
    optimizer = torch.optim.AdamW(parameters, lr=1.5e-3 if big else 1e-3, weight_decay=0.05, betas=(0.9, 0.98))
    with SampleFeed("clip", IMAGE_SIZE, capacity, workers, seed, device) as feed:
        for step in schedule.steps(optimizer):
            images, tokens, claims, objects, centres, visible = feed.sample(batch)
            spoken = torch.randint(CAPTIONS, (batch,), device=device)
            rows = torch.arange(batch, device=device)
            with torch.autocast(device.type, torch.bfloat16, enabled=big):
                seen = image(augment(images))
                said = text(tokens[rows, spoken].long())
            true, possible = matches(claims[rows, spoken], objects, centres, visible)
            logits = scale.exp().clamp(max=_MAX_SCALE) * said @ seen.T
            loss = contrastive_loss(logits, true, possible)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            if schedule.is_report(step):
                best = logits.argmax(1)
                right = true[rows, best].float().mean()
                figures = {"loss": loss.item(), "accuracy": right.item(), "scale": scale.exp().item()}
                schedule.report(step, drawn=feed.drawn, **figures)
    return image.eval(), text.eval()


def augment(images: Tensor) -> Tensor:
    """uint8 [N, 128, 128, 3] -> float32 [N, 3, 128, 128] in 0..1, with a little other light in each picture."""
    count = len(images)
    values = images.permute(0, 3, 1, 2).float() / 255
    contrast = torch.empty(count, 1, 1, 1, device=images.device).uniform_(0.88, 1.12)
    tint = torch.empty(count, 3, 1, 1, device=images.device).normal_(0, 0.015)
    brightness = torch.empty(count, 1, 1, 1, device=images.device).uniform_(-0.04, 0.04)
    return (values * contrast + tint + brightness).clamp(0, 1)


def contrastive_loss(logits: Tensor, true: Tensor, possible: Tensor) -> Tensor:
    """Cross entropy in both directions over `logits` [captions, images].

    Targets are spread evenly over all pairs that are `true`. A pair that is only `possible` counts for neither side.
    """
    logits = logits.masked_fill(possible & ~true, -1e4)
    positive = true.float()
    to_image = positive / positive.sum(1, keepdim=True).clamp(min=1)
    to_text = positive / positive.sum(0, keepdim=True).clamp(min=1)
    return (
        -(to_image * F.log_softmax(logits, 1)).sum(1).mean() / 2
        - (to_text * F.log_softmax(logits, 0)).sum(0).mean() / 2
    )


def matches(claims: Tensor, objects: Tensor, centres: Tensor, visible: Tensor) -> tuple[Tensor, Tensor]:
    """Which captions are true of which pictures, and which could be: two bool [captions, pictures].

    `claims`: int8 [C, 7] (`Caption.numbers`); `objects`: int8 [I, M, 3], -1 = none; `centres`: float [I, M, 2];
    `visible`: bool [I, M]. A pattern that cannot be seen makes a claim about it possible, not true. So does a
    relation that holds on an axis that does not lead.
    """
    true, possible = _claim_matches(claims[:, :3], objects, visible)
    single_true, single_possible = true.any(-1), possible.any(-1)
    pairs = (claims[:, 3] != NOTHING).nonzero()[:, 0]
    if not len(pairs):
        return single_true, single_possible
    second_true, second_possible = _claim_matches(claims[pairs, 3:6], objects, visible)
    holds, could_hold = _relations(centres)
    asked = claims[pairs, 6].long()
    other = ~torch.eye(objects.shape[1], dtype=torch.bool, device=objects.device)
    pair_true = true[pairs][..., :, None] & second_true[..., None, :] & holds[asked] & other
    pair_possible = possible[pairs][..., :, None] & second_possible[..., None, :] & could_hold[asked] & other
    single_true[pairs] = pair_true.flatten(2).any(-1)
    single_possible[pairs] = pair_possible.flatten(2).any(-1)
    return single_true, single_possible


def _claim_matches(claims: Tensor, objects: Tensor, visible: Tensor) -> tuple[Tensor, Tensor]:
    """One claim against each object: two bool [C, I, M]."""
    claims = claims[:, None, None, :]
    equal = (claims == ANY) | (claims == objects[None])
    named = equal[..., 0] & equal[..., 1] & (objects[None, ..., 0] >= 0)
    true = named & equal[..., 2] & (visible[None] | (claims[..., 2] == ANY))
    return true, true | (named & ~visible[None])


def _relations(centres: Tensor) -> tuple[Tensor, Tensor]:
    """How the first object lies to the second: two bool [relations, I, M, M], surely and possibly."""
    delta = centres[:, :, None] - centres[:, None]  # [I, first, second, xy]
    dx, dy = delta[..., 0], delta[..., 1]
    wide, tall = dx.abs() > 1.2 * dy.abs(), dy.abs() > 1.2 * dx.abs()
    always = torch.ones_like(wide)
    directions = {"": always, "left of": dx < 0, "right of": dx > 0, "above": dy < 0, "below": dy > 0}
    leading = {"": always, "left of": wide, "right of": wide, "above": tall, "below": tall}
    could = torch.stack([directions[name] for name in RELATIONS])
    return could & torch.stack([leading[name] for name in RELATIONS]), could
