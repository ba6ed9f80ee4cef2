"""The detector of the GPU benchmark is trained with YOLOX's own loss, and its checkpoint is one that exports."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from yolox.config import YoloxConfig

from load_tests import detector_training
from load_tests.detector_samples import INPUT_SIDE
from load_tests.detector_training import Schedule, evaluate, new_module, save_checkpoint, train
from load_tests.gpu_pictures import SMALL, make_pictures
from load_tests.simota import cell_grid, decode, simota_loss
from models.detectors.yolox import load_yolox
from models.scenes import SHAPES

SIDE = 320
#: How many objects each picture has.
COUNTS = (5, 0, 8)


def truth() -> tuple[torch.Tensor, torch.Tensor]:
    rng = np.random.default_rng(0)
    boxes, classes = np.zeros((len(COUNTS), 8, 4), np.float32), np.full((len(COUNTS), 8), -1)
    for picture, count in enumerate(COUNTS):
        for row in range(count):
            half = rng.uniform(6, 75, 2)
            middle = rng.uniform(half, SIDE - half)
            boxes[picture, row] = (*(middle - half), *(middle + half))
            classes[picture, row] = rng.integers(len(SHAPES))
    boxes[2, 1] = boxes[2, 0] + 3  # one behind the other: cells have to choose
    return torch.from_numpy(boxes), torch.from_numpy(classes)


def knowing(boxes: torch.Tensor, blur: float) -> torch.Tensor:
    """Offsets as a head would give them that nearly knows the box whose middle is next to each cell."""
    cells = cell_grid(SIDE)
    points = (cells[:, :2] + 0.5) * cells[:, 2:]
    middle, size = (boxes[..., :2] + boxes[..., 2:]) / 2, boxes[..., 2:] - boxes[..., :2]
    nearest = (points[None, :, None] - middle[:, None]).square().sum(-1).argmin(-1)
    chosen = [values.gather(1, nearest[..., None].expand(-1, -1, 2)) for values in (middle, size.clamp(min=8))]
    raw = torch.cat([chosen[0] / cells[:, 2:] - cells[:, :2], (chosen[1] / cells[:, 2:]).log()], -1)
    return raw + torch.randn(raw.shape) * blur


@pytest.mark.parametrize("blur", [0.05, 0.1, 0.5])
def test_the_loss_of_a_batch_is_that_of_yolox_picture_by_picture(blur: float) -> None:
    torch.manual_seed(0)
    boxes, classes = truth()
    config = YoloxConfig.get_named_config("yolox-nano")
    assert config is not None
    config.num_classes = len(SHAPES)
    head = config.get_model().head
    cells = cell_grid(SIDE)
    raw = knowing(boxes, blur)
    logits = torch.randn(*raw.shape[:2], 1 + len(SHAPES))
    labels = torch.zeros(*classes.shape, 5)
    labels[..., 0] = classes.clamp(min=0)
    labels[..., 1:3], labels[..., 3:] = (boxes[..., :2] + boxes[..., 2:]) / 2, boxes[..., 2:] - boxes[..., :2]
    centre = torch.cat([(raw[..., :2] + cells[:, :2]), raw[..., 2:].exp()], -1) * cells[:, 2:]
    expected = head.get_losses(
        torch.zeros(1),
        [cells[None, :, 0]],
        [cells[None, :, 1]],
        [cells[None, :, 2]],
        labels * (classes >= 0)[..., None],
        torch.cat([centre, logits], -1),
        [],
        dtype=torch.float32,
    )
    found = simota_loss(torch.cat([raw, logits.sigmoid()], -1), cells, boxes, classes)

    assert expected[5] > 1.5 or blur == 0.5, "several cells find each box"
    for ours, theirs in zip((found.total, *found), expected, strict=False):
        assert float(ours) == pytest.approx(float(theirs), rel=1e-4)


def test_perfect_boxes_cost_nothing_and_decode_to_themselves() -> None:
    boxes, classes = truth()
    cells = cell_grid(SIDE)
    raw = knowing(boxes, 0.0)
    sure = torch.full((*raw.shape[:2], 1 + len(SHAPES)), 0.5)
    decoded = decode(torch.cat([raw, sure], -1), cells)
    sizes = boxes[..., 2:] - boxes[..., :2]

    assert float(simota_loss(torch.cat([raw, sure], -1), cells, boxes, classes).box) == pytest.approx(0, abs=1e-3)
    assert float((decoded[0, :, 2:4] - decoded[0, :, :2]).max()) == pytest.approx(float(sizes[0].max()), rel=1e-4)


def test_a_trained_checkpoint_loads_as_yolox_and_says_the_same(tmp_path: Path) -> None:
    schedule = Schedule(steps=2, batch=2, samples=8, processes=2)
    lines: list[str] = []
    module = train(schedule, torch.device("cpu"), size="yolox-nano", write=lines.append)
    save_checkpoint(module, tmp_path / "nano.pth")
    loaded, _side = load_yolox("yolox-nano", tmp_path / "nano.pth")
    loaded.head.decode_in_inference = False
    picture = torch.rand(1, 3, 64, 64) * 255

    assert "step 1" in lines[0]
    assert loaded.head.num_classes == len(SHAPES)
    assert (
        max(v.element_size() for v in torch.load(tmp_path / "nano.pth")["model"].values() if v.is_floating_point()) == 2
    )
    with torch.no_grad():
        assert torch.allclose(module(picture), loaded(picture), atol=0.05)


def test_an_untrained_detector_finds_nothing_and_a_knowing_one_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    photos = make_pictures(3, SMALL, processes=1)
    device = torch.device("cpu")
    untrained = evaluate(new_module("yolox-nano").eval(), photos, device)
    shown = iter(photos)

    def knows(module: object, images: torch.Tensor) -> torch.Tensor:
        cells = cell_grid(INPUT_SIDE)
        answers = torch.zeros(1, len(cells), 5 + len(SHAPES))
        for row, thing in enumerate(next(shown).objects):
            box = torch.tensor(thing.box)
            stride, place = cells[row, 2], cells[row, :2]
            answers[0, row, :2] = (box[:2] + box[2:]) / 2 / stride - place
            answers[0, row, 2:4] = ((box[2:] - box[:2]) / stride).log()
            answers[0, row, 4], answers[0, row, 5 + SHAPES.index(thing.shape)] = 1, 1
        return answers

    monkeypatch.setattr(detector_training, "_answers", knows)
    knowing_one = evaluate(None, photos, device)

    assert (untrained.recall, untrained.mean_boxes) == (0, 0)
    assert (knowing_one.recall, knowing_one.precision) == (1, 1)
    assert knowing_one.mean_iou == pytest.approx(1, abs=1e-3)
    assert knowing_one.mean_boxes == knowing_one.mean_objects > 0
