"""A detector of any exporter becomes one that answers as the NumPy reference does on its raw outputs, or is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from click.testing import CliRunner, Result
from onnx import TensorProto, helper, numpy_helper

from models.checks import check_detector
from models.detectors.cli import import_detector
from models.detectors.end2end import Suppression
from models.detectors.errors import (
    ClassNamesError,
    DetectorError,
    DetectorFileError,
    GraphError,
    UnknownHeadError,
)
from models.detectors.importing import ImportOptions, import_file
from models.detectors.nms import Found, suppress
from models.manifest import DetectorSpec
from models.store import ModelStore, StoreError
from tests.unit.detector_graphs import ANCHORS, SIDE, Exporter, anchors_table, factor, rows_table, run

Array = Any
THREE = ("cat", "dog", "hen")


@pytest.fixture
def store(tmp_path: Path) -> ModelStore:
    return ModelStore(tmp_path / "store")


def imported(
    model: onnx.ModelProto, store: ModelStore, *, classes: tuple[str, ...] | None = THREE, **said: Any
) -> tuple[Path, DetectorSpec]:
    """The stored ONNX and its spec."""
    file = store.folder.with_name("exported.onnx")
    onnx.save(model, str(file))
    spec = import_file(file, store, "own", ImportOptions(classes=classes, **said), overwrite=True)
    folder = store.part("detector", "own").folder
    return folder / spec.onnx, spec


def pictures(count: int = 3, side: int = SIDE) -> Array:
    """Of different brightness."""
    rng = np.random.default_rng(0)
    return (rng.random((count, 3, side, side)) * np.linspace(0.2, 1, count).reshape(-1, 1, 1, 1)).astype(np.float32)


def cxcywh_to_xyxy(boxes: Array) -> Array:
    half = boxes[:, 2:4] * np.float32(0.5)
    return np.concatenate([boxes[:, :2] - half, boxes[:, :2] + half], 1)


def assert_answers(file: Path, wanted: list[Found], seen: Array) -> None:
    found = run(file, seen)
    for image, one in enumerate(wanted):
        n = len(one.scores)
        assert n > 0
        assert found["num_dets"][image].tolist() == [n]
        np.testing.assert_allclose(found["det_scores"][image, :n], one.scores, rtol=1e-5)
        np.testing.assert_array_equal(found["det_classes"][image, :n], one.classes)
        np.testing.assert_allclose(found["det_boxes"][image, :n], one.boxes, rtol=1e-4, atol=1e-3)
        assert not found["det_boxes"][image, n:].any()


def scaled(table: Array, columns: int, seen: Array) -> list[Array]:
    """What a raw detector gives for each picture: the table with the columns from `columns` on scaled."""
    results = []
    for one in factor(seen):
        copy = table.copy()
        copy[:, columns:] *= one
        results.append(copy)
    return results


def yolov8(classes: int = 3, **form: Any) -> tuple[Exporter, Array]:
    exporter, table = Exporter(**form), anchors_table(classes)
    exporter.answer("output0", table.T, scaled=(np.arange(4 + classes) >= 4).astype(float)[:, None])
    return exporter, table


def yolov8_reference(table: Array, seen: Array, settings: Suppression) -> list[Found]:
    return [suppress(cxcywh_to_xyxy(t[:, :4]), t[:, 4:], settings) for t in scaled(table, 4, seen)]


@pytest.mark.parametrize(
    "form", [{}, {"side": "size"}, {"opset": 13}, {"opset": 18}, {"opset": 20}, {"opset": 11}], ids=str
)
def test_yolov8_answers_like_the_reference(store: ModelStore, form: dict[str, Any]) -> None:
    exporter, table = yolov8(**form)
    size = SIDE if form.get("side") else None
    file, spec = imported(exporter.model(), store, input_size=size)
    assert_answers(file, yolov8_reference(table, pictures(), Suppression()), pictures())
    assert spec.classes == THREE
    assert (spec.input_size, spec.colour_order, spec.value_range, spec.letterbox) == (SIDE, "rgb", (0, 1), "center")
    source = store.part("detector", "own").source
    assert source["head"] == "yolov8"
    assert source["opset"] == str(max(form.get("opset", 17), 13) if form.get("opset") != 11 else 17)


@pytest.mark.parametrize("batch", [1, 4])
def test_a_fixed_batch_becomes_dynamic(store: ModelStore, batch: int) -> None:
    exporter, table = yolov8(batch=batch)
    file, _spec = imported(exporter.model(), store)
    assert_answers(file, yolov8_reference(table, pictures(5), Suppression()), pictures(5))


def test_thresholds_and_rows_are_the_users(store: ModelStore) -> None:
    exporter, table = yolov8()
    settings = Suppression(score_threshold=0.1, iou_threshold=0.2, max_detections=7)
    file, spec = imported(exporter.model(), store, score_threshold=0.1, iou_threshold=0.2, max_detections=7)
    assert_answers(file, yolov8_reference(table, pictures(), settings), pictures())
    assert run(file, pictures())["det_scores"].shape == (3, 7)
    assert (spec.max_detections, spec.score_threshold) == (7, 0.1)


def test_half_precision_becomes_float32_outside(store: ModelStore) -> None:
    exporter, _table = yolov8(half=True)
    file, _spec = imported(exporter.model(), store)
    found = run(file, pictures())
    assert found["det_boxes"].dtype == np.float32
    assert found["num_dets"].min() > 5


@pytest.mark.parametrize("batch", ["batch", 1])
def test_objectness_multiplies_the_class_score(store: ModelStore, batch: int | str) -> None:
    exporter, table = Exporter(batch=batch), anchors_table(3, 3 * ANCHORS, objectness=True)
    exporter.answer("output", table, scaled=(np.arange(8) == 4).astype(float))
    file, spec = imported(exporter.model(), store)
    wanted = []
    for one in factor(pictures()):
        scores = table[:, 5:] * (table[:, 4:5] * one)
        wanted.append(suppress(cxcywh_to_xyxy(table[:, :4]), scores, Suppression()))
    assert_answers(file, wanted, pictures())
    assert spec.colour_order == "rgb"
    assert store.part("detector", "own").source["head"] == "yolov5"


def yolox_grid() -> tuple[Array, Array]:
    cells, strides = [], []
    for stride in (8, 16, 32):
        for y in range(SIDE // stride):
            for x in range(SIDE // stride):
                cells.append((x, y))
                strides.append(stride)
    return np.array(cells, np.float32), np.array(strides, np.float32)[:, None]


@pytest.mark.parametrize("decoded", [True, False])
def test_yolox_decoded_or_not_gives_the_same(store: ModelStore, decoded: bool) -> None:
    cells, strides = yolox_grid()
    rng = np.random.default_rng(2)
    raw = rng.normal(0.4, 0.5, (ANCHORS, 4)).astype(np.float32)
    boxes = np.concatenate([(raw[:, :2] + cells) * strides, np.exp(raw[:, 2:]) * strides], 1)
    scores = rng.uniform(0.5, 1, (ANCHORS, 4)).astype(np.float32)
    exporter = Exporter()
    exporter.answer("output", np.concatenate([boxes if decoded else raw, scores], 1), scaled=np.eye(8)[4])
    file, spec = imported(exporter.model(), store)
    wanted = [
        suppress(cxcywh_to_xyxy(boxes), scores[:, 1:] * (scores[:, :1] * one), Suppression())
        for one in factor(pictures())
    ]
    assert_answers(file, wanted, pictures())
    assert store.part("detector", "own").source["head"] == ("yolox" if decoded else "yolox-raw")
    assert (spec.colour_order, spec.value_range, spec.letterbox) == ("bgr", (0, 255), "top-left")


def test_what_the_user_says_of_the_pictures_goes_before_what_the_head_suggests(store: ModelStore) -> None:
    exporter = Exporter()
    exporter.answer("output", anchors_table(3, objectness=True))
    _file, spec = imported(
        exporter.model(), store, colour="rgb", value_range=(0.0, 1.0), letterbox="center", pad_value=0
    )
    assert (spec.colour_order, spec.value_range, spec.letterbox, spec.pad_value) == ("rgb", (0, 1), "center", 0)


@pytest.mark.parametrize("rows", [300, 20])
@pytest.mark.parametrize("batch", ["batch", 1])
def test_final_rows_are_sorted_cut_and_filled(store: ModelStore, rows: int, batch: int | str) -> None:
    table = np.random.default_rng(0).permutation(rows_table(rows, 3))
    exporter = Exporter(batch=batch)
    exporter.answer("output0", table, scaled=np.eye(6)[4])
    file, _spec = imported(exporter.model(), store)
    wanted = []
    for one in factor(pictures()):
        scores = table[:, 4] * one
        order = np.argsort(-scores, kind="stable")[:100]
        order = order[scores[order] > 0.25]
        wanted.append(Found(table[order, :4], scores[order], table[order, 5].astype(np.int32)))
    assert_answers(file, wanted, pictures())


@pytest.mark.parametrize(
    ("order", "kinds"),
    [
        (("num_dets", "det_boxes", "det_scores", "det_classes"), (TensorProto.INT32, TensorProto.INT32)),
        (("det_classes", "det_scores", "num_dets", "det_boxes"), (TensorProto.INT64, TensorProto.INT64)),
        (("c", "b", "a", "n"), (TensorProto.FLOAT, TensorProto.FLOAT)),
    ],
)
def test_four_outputs_in_any_order_and_type(store: ModelStore, order: tuple[str, ...], kinds: tuple[int, int]) -> None:
    """Rows beyond num_dets are not looked at: here they are the best of all."""
    table = rows_table(30, 3)
    table[20:, 4] = 0.99
    parts = {"n": np.array([20.0]), "b": table[:, :4], "s": table[:, 4], "c": table[:, 5]}
    exporter = Exporter()
    for name in order:
        key = {"n": "n", "num_dets": "n", "b": "b", "det_boxes": "b", "a": "s", "det_scores": "s"}.get(name, "c")
        kind = kinds[0] if key == "n" else kinds[1] if key == "c" else None
        exporter.answer(name, parts[key], scaled=1.0 if key == "s" else 0.0, kind=kind)
    file, _spec = imported(exporter.model(), store)
    wanted = []
    for one in factor(pictures()):
        scores = (table[:20, 4] * one).astype(np.float32)
        good = scores > 0.25
        wanted.append(Found(table[:20][good, :4], scores[good], table[:20][good, 5].astype(np.int32)))
    assert_answers(file, wanted, pictures())


def test_an_imported_detector_can_be_imported_again(store: ModelStore) -> None:
    exporter, table = yolov8()
    file, _spec = imported(exporter.model(), store)
    again, _spec = imported(onnx.load(str(file)), store)
    assert_answers(again, yolov8_reference(table, pictures(), Suppression()), pictures())


def efficient_nms(exporter: Exporter, domain: str, **attributes: Any) -> onnx.ModelProto:
    """What exporters for TensorRT write: boxes and scores into one node, and four outputs of it."""
    exporter.nodes.append(
        helper.make_node(
            "EfficientNMS_TRT",
            ["boxes", "scores"],
            ["num_dets", "det_boxes", "det_scores", "det_classes"],
            domain=domain,
            plugin_version="1",
            **attributes,
        )
    )
    exporter.outputs = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in exporter.nodes[-1].output
    ]
    model = exporter.model()
    if domain:
        model.opset_import.append(helper.make_opsetid(domain, 1))
    return model


@pytest.mark.parametrize("domain", ["", "TRT"])
@pytest.mark.parametrize("centre_coded", [0, 1])
def test_the_node_of_tensorrt_is_replaced_and_its_attributes_are_kept(
    store: ModelStore, domain: str, centre_coded: int
) -> None:
    table = anchors_table(3)
    exporter = Exporter()
    exporter.answer("boxes", table[:, :4] if centre_coded else cxcywh_to_xyxy(table), scaled=0.0)
    exporter.answer("scores", table[:, 4:])
    attributes = {"box_coding": centre_coded, "score_threshold": 0.1, "iou_threshold": 0.3, "max_output_boxes": 50}
    file, spec = imported(efficient_nms(exporter, domain, background_class=-1, **attributes), store)
    settings = Suppression(score_threshold=0.1, iou_threshold=0.3, max_detections=50)
    assert_answers(file, yolov8_reference(table, pictures(), settings), pictures())
    assert spec.max_detections == 50
    assert spec.score_threshold == 0.1


def test_the_background_class_of_tensorrts_node_is_no_object_and_its_logits_are_activated(store: ModelStore) -> None:
    table = anchors_table(3)
    logits = table[:, 4:] * 6 - 3
    exporter = Exporter()
    exporter.answer("boxes", cxcywh_to_xyxy(table)[:, None], scaled=0.0)  # [anchors, 1, 4]
    exporter.answer("scores", logits)
    model = efficient_nms(exporter, "TRT", background_class=0, score_activation=1)
    file, _spec = imported(model, store)
    wanted = []
    for one in factor(pictures()):
        scores = (1 / (1 + np.exp(-logits * one))).astype(np.float32)
        scores[:, 0] = 0
        wanted.append(suppress(cxcywh_to_xyxy(table), scores, Suppression()))
    assert_answers(file, wanted, pictures())


@pytest.mark.parametrize(
    ("attributes", "shape", "message"),
    [
        ({"class_agnostic": 1}, (ANCHORS, 4), "across classes"),
        ({}, (ANCHORS, 3, 4), r"boxes \[B, 84, 3, 4\]"),
    ],
)
def test_other_uses_of_tensorrts_node_are_refused(
    store: ModelStore, attributes: dict[str, int], shape: tuple[int, ...], message: str
) -> None:
    exporter = Exporter()
    exporter.answer("boxes", np.ones(shape, np.float32))
    exporter.answer("scores", anchors_table(3)[:, 4:])
    with pytest.raises(GraphError, match=message):
        imported(efficient_nms(exporter, "TRT", **attributes), store)


@pytest.mark.parametrize("opset", [17, 20])
def test_the_form_for_tensorrt_has_one_node_and_means_the_same(store: ModelStore, opset: int) -> None:
    """onnxruntime cannot run it, so it is imported again, which replaces the node: the answers must not change."""
    exporter, table = yolov8(opset=opset)
    file, _spec = imported(exporter.model(), store, tensorrt=True)
    model = onnx.load(str(file.with_name("detector.trt.onnx")))
    (node,) = (node for node in model.graph.node if node.op_type == "EfficientNMS_TRT")
    attributes = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
    assert attributes == {
        "background_class": -1,
        "box_coding": 0,
        "class_agnostic": 0,
        "iou_threshold": pytest.approx(0.5),
        "max_output_boxes": 100,
        "plugin_version": b"1",
        "score_activation": 0,
        "score_threshold": pytest.approx(0.25),
    }
    assert [output.name for output in model.graph.output] == list(node.output)
    assert not any(other.op_type == "NonMaxSuppression" for other in model.graph.node)
    again, _spec = imported(model, store)
    assert_answers(again, yolov8_reference(table, pictures(), Suppression()), pictures())


def test_a_detector_with_final_rows_needs_no_second_graph(store: ModelStore) -> None:
    exporter = Exporter()
    exporter.answer("output0", rows_table(20, 3), scaled=np.eye(6)[4])
    file, _spec = imported(exporter.model(), store, tensorrt=True)
    assert [path.name for path in file.parent.glob("*.onnx")] == ["detector.onnx"]


@pytest.mark.parametrize(
    "names",
    ["{0: 'cat', 1: 'dog', 2: 'hen'}", "{2: 'hen', 0: 'cat', 1: 'dog'}", "['cat', 'dog', 'hen']"],
)
def test_names_come_from_the_metadata(store: ModelStore, names: str) -> None:
    _file, spec = imported(yolov8()[0].model(names), store, classes=None)
    assert spec.classes == THREE


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (None, "does not name the detector's 3 classes; give --classes"),
        ("{0: 'cat', 1: 'dog'}", "has 3 classes, but the metadata of the ONNX names 2"),
        ("{0: 'cat', 1: 'dog', 3: 'hen'}", "cannot be read"),
        ("__import__('os').abort()", "cannot be read"),
        ("(" * 5000, "cannot be read"),
        ("{0: 1, 1: 2, 2: 3}", "cannot be read"),
    ],
)
def test_missing_or_wrong_names_in_the_metadata_are_refused(store: ModelStore, names: str | None, message: str) -> None:
    with pytest.raises(ClassNamesError, match=message):
        imported(yolov8()[0].model(names), store, classes=None)


def test_more_names_than_classes_are_refused(store: ModelStore) -> None:
    with pytest.raises(ClassNamesError, match="has 3 classes, but the file of --classes names 4"):
        imported(yolov8()[0].model(), store, classes=(*THREE, "owl"))


def test_a_class_beyond_the_names_of_final_rows_is_refused(store: ModelStore) -> None:
    exporter = Exporter()
    exporter.answer("output0", rows_table(100, 5), scaled=np.eye(6)[4])
    with pytest.raises(ClassNamesError, match="finds class 4, but 3 are"):
        imported(exporter.model(), store)


def mixes_pictures_up() -> onnx.ModelProto:
    """As advanced indexing with a batch of one is traced: every picture gets the scores of the first."""
    exporter, _table = yolov8()
    exporter.nodes[-1].output[0] = "own"
    first = exporter.constant("first", np.array([0], np.int64))
    exporter.nodes += [
        helper.make_node("Gather", ["own", first], ["of_first"], axis=0),
        helper.make_node("Mul", ["own", exporter.constant("none", np.zeros(1, np.float32))], ["zeros"]),
        helper.make_node("Add", ["of_first", "zeros"], ["output0"]),
    ]
    return exporter.model()


def cannot_be_batched() -> onnx.ModelProto:
    """It joins a constant of one picture to its answer."""
    exporter, _table = yolov8(batch=1)
    exporter.nodes[-1].output[0] = "own"
    more = exporter.constant("more", anchors_table(3, 1).T[None])
    exporter.nodes.append(helper.make_node("Concat", ["own", more], ["output0"], axis=2))
    return exporter.model()


def of_input(dims: list[Any], kind: int = TensorProto.FLOAT) -> onnx.ModelProto:
    model = yolov8()[0].model()
    model.graph.input[0].CopyFrom(helper.make_tensor_value_info("data", kind, dims))
    return model


def with_nan() -> onnx.ModelProto:
    exporter = Exporter()
    table = anchors_table(3)
    table[5, 6] = np.nan
    exporter.answer("output0", table.T)
    return exporter.model()


def with_operator(name: str, domain: str = "") -> onnx.ModelProto:
    model = yolov8()[0].model()
    model.graph.node[-1].op_type, model.graph.node[-1].domain = name, domain
    del model.graph.node[-1].attribute[:]
    if domain:
        model.opset_import.append(helper.make_opsetid(domain, 1))
    return model


def two_inputs() -> onnx.ModelProto:
    model = yolov8()[0].model()
    model.graph.input.append(helper.make_tensor_value_info("scale", TensorProto.FLOAT, [1]))
    return model


def segmentation() -> onnx.ModelProto:
    exporter, _table = yolov8()
    exporter.answer("output1", np.zeros((32, 16, 16)))
    return exporter.model()


def logits() -> onnx.ModelProto:
    exporter = Exporter()
    table = anchors_table(3)
    table[:, 4:] -= 3
    exporter.answer("output0", table.T)
    return exporter.model()


@pytest.mark.parametrize(
    ("model", "kind", "message"),
    [
        (mixes_pictures_up, GraphError, "dynamic batch.*dynamic=True"),
        (cannot_be_batched, GraphError, r"1 picture\(s\) a run.*dynamic batch"),
        (lambda: of_input(["b", 3, 64, 96]), GraphError, "64 high and 96 wide"),
        (lambda: of_input(["b", 64, 64, 3]), GraphError, r"\[batch, 3, height, width\]"),
        (lambda: of_input(["b", 3, 64]), GraphError, r"\[batch, 3, height, width\]"),
        (lambda: of_input(["b", 3, 64, 64], TensorProto.UINT8), GraphError, "UINT8"),
        (with_nan, GraphError, "'output0' holds NaN"),
        (lambda: with_operator("MagicNMS"), GraphError, "no operators MagicNMS"),
        (lambda: with_operator("YoloLayer_TRT", "TRT"), GraphError, "no operators TRT::YoloLayer_TRT"),
        (two_inputs, GraphError, r"2 inputs \(data, scale\)"),
        (segmentation, UnknownHeadError, "2 outputs"),
        (logits, UnknownHeadError, "sigmoid"),
    ],
)
def test_what_would_fail_when_served_fails_now(
    store: ModelStore, model: Any, kind: type[DetectorError], message: str
) -> None:
    with pytest.raises(kind, match=message) as caught:
        imported(model(), store)
    assert "\n" not in str(caught.value)
    assert [part.name for part in store.parts("detector")] == ["tiny"]


def test_an_input_size_that_the_graph_does_not_have_is_refused(store: ModelStore) -> None:
    with pytest.raises(GraphError, match="leave --input-size out"):
        imported(yolov8()[0].model(), store, input_size=96)


@pytest.mark.parametrize(
    "content",
    [b"", b"not a model", b"PK\x03\x04" + bytes(100), b"version https://git-lfs.github.com/spec/v1\n"],
    ids=["empty", "text", "zip", "lfs"],
)
def test_another_file_is_no_onnx(store: ModelStore, tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "model.onnx"
    file.write_bytes(content)
    with pytest.raises(DetectorFileError, match=r"model\.onnx"):
        import_file(file, store, "own", ImportOptions())


def test_a_missing_file_is_named(store: ModelStore, tmp_path: Path) -> None:
    with pytest.raises(DetectorFileError, match=r"none\.onnx cannot be read \(No such file"):
        import_file(tmp_path / "none.onnx", store, "own", ImportOptions())


def test_a_file_cut_off_anywhere_is_refused(store: ModelStore, tmp_path: Path) -> None:
    whole = yolov8()[0].model("{0: 'cat', 1: 'dog', 2: 'hen'}").SerializeToString()
    file = tmp_path / "cut.onnx"
    for length in [*range(0, len(whole) - 120, 97), *range(len(whole) - 120, len(whole))]:
        file.write_bytes(whole[:length])
        with pytest.raises(DetectorError):
            import_file(file, store, "own", ImportOptions())


@pytest.mark.parametrize("damage", ["missing", "short", "outside"])
def test_weights_in_another_file_must_be_whole(store: ModelStore, tmp_path: Path, damage: str) -> None:
    file, data = tmp_path / "apart.onnx", tmp_path / "apart.data"
    onnx.save(yolov8()[0].model(), str(file), save_as_external_data=True, location=data.name, size_threshold=64)
    import_file(file, store, "whole", ImportOptions(classes=THREE))
    if damage == "missing":
        data.unlink()
    elif damage == "short":
        data.write_bytes(data.read_bytes()[:100])
    else:
        model = onnx.load(str(file), load_external_data=False)
        for tensor in model.graph.initializer:
            for entry in tensor.external_data:
                entry.value = "../apart.data" if entry.key == "location" else entry.value
        file.write_bytes(model.SerializeToString())
    with pytest.raises(DetectorError, match=r"cannot be read|damaged"):
        import_file(file, store, "own", ImportOptions(classes=THREE))


def test_weights_in_another_file_are_stored_in_one(store: ModelStore, tmp_path: Path) -> None:
    file = tmp_path / "apart.onnx"
    onnx.save(yolov8()[0].model(), str(file), save_as_external_data=True, location="apart.data", size_threshold=64)
    spec = import_file(file, store, "own", ImportOptions(classes=THREE))
    folder = store.part("detector", "own").folder
    (tmp_path / "apart.data").unlink()
    check_detector(folder, spec)


def test_names_of_branches_stay_right(store: ModelStore) -> None:
    """A branch that uses a constant of the outer graph, as torch writes for an `if` on shapes."""
    exporter, table = yolov8()
    exporter.nodes[-1].output[0] = "own"
    exporter.constant("outer", np.float32(1.0))
    value = helper.make_tensor_value_info("branch_result", TensorProto.FLOAT, None)
    branch = helper.make_graph([helper.make_node("Mul", ["own", "outer"], ["branch_result"])], "branch", [], [value])
    yes = exporter.constant("yes", np.array(True))
    exporter.nodes.append(helper.make_node("If", [yes], ["output0"], then_branch=branch, else_branch=branch))
    file, _spec = imported(exporter.model(), store)
    assert_answers(file, yolov8_reference(table, pictures(), Suppression()), pictures())


def test_names_that_the_surgery_uses_may_be_taken(store: ModelStore) -> None:
    exporter, table = yolov8()
    exporter.nodes[-1].output[0] = "images"
    exporter.nodes.append(helper.make_node("Identity", ["images"], ["end2end_constant_0"]))
    exporter.nodes.append(helper.make_node("Identity", ["end2end_constant_0"], ["output0"]))
    file, _spec = imported(exporter.model(), store)
    assert_answers(file, yolov8_reference(table, pictures(), Suppression()), pictures())


def command(*arguments: object, store: ModelStore) -> Result:
    environment = {"SIGHTLOG_MODELS_DIR": str(store.folder)}
    return CliRunner().invoke(import_detector, [str(one) for one in arguments], env=environment)


def test_the_command_stores_a_detector_with_what_was_said(store: ModelStore, tmp_path: Path) -> None:
    file, names = tmp_path / "my model.onnx", tmp_path / "names.txt"
    onnx.save(yolov8()[0].model(), str(file))
    names.write_text("\ufeffcat\n dog \nhen\n\n", encoding="utf-8")
    said = ["--classes", names, "--nms", "trt", "--range", "0..255", "--colour", "bgr", "--letterbox", "top-left"]
    result = command(file, *said, "--pad-value", 0, "--max-detections", 20, store=store)
    assert result.exit_code == 0, result.output
    part = store.part("detector", "my-model")
    assert part.spec == DetectorSpec(
        name="my-model",
        onnx="detector.onnx",
        input_size=SIDE,
        colour_order="bgr",
        value_range=(0.0, 255.0),
        letterbox="top-left",
        pad_value=0,
        classes=THREE,
        max_detections=20,
        score_threshold=0.25,
    )
    assert sorted(part.files) == ["detector.onnx", "detector.trt.onnx"]
    assert part.source["file"] == "my model.onnx"
    assert len(part.source["sha256"]) == 64
    assert "sightlog models use CLIP --detector my-model" in result.output


def test_the_command_overwrites_only_when_told(store: ModelStore, tmp_path: Path) -> None:
    file = tmp_path / "own.onnx"
    onnx.save(yolov8()[0].model("['cat', 'dog', 'hen']"), str(file))
    assert command(file, store=store).exit_code == 0
    assert isinstance(command(file, store=store).exception, StoreError)
    assert command(file, "--replace", store=store).exit_code == 0


@pytest.mark.parametrize(("text", "message"), [("", "it is empty"), ("cat\n\nhen\n", "line 2 is empty")])
def test_a_file_of_names_with_holes_is_refused(store: ModelStore, tmp_path: Path, text: str, message: str) -> None:
    file, names = tmp_path / "own.onnx", tmp_path / "names.txt"
    onnx.save(yolov8()[0].model(), str(file))
    names.write_text(text)
    result = command(file, "--classes", names, store=store)
    assert isinstance(result.exception, ClassNamesError)
    assert message in str(result.exception)


def test_reshapes_of_heads_and_windows_are_freed(store: ModelStore) -> None:
    """Attention merges the batch with its heads: [1, 2 * 21, 14] -> [2, 21, 14] and back, as constants."""
    exporter, table = yolov8(batch=1)
    exporter.nodes[-1].output[0] = "own"
    split = exporter.constant("split", np.array([7, 2, 42], np.int64))
    merge = exporter.constant("merge", np.array([1, 7, 84], np.int64))
    weight = exporter.constant("scale", np.ones(7, np.float32))
    shape = exporter.constant("weight_shape", np.array([1, 7, 1], np.int64))
    exporter.nodes += [
        helper.make_node("Reshape", ["own", split], ["heads"]),
        helper.make_node("Reshape", ["heads", merge], ["merged"]),
        helper.make_node("Reshape", [weight, shape], ["weight"]),
        helper.make_node("Mul", ["merged", "weight"], ["output0"]),
    ]
    file, _spec = imported(exporter.model(), store)
    assert_answers(file, yolov8_reference(table, pictures(), Suppression()), pictures())


def test_constants_of_nodes_are_freed_too(store: ModelStore) -> None:
    exporter, table = yolov8(batch=1)
    (shape,) = (tensor for tensor in exporter.constants if tensor.name == "output0_shape")
    exporter.constants.remove(shape)
    value = numpy_helper.from_array(numpy_helper.to_array(shape))
    exporter.nodes.insert(0, helper.make_node("Constant", [], ["output0_shape"], value=value))
    file, _spec = imported(exporter.model(), store)
    assert_answers(file, yolov8_reference(table, pictures(), Suppression()), pictures())


def test_a_head_that_contradicts_the_node_of_tensorrt_is_refused(store: ModelStore) -> None:
    exporter = Exporter()
    exporter.answer("boxes", anchors_table(3)[:, :4])
    exporter.answer("scores", anchors_table(3)[:, 4:])
    with pytest.raises(UnknownHeadError, match="leave --head out"):
        imported(efficient_nms(exporter, "TRT"), store, head="yolov8")
