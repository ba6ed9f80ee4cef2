"""Trains YOLOX-S in two minutes on one GPU to find the objects of generated scenes: true boxes for the GPU benchmark.

    python -m load_tests.detector_training --out yolox_s.pth --recall recall.json

Needs torch and pixeltable-yolox. Scenes are drawn by other processes meanwhile.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchvision.ops import batched_nms, box_iou
from yolox.config import YoloxConfig

from load_tests.detector_samples import INPUT_SIDE, PAD_VALUE, SharedSamples
from load_tests.gpu_pictures import make_pictures
from load_tests.simota import cell_grid, decode, simota_loss
from models.photos import Photo
from models.preprocessing import decode_upright, letterbox, plan_letterbox
from models.scenes import SHAPES

SIZE = "yolox-s"
_RATE, _FINAL_FACTOR, _WARM_UP_STEPS = 1.5e-3, 0.02, 100
_WEIGHT_DECAY = 0.02
_GRADIENT_NORM = 10.0
_EMA_DECAY, _EMA_RAMP = 0.998, 200.0  # of how many steps the mean is; of fewer at the start
_REPORT_EVERY_S = 8.0
_AHEAD = 3  # batches on their way to the device
_LIGHT, _CONTRAST = 12.0, 0.12  # grey levels up and down, part of the value
_EVALUATED, _EVALUATION_SEED = 64, 909
_SCORE, _SUPPRESSION_IOU = 0.25, 0.5  # as of imported detectors
_MATCH_IOU = 0.5

Write = Callable[[str], None]


@dataclass(frozen=True)
class Schedule:
    """Until when, by the clock (seconds after the start, drawing included) or by steps; and of what."""

    seconds: float = 110.0
    steps: int | None = None
    batch: int = 32
    samples: int = 12_000
    processes: int = 16


@dataclass(frozen=True)
class Found:
    """Found boxes against drawn ones of the same class, one to one, at an IoU of 0.5."""

    recall: float
    precision: float
    mean_iou: float  #: of those that match
    mean_boxes: float  #: a picture
    mean_objects: float
    pictures: int


def train(schedule: Schedule, device: torch.device, *, size: str = SIZE, seed: int = 1, write: Write = print) -> Any:
    """The module with the mean of its latest weights, in evaluation mode, boxes not decoded.

    It takes pictures as released YOLOX weights do: float32 [n, 3, side, side], BGR, 0..255.
    """
    began = reported = time.monotonic()
    with SharedSamples(schedule.samples, schedule.processes, seed) as samples:
        torch.manual_seed(seed)
        torch.backends.cudnn.benchmark = True
        torch.set_float32_matmul_precision("high")
        module = new_module(size).to(device, memory_format=torch.channels_last)
        mean = deepcopy(module).eval().requires_grad_(False)
        optimizer = torch.optim.AdamW(
            module.parameters(), lr=_RATE, weight_decay=_WEIGHT_DECAY, fused=device.type == "cuda"
        )
        cells = cell_grid(INPUT_SIDE).to(device)
        samples.wait(4 * schedule.batch)
        for step, (images, boxes, classes) in enumerate(_batches(samples, schedule.batch, device, seed), 1):
            passed = time.monotonic() - began
            done = (step - 1) / schedule.steps if schedule.steps else passed / schedule.seconds
            if done >= 1:
                break
            optimizer.param_groups[0]["lr"] = _rate(step, done)
            losses = simota_loss(_answers(module, images), cells, boxes, classes)
            optimizer.zero_grad()
            losses.total.backward()
            torch.nn.utils.clip_grad_norm_(module.parameters(), _GRADIENT_NORM)
            optimizer.step()
            _average(mean, module, step)
            if step == 1 or time.monotonic() - reported > _REPORT_EVERY_S:
                reported = time.monotonic()
                shown = "  ".join(f"{name} {value.item():.3f}" for name, value in losses._asdict().items())
                write(f"{passed:5.0f} s  step {step}  {shown}  drawn {samples.drawn}")
    return mean


def new_module(size: str) -> Any:
    """Fresh weights for our shapes. Its head gives probabilities, also while it is trained."""
    config = YoloxConfig.get_named_config(size)
    assert config is not None, size
    config.num_classes = len(SHAPES)
    module = config.get_model()
    module.head.training = False  # only its own flag: else it would compute a loss picture by picture
    module.head.decode_in_inference = False
    return module


def save_checkpoint(module: Any, path: Path) -> None:
    """As YOLOX's trainer saves, in half precision: `models.detectors.yolox.load_yolox` reads it."""
    weights = {name: v.cpu().half() if v.is_floating_point() else v.cpu() for name, v in module.state_dict().items()}
    torch.save({"model": weights}, path)


def evaluate(module: Any, photos: Sequence[Photo], device: torch.device) -> Found:
    """How well it finds what was drawn, from the files on."""
    cells = cell_grid(INPUT_SIDE).to(device)
    overlaps: list[float] = []
    boxes = 0
    for photo in photos:
        picture = decode_upright(photo.jpeg).pixels
        view = letterbox(picture, INPUT_SIDE, PAD_VALUE, centred=False)
        with torch.no_grad():
            image = _pixels(torch.tensor(view[None]).to(device))
            found, classes = _detections(decode(_answers(module, image), cells)[0])
        drawn = np.array([thing.box for thing in photo.objects], np.float32).reshape(-1, 4)
        truth = torch.from_numpy(plan_letterbox(*picture.size, INPUT_SIDE, centred=False).to_canvas(drawn))
        kinds = torch.tensor([SHAPES.index(thing.shape) for thing in photo.objects])
        overlaps += _matches(found.cpu(), classes.cpu(), truth, kinds)
        boxes += len(found)
    objects = sum(len(photo.objects) for photo in photos)
    return Found(
        recall=round(len(overlaps) / max(objects, 1), 4),
        precision=round(len(overlaps) / max(boxes, 1), 4),
        mean_iou=round(sum(overlaps) / max(len(overlaps), 1), 4),
        mean_boxes=round(boxes / len(photos), 2),
        mean_objects=round(objects / len(photos), 2),
        pictures=len(photos),
    )


