"""YOLOX in torch with its own postprocessing and our exported graph find the same boxes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any
from urllib.error import URLError

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import pytest
from click.testing import CliRunner, Result

torch = pytest.importorskip("torch")
pytest.importorskip("yolox")

from yolox.config import YoloxConfig  # noqa: E402
from yolox.models import YoloxModule  # noqa: E402
from yolox.utils import postprocess  # noqa: E402

from models.detectors import yolox  # noqa: E402
from models.detectors.class_names import coco_names  # noqa: E402
from models.detectors.cli import export_yolox  # noqa: E402
from models.detectors.errors import CheckpointError, ClassNamesError  # noqa: E402
from models.detectors.importing import ImportOptions, import_file  # noqa: E402
from models.store import ModelStore  # noqa: E402

SIDE = 256  # pixels; the default of the smallest, 416, takes three times as long
SCORE, IOU = 0.25, 0.3


@cache
def random_module(size: str, classes: int = 80) -> Any:
    """Seeded weights whose scores are spread, so that there are detections."""
    torch.manual_seed(1)
    config = YoloxConfig.get_named_config(size)
    config.num_classes = classes
    module = config.get_model().eval()
    norms = [layer for layer in module.modules() if isinstance(layer, torch.nn.BatchNorm2d)]
    with torch.no_grad():
        for norm in norms:  # one pass gives them statistics, without which activations die out
            norm.momentum = 1.0
            norm.train()
        noise = torch.rand(2, 3, SIDE, SIDE) * 255
        module(torch.cat([torch.from_numpy(pictures()), noise, noise / 255]))
        for level in range(3):
            head = module.head
            for layers, spread in ((head.obj_preds, 1.0), (head.cls_preds, 2.0), (head.reg_preds, 0.3)):
                layers[level].weight.normal_(0, spread / layers[level].weight.shape[1] ** 0.5)
                layers[level].bias.fill_(-1.5 if layers is head.obj_preds else 0.0)
            head.cls_preds[level].bias[:2] = 2.5  # and many of two classes in boxes of several cells, which overlap
            head.reg_preds[level].bias[2:] = 1.5
    return module.eval()


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As YOLOX's trainer saves it, with the scalar of NumPy that older ones left there."""
    file = tmp_path_factory.mktemp("checkpoint") / "best_ckpt.pth"
    state = {"start_epoch": 3, "model": random_module("yolox-nano").state_dict(), "best_ap": np.float64(0.1)}
    torch.save(state, file)
    return file


def pictures(count: int = 2) -> npt.NDArray[np.float32]:
    """Coarse coloured noise, 0..255."""
    coarse = np.random.default_rng(4).uniform(0, 255, (count, 3, 16, 16))
    return coarse.repeat(16, axis=2).repeat(16, axis=3).astype(np.float32)


def of_torch(module: Any, images: npt.NDArray[np.float32]) -> list[npt.NDArray[np.float32]]:
    """Rows (x1, y1, x2, y2, score, class) of each picture, best first, by YOLOX's own code."""
    with torch.no_grad():
        module.head.decode_in_inference = True
        rows = postprocess(module(torch.from_numpy(images)), module.head.num_classes, SCORE, IOU)
    results = []
    for found in rows:
        assert found is not None
        table = np.concatenate([found[:, :4], found[:, 4:5] * found[:, 5:6], found[:, 6:7]], 1)
        results.append(table[np.argsort(-table[:, 4], kind="stable")][:100].astype(np.float32))
    return results


def of_graph(folder: Path, images: npt.NDArray[np.float32]) -> list[npt.NDArray[np.float32]]:
    session = onnxruntime.InferenceSession(str(folder / "detector.onnx"), providers=["CPUExecutionProvider"])
    counts, boxes, scores, classes = session.run(None, {"images": images})
    return [
        np.concatenate([boxes[i, :n], scores[i, :n, None], classes[i, :n, None]], 1) for i, n in enumerate(counts[:, 0])
    ]


def assert_same(found: list[npt.NDArray[np.float32]], wanted: list[npt.NDArray[np.float32]]) -> None:
    """Every row has its like; those within rounding of the threshold, or of the last row of many, may be missing."""
    for one, other in zip(found, wanted, strict=True):
        assert 20 < len(other) <= 100
        for rows, likes in ((one, other), (other, one)):
            least = SCORE if len(rows) < 100 else rows[-1, 4]
            for row in rows[rows[:, 4] > least + 0.002]:
                near = np.abs(likes - row) < [0.1, 0.1, 0.1, 0.1, 0.002, 0.5]
                assert near.all(1).sum() == 1, row


def command(*arguments: object, store: Path) -> Result:
    return CliRunner().invoke(export_yolox, [str(one) for one in arguments], env={"SIGHTLOG_MODELS_DIR": str(store)})


