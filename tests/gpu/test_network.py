"""What is written out of an ONNX file gives what onnxruntime gives, or the file is refused by the operator's name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch", reason="needs PyTorch: pip install 'sightlog[stack,gpu]'")

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper

from models.detectors.importing import ImportOptions, import_file
from models.manifest import load_manifest
from models.preprocessing import letterbox, normalise
from models.store import ModelStore
from models.tokenizer import ClipTokenizer
from tests.gpu.small_graphs import (
    TowerLike,
    Yolov8Like,
    Yolov10Like,
    YoloxLike,
    assert_same_as_onnxruntime,
    exported,
    graph_of,
    network,
    noise,
    one_node,
)
from tests.pictures import photo
from tests.unit.detector_graphs import SIDE, Exporter, anchors_table
from triton_repo.gpu.network import UnsupportedGraphError

Array = Any
CLASSES = ("cat", "dog", "hen")


def stored(file: Path, folder: Path, **said: Any) -> Path:
    """The End2End graph that an import of the file makes."""
    store = ModelStore(folder / "store")
    import_file(file, store, "own", ImportOptions(classes=CLASSES, **said))
    part = store.part("detector", "own")
    return part.folder / "detector.onnx"


def test_the_tiny_image_tower(tmp_path: Path) -> None:
    manifest = load_manifest()
    side = manifest.clip.image_size
    assert_same_as_onnxruntime(manifest.path(manifest.clip.image_onnx), tmp_path, noise(5, 3, side, side))


def test_the_tiny_text_tower(tmp_path: Path) -> None:
    manifest = load_manifest()
    tokens = ClipTokenizer().encode(["a dog", "a photo of a striped red circle", "", "two cats"])
    file = manifest.path(manifest.clip.text_onnx)
    assert_same_as_onnxruntime(file, tmp_path, tokens, name="tokens", any_length=False)


def test_the_tiny_detector(tmp_path: Path) -> None:
    manifest = load_manifest()
    side, pad = manifest.detector.input_size, manifest.detector.pad_value
    pictures = [letterbox(photo(name).convert("RGB"), side, pad) for name in ("coffee.png", "astronaut.png")]
    rows = normalise(np.stack([*pictures, np.zeros_like(pictures[0])]))
    counts = assert_same_as_onnxruntime(manifest.path(manifest.detector.onnx), tmp_path, rows, tolerance=1e-3)[0]
    assert counts.max() > 0


@pytest.mark.parametrize(
    ("module", "batch"),
    [
        pytest.param(YoloxLike(SIDE, len(CLASSES)), "batch", id="yolox"),
        pytest.param(YoloxLike(SIDE, len(CLASSES)), None, id="yolox of one picture"),
        pytest.param(Yolov8Like(SIDE, len(CLASSES)), "batch", id="yolov8"),
        pytest.param(Yolov10Like(len(CLASSES)), "batch", id="yolov10"),
        pytest.param(Yolov10Like(len(CLASSES)), None, id="yolov10 of one picture"),
    ],
)
def test_imported_detectors(module: torch.nn.Module, batch: str | None, tmp_path: Path) -> None:
    file = exported(module, torch.zeros(3, SIDE, SIDE), tmp_path / "exported.onnx", batch=batch)
    rows = noise(5, 3, SIDE, SIDE) * np.linspace(0.3, 1, 5, dtype=np.float32).reshape(-1, 1, 1, 1)
    counts = assert_same_as_onnxruntime(stored(file, tmp_path), tmp_path, rows, tolerance=1e-3)[0]
    assert (counts > 3).all()


@pytest.mark.parametrize("centre_coded", [0, 1])
def test_a_detector_that_was_made_for_tensorrt(centre_coded: int, tmp_path: Path) -> None:
    exporter, table = Exporter(), anchors_table(3)
    half = table[:, 2:4] / 2
    corners = np.concatenate([table[:, :2] - half, table[:, :2] + half], 1)
    exporter.answer("boxes", table[:, :4] if centre_coded else corners)
    exporter.answer("scores", table[:, 4:], scaled=1.0)
    model = exporter.model()
    outputs = ["num_dets", "det_boxes", "det_scores", "det_classes"]
    node = helper.make_node(
        "EfficientNMS_TRT",
        ["boxes", "scores"],
        outputs,
        domain="TRT",
        box_coding=centre_coded,
        score_threshold=0.1,
        iou_threshold=0.4,
        max_output_boxes=30,
    )
    model.graph.node.append(node)
    model.opset_import.append(helper.make_opsetid("TRT", 1))
    del model.graph.output[:]
    model.graph.output.extend([helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs])
    onnx.save(model, str(tmp_path / "tensorrt.onnx"))
    found = stored(tmp_path / "tensorrt.onnx", tmp_path)
    counts = assert_same_as_onnxruntime(found, tmp_path, noise(4, 3, SIDE, SIDE))[0]
    assert (counts > 3).all()


def test_a_tower_of_convolutions_and_attention(tmp_path: Path) -> None:
    file = exported(TowerLike(), torch.zeros(3, 32, 32), tmp_path / "tower.onnx")
    assert_same_as_onnxruntime(file, tmp_path, noise(6, 3, 32, 32, low=-2, high=2))


def test_pixels_whose_channels_lie_together_give_the_same(tmp_path: Path) -> None:
    file = exported(TowerLike(), torch.zeros(3, 32, 32), tmp_path / "tower.onnx")
    rows = torch.from_numpy(noise(3, 3, 32, 32))
    plain = network(file, tmp_path).written({"images": rows})(rows)[0]
    last = rows.contiguous(memory_format=torch.channels_last)
    written = network(file, tmp_path).written({"images": last[:1]}, any_length=True)
    torch.testing.assert_close(written(last)[0], plain)


def test_weights_lie_on_the_device_once_for_all_batches(tmp_path: Path) -> None:
    file = exported(TowerLike(), torch.zeros(3, 32, 32), tmp_path / "tower.onnx")
    shared = network(file, tmp_path)
    one, two = (shared.written({"images": torch.zeros(count, 3, 32, 32)}) for count in (1, 2))
    first = {buffer.data_ptr() for buffer in one.buffers()}
    assert first
    assert first == {buffer.data_ptr() for buffer in two.buffers()}


def calls(module: torch.fx.GraphModule) -> list[str]:
    return [getattr(node.target, "__name__", "") for node in module.graph.nodes if node.op == "call_function"]


def test_gelu_that_was_taken_apart_is_one_node_or_part_of_its_convolution(tmp_path: Path) -> None:
    file = exported(TowerLike(), torch.zeros(3, 32, 32), tmp_path / "tower.onnx")
    assert [node.op_type for node in onnx.load(file).graph.node].count("Erf") == 4
    module = network(file, tmp_path).written({"images": torch.zeros(2, 3, 32, 32)})
    assert "erf" not in calls(module)
    assert calls(module).count("_gelu") == 1
    activated = [node for node in module.graph.nodes if node.kwargs.get("activation") == "gelu"]
    assert len(activated) == 3


def gelu_apart(half: float = 0.5, root: float = 2**0.5, *, read: str = "") -> onnx.ModelProto:
    """`read`: one of its parts that somebody else reads too."""
    nodes = [
        helper.make_node("Div", ["images", "root"], ["divided"]),
        helper.make_node("Erf", ["divided"], ["erf"]),
        helper.make_node("Add", ["erf", "one"], ["plus"]),
        helper.make_node("Mul", ["images", "plus"], ["times"]),
        helper.make_node("Mul", ["times", "half"], ["gelu"]),
        helper.make_node("Add", ["gelu", read or "gelu"], ["result"]),
    ]
    constants = {name: np.array(v, np.float32) for name, v in (("root", root), ("one", 1), ("half", half))}
    return graph_of(nodes, np.zeros(7, np.float32), {"result": TensorProto.FLOAT}, constants)


@pytest.mark.parametrize("read", ["", "divided", "erf", "plus", "times"])
def test_gelu_stays_right_whoever_reads_its_parts(read: str, tmp_path: Path) -> None:
    assert_same_as_onnxruntime(gelu_apart(read=read), tmp_path, noise(4, 7, low=-3, high=3))
    module = network(gelu_apart(read=read), tmp_path).written({"images": torch.zeros(2, 7)})
    assert ("_gelu" in calls(module)) == (not read)


@pytest.mark.parametrize("read", ["divided", "erf", "plus", "times"])
def test_a_part_of_gelu_may_be_an_answer(read: str, tmp_path: Path) -> None:
    model = gelu_apart()
    model.graph.output.append(helper.make_tensor_value_info(read, TensorProto.FLOAT, None))
    assert_same_as_onnxruntime(model, tmp_path, noise(4, 7, low=-3, high=3))


@pytest.mark.parametrize("constants", [{"half": 0.6}, {"root": 1.5}])
def test_what_only_looks_like_gelu_is_left_alone(constants: dict[str, float], tmp_path: Path) -> None:
    assert_same_as_onnxruntime(gelu_apart(**constants), tmp_path, noise(4, 7, low=-3, high=3))


PIXELS = np.zeros((4, 6, 6), np.float32)


def shape_from_values() -> onnx.ModelProto:
    nodes = [
        helper.make_node("ReduceMax", ["images"], ["top"], axes=[0, 1, 2, 3], keepdims=0),
        helper.make_node("Cast", ["top"], ["number"], to=TensorProto.INT64),
        helper.make_node("Unsqueeze", ["number", "zero"], ["shape"]),
        helper.make_node("Expand", ["images", "shape"], ["result"], name="grown"),
    ]
    return graph_of(nodes, PIXELS, {"result": TensorProto.FLOAT}, {"zero": np.array([0])})


def own_suppression() -> onnx.ModelProto:
    """Suppression whose rows are answered as they come: how many depends on the picture."""
    nodes = [
        helper.make_node("Reshape", ["images", "boxes_shape"], ["boxes"]),
        helper.make_node("ReduceMax", ["boxes"], ["scores"], axes=[2], keepdims=0),
        helper.make_node("Unsqueeze", ["scores", "one"], ["by_class"]),
        helper.make_node("NonMaxSuppression", ["boxes", "by_class"], ["chosen"], name="own"),
        helper.make_node("Cast", ["chosen"], ["result"], to=TensorProto.FLOAT),
    ]
    constants = {"boxes_shape": np.array([0, -1, 4]), "one": np.array([1])}
    return graph_of(nodes, PIXELS, {"result": TensorProto.FLOAT}, constants)


def slice_assigned() -> onnx.ModelProto:
    """x[0, 0, 0, 0] = 5, as exporters write it."""
    constants = {"place": np.zeros((1, 4), np.int64), "five": np.array([5], np.float32)}
    node = helper.make_node("ScatterND", ["images", "place", "five"], ["result"])
    return graph_of([node], PIXELS, {"result": TensorProto.FLOAT}, constants)


@pytest.mark.parametrize(
    ("model", "named"),
    [
        (shape_from_values(), "Expand 'grown': a shape depends on what the picture shows"),
        (one_node("NonZero", PIXELS, kind=TensorProto.INT64), "NonZero 'result': an operator that is not known"),
        (own_suppression(), "NonMaxSuppression 'own'"),
        (slice_assigned(), "ScatterND"),
        (one_node("MaxPool", PIXELS, kernel_shape=[2, 2], auto_pad="SAME_UPPER"), "MaxPool"),
        (
            one_node(
                "Conv", PIXELS, np.ones((4, 1, 3, 3)).astype("f"), np.zeros(4, "f"), group=4, auto_pad="SAME_UPPER"
            ),
            "Conv",
        ),
    ],
    ids=["shape from values", "unknown operator", "own suppression", "slice assigned", "padded pool", "padded conv"],
)
@pytest.mark.parametrize("any_length", [False, True])
def test_a_graph_that_cannot_be_written_is_refused_by_name(
    model: onnx.ModelProto, named: str, any_length: bool, tmp_path: Path
) -> None:
    with pytest.raises(UnsupportedGraphError, match=f"small.onnx: {named}.*profile 'cpu' or 'onnxruntime'"):
        network(model, tmp_path).written({"images": torch.zeros(2, *PIXELS.shape)}, any_length=any_length)


def test_an_answer_that_is_the_same_for_every_picture_is_refused(tmp_path: Path) -> None:
    node = helper.make_node("Identity", ["table"], ["result"])
    model = graph_of([node], PIXELS, {"result": TensorProto.FLOAT}, {"table": np.ones(3, np.float32)})
    with pytest.raises(UnsupportedGraphError, match="result"):
        network(model, tmp_path).written({"images": torch.zeros(2, *PIXELS.shape)})


@pytest.mark.parametrize("channels", [97, 194, 776])
@pytest.mark.parametrize("shape", [[-1, 0], [0, -1], None])
def test_sizes_that_look_like_the_length_of_the_batch_are_not_taken_for_it(
    channels: int, shape: list[int] | None, tmp_path: Path
) -> None:
    row = np.zeros((channels // 97, 97), np.float32)
    target = np.array((shape and [channels if size == 0 else size for size in shape]) or [-1, channels])
    model = one_node("Reshape", row, target)
    rows = noise(4, *row.shape)
    assert_same_as_onnxruntime(model, tmp_path, rows, any_length=False)
    try:
        network(model, tmp_path).written({"images": torch.from_numpy(rows)}, any_length=True)
    except UnsupportedGraphError:
        return
    assert_same_as_onnxruntime(model, tmp_path, rows)