def _rate(step: int, done: float) -> float:
    cosine = 0.5 * (1 + math.cos(math.pi * done)) * (1 - _FINAL_FACTOR) + _FINAL_FACTOR
    return _RATE * min(1.0, step / _WARM_UP_STEPS) * cosine


def _answers(module: Any, images: Tensor) -> Tensor:
    """float32 [n, cells, 5 + classes]. The head computes in float32: half precision is too coarse for its sigmoids."""
    with torch.autocast(images.device.type, torch.bfloat16, enabled=images.device.type == "cuda"):
        levels = module.backbone(images)
    answers: Tensor = module.head([level.float() for level in levels])
    return answers


def _average(mean: Any, module: Any, step: int) -> None:
    weight = 1 - _EMA_DECAY * (1 - math.exp(-step / _EMA_RAMP))
    old, new = ([v for v in m.state_dict().values() if v.is_floating_point()] for m in (mean, module))
    with torch.no_grad():
        torch._foreach_lerp_(old, new, weight)


def _batches(
    samples: SharedSamples, batch: int, device: torch.device, seed: int
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Random samples of those drawn so far, in other light, half of the batches mirrored; without end."""
    rng = np.random.default_rng(seed)
    fields = [torch.from_numpy(field) for field in samples.all]

    def load(rows: Tensor) -> list[Tensor]:
        return [field.index_select(0, rows).to(device) for field in fields]

    with ThreadPoolExecutor(2) as threads:
        coming: deque[Any] = deque()
        while True:
            while len(coming) < _AHEAD:
                coming.append(threads.submit(load, torch.from_numpy(rng.integers(samples.drawn, size=batch))))
            images, boxes, classes = coming.popleft().result()
            pixels = _pixels(images)
            light = torch.empty(2, batch, 1, 1, 1, device=device).uniform_(-1, 1)
            pixels = (pixels * (1 + _CONTRAST * light[0]) + _LIGHT * light[1]).clamp(0, 255)
            if rng.random() < 0.5:
                pixels = pixels.flip(3)
                left, top, right, bottom = boxes.unbind(-1)
                boxes = torch.stack([INPUT_SIDE - right, top, INPUT_SIDE - left, bottom], -1)
            yield pixels.contiguous(memory_format=torch.channels_last), boxes, classes


def _pixels(images: Tensor) -> Tensor:
    """uint8 [n, side, side, 3], RGB -> float32 [n, 3, side, side], BGR."""
    return images.permute(0, 3, 1, 2).flip(1).float()


def _detections(answers: Tensor) -> tuple[Tensor, Tensor]:
    """[cells, 5 + classes] -> boxes [n, 4] and classes [n], the best first."""
    best, classes = answers[:, 5:].max(1)
    scores = best * answers[:, 4]
    likely = scores > _SCORE
    kept = batched_nms(answers[likely, :4], scores[likely], classes[likely], _SUPPRESSION_IOU)
    return answers[likely][kept, :4], classes[likely][kept]


def _matches(found: Tensor, classes: Tensor, truth: Tensor, kinds: Tensor) -> list[float]:
    """Overlaps of the pairs; each found box, the best first, takes the drawn one that it overlaps most."""
    overlaps = []
    if len(truth):
        ious = box_iou(found, truth) * (classes[:, None] == kinds[None])
        for row in ious:
            overlap, taken = row.max(0)
            if overlap >= _MATCH_IOU:
                overlaps.append(float(overlap))
                ious[:, taken] = 0
    return overlaps


def main() -> None:
    """The command line."""
    default = Schedule()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="checkpoint to write")
    parser.add_argument("--recall", type=Path, help="JSON file for what it finds in unseen pictures")
    parser.add_argument("--seconds", type=float, default=default.seconds, help="until training ends, drawing included")
    parser.add_argument("--steps", type=int, help="instead of --seconds")
    parser.add_argument("--batch", type=int, default=default.batch)
    parser.add_argument("--samples", type=int, default=default.samples, help="different scenes")
    parser.add_argument("--processes", type=int, default=os.cpu_count(), help="that draw scenes")
    parser.add_argument("--evaluated", type=int, default=_EVALUATED, help="unseen pictures")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    said = parser.parse_args()
    device = torch.device(said.device)
    began = time.monotonic()
    schedule = Schedule(said.seconds, said.steps, said.batch, said.samples, said.processes)
    # Forked, which CUDA must not have seen yet: processes that begin afresh would load torch first.
    unseen = make_pictures(said.evaluated, seed=_EVALUATION_SEED, processes=said.processes, start="fork")
    module = train(schedule, device, write=lambda line: print(line, flush=True))
    save_checkpoint(module, said.out)
    found = evaluate(module, unseen, device)
    print(f"{time.monotonic() - began:5.0f} s  {found}", flush=True)
    if said.recall:
        said.recall.write_text(json.dumps(asdict(found)) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