def test_a_checkpoint_becomes_a_detector_that_finds_what_yolox_finds(checkpoint: Path, tmp_path: Path) -> None:
    result = command(
        "yolox-nano", "--checkpoint", checkpoint, "--input-size", SIDE, "--iou-threshold", IOU, store=tmp_path
    )
    assert result.exit_code == 0, result.output
    part = ModelStore(tmp_path).part("detector", "yolox-nano")
    assert_same(of_graph(part.folder, pictures()), of_torch(random_module("yolox-nano"), pictures()))
    assert asdict(part.spec) | {"classes": ()} == {
        "name": "yolox-nano",
        "onnx": "detector.onnx",
        "input_size": SIDE,
        "colour_order": "bgr",
        "value_range": (0.0, 255.0),
        "letterbox": "top-left",
        "pad_value": 114,
        "classes": (),
        "max_detections": 100,
        "score_threshold": SCORE,
    }
    assert part.spec.classes == coco_names()
    assert part.source["architecture"] == "yolox-nano"
    assert part.source["head"] == "yolox"
    assert {opset.version for opset in onnx.load(str(part.folder / "detector.onnx")).opset_import} == {17}


def test_the_undecoded_form_of_its_own_exporter_gives_the_same(tmp_path: Path) -> None:
    module, file, store = random_module("yolox-nano"), tmp_path / "raw.onnx", ModelStore(tmp_path / "store")
    wanted = of_torch(module, pictures())
    yolox.export_onnx(module, SIDE, file, decoded=False)
    import_file(file, store, "raw", ImportOptions(classes=coco_names(), iou_threshold=IOU))
    part = store.part("detector", "raw")
    assert part.source["head"] == "yolox-raw"
    assert_same(of_graph(part.folder, pictures()), wanted)


@pytest.mark.parametrize("dynamo", [False, True])
def test_exports_for_one_picture_take_any_number(tmp_path: Path, dynamo: bool) -> None:
    module, file, store = random_module("yolox-nano"), tmp_path / "one.onnx", ModelStore(tmp_path / "store")
    wanted = of_torch(module, pictures())
    opset = {} if dynamo else {"opset_version": 11}
    torch.onnx.export(module, (torch.zeros(1, 3, SIDE, SIDE),), str(file), dynamo=dynamo, **opset)
    import_file(file, store, "one", ImportOptions(classes=coco_names(), iou_threshold=IOU))
    assert_same(of_graph(store.part("detector", "one").folder, pictures()), wanted)


def test_own_classes_and_the_size_it_was_trained_with(tmp_path: Path) -> None:
    file, names = tmp_path / "own.pth", tmp_path / "names.txt"
    torch.save({"model": random_module("yolox-nano", 2).state_dict()}, file)
    refused = command("yolox-nano", "--checkpoint", file, store=tmp_path)
    assert isinstance(refused.exception, ClassNamesError)
    assert "2 classes" in str(refused.exception)
    names.write_text("cat\ndog\n")
    result = command("yolox-nano", "--checkpoint", file, "--classes", names, "--name", "pets", store=tmp_path)
    assert result.exit_code == 0, result.output
    spec = ModelStore(tmp_path).part("detector", "pets").spec
    assert (spec.classes, spec.input_size) == (("cat", "dog"), 416)


def cut_off(file: Path, good: Path) -> None:
    file.write_bytes(good.read_bytes()[:-2000])


def other_document(file: Path, good: Path) -> None:
    torch.save({"state_dict": torch.load(good, weights_only=False)["model"]}, file)


def with_code(file: Path, good: Path) -> None:
    torch.save({"model": torch.load(good, weights_only=False)["model"], "path": Path}, file)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda file, good: None, "cannot be read"),
        (lambda file, good: file.write_bytes(b"no checkpoint"), "no checkpoint, or is cut off"),
        (lambda file, good: file.write_bytes(b""), "no checkpoint, or is cut off"),
        (cut_off, "no checkpoint, or is cut off"),
        (with_code, "weights_only"),
        (other_document, '"model"'),
    ],
)
def test_a_bad_checkpoint_is_one_clear_error(
    tmp_path: Path, checkpoint: Path, spoil: Callable[[Path, Path], object], message: str
) -> None:
    file = tmp_path / "bad.pth"
    spoil(file, checkpoint)
    refused = command("yolox-nano", "--checkpoint", file, store=tmp_path)
    assert isinstance(refused.exception, CheckpointError)
    assert message in str(refused.exception)
    assert "\n" not in str(refused.exception)


def test_a_checkpoint_of_another_size_is_refused(tmp_path: Path, checkpoint: Path) -> None:
    refused = command("yolox-tiny", "--checkpoint", checkpoint, store=tmp_path)
    assert isinstance(refused.exception, CheckpointError)
    assert "does not fit yolox-tiny" in str(refused.exception)


def test_without_a_network_the_offline_way_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*_arguments: object) -> None:
        raise URLError("Name or service not known")

    monkeypatch.setattr(YoloxModule, "from_pretrained", unreachable)
    refused = command("yolox-s", store=tmp_path)
    assert isinstance(refused.exception, CheckpointError)
    assert "yolox_s.pth" in str(refused.exception)
    assert "--checkpoint" in str(refused.exception)
