"""The suppression inside the graph gives the same detections, bit by bit, as the reference in NumPy."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from models.detectors.end2end import OUTPUTS, Suppression, add_end2end
from models.detectors.errors import GraphError
from models.detectors.nms import Found, overlap, suppress
from models.manifest import load_manifest
from models.preprocessing import letterbox, normalise
from tests.pictures import photo

Float32 = npt.NDArray[np.float32]
DEFAULT = Suppression()
CLASSES = 3


def raw_model(opset: int = 17) -> onnx.ModelProto:
    """A detector that answers with its inputs, of any number of anchors and classes."""
    boxes, scores = ("batch", "anchors", 4), ("batch", "anchors", "classes")
    graph = helper.make_graph(
        [helper.make_node("Identity", ["b"], ["boxes"]), helper.make_node("Identity", ["s"], ["scores"])],
        "raw",
        [
            helper.make_tensor_value_info("b", TensorProto.FLOAT, boxes),
            helper.make_tensor_value_info("s", TensorProto.FLOAT, scores),
        ],
        [
            helper.make_tensor_value_info("boxes", TensorProto.FLOAT, boxes),
            helper.make_tensor_value_info("scores", TensorProto.FLOAT, scores),
        ],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


@cache
def session(suppression: Suppression, opset: int = 17) -> onnxruntime.InferenceSession:
    model = add_end2end(raw_model(opset), "boxes", "scores", suppression)
    onnx.checker.check_model(model)
    return onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])


def detect(boxes: Float32, scores: Float32, suppression: Suppression = DEFAULT, opset: int = 17) -> list[Any]:
    return list(session(suppression, opset).run(list(OUTPUTS), {"b": boxes, "s": scores}))


def assert_same(outputs: list[Any], image: int, wanted: Found) -> None:
    count, boxes, scores, classes = (output[image] for output in outputs)
    n = len(wanted.scores)
    assert count.tolist() == [n]
    np.testing.assert_array_equal(scores[:n], wanted.scores)
    np.testing.assert_array_equal(classes[:n], wanted.classes)
    np.testing.assert_array_equal(boxes[:n], wanted.boxes)
    assert not boxes[n:].any()
    assert not scores[n:].any()
    assert not classes[n:].any()


def check(boxes: Float32, scores: Float32, suppression: Suppression = DEFAULT, opset: int = 17) -> list[Found]:
    """Compares every picture of a batch, and returns what was found."""
    outputs = detect(boxes, scores, suppression, opset)
    wanted = [suppress(*pair, suppression) for pair in zip(boxes, scores, strict=True)]
    for image, found in enumerate(wanted):
        assert_same(outputs, image, found)
    return wanted


def random_boxes(rng: np.random.Generator, images: int, anchors: int, spread: float) -> Float32:
    start = rng.uniform(-20, spread, (images, anchors, 2))
    end = start + rng.uniform(5, 90, (images, anchors, 2))
    return np.asarray(np.concatenate([start, end], -1), np.float32)


@pytest.mark.parametrize("anchors", [1, 7, 60, 240, 1500])
def test_random_boxes_of_a_batch(anchors: int) -> None:
    rng = np.random.default_rng(anchors)
    scores = rng.uniform(0, 1, (3, anchors, CLASSES)).astype(np.float32) ** 2
    check(random_boxes(rng, 3, anchors, 300), scores)


@pytest.mark.parametrize("opset", [13, 17, 18, 20, 21, 23])
def test_every_opset_gives_the_same(opset: int) -> None:
    rng = np.random.default_rng(1)
    scores = rng.uniform(0, 1, (2, 90, CLASSES)).astype(np.float32)
    found = check(random_boxes(rng, 2, 90, 200), scores, opset=opset)
    assert len(found[0].scores) > 20


def test_an_opset_below_thirteen_is_refused() -> None:
    with pytest.raises(GraphError, match="opset 12"):
        add_end2end(raw_model(12), "boxes", "scores")


whole = st.integers(0, 6)


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.tuples(whole, whole, whole, whole, st.integers(0, 8), st.integers(0, CLASSES - 1)), min_size=1, max_size=12
    )
)
def test_any_boxes_on_a_coarse_grid(rows: list[tuple[int, ...]]) -> None:
    """Ties, equal boxes, boxes that touch or have no area, overlaps and scores of exactly the thresholds."""
    corners = np.array([row[:2] for row in rows], np.float32)
    boxes = np.concatenate([corners, corners + np.array([row[2:4] for row in rows], np.float32)], 1)
    scores = np.zeros((len(rows), CLASSES), np.float32)
    scores[np.arange(len(rows)), [row[5] for row in rows]] = np.array([row[4] for row in rows], np.float32) / 8
    check(boxes[None], scores[None])


def test_real_detections_of_a_photo_and_of_noise() -> None:
    """The raw outputs of the tiny detector, which are still inside its graph."""
    manifest = load_manifest()
    model = onnx.load(str(manifest.path(manifest.detector.onnx)))
    del model.graph.output[:]
    model.graph.output.extend(
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("boxes", "scores")]
    )
    detector = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    side = manifest.detector.input_size
    picture = letterbox(photo("coffee.png").convert("RGB"), side, manifest.detector.pad_value)
    noise = np.random.default_rng(0).integers(0, 255, picture.shape, np.uint8)
    boxes, scores = detector.run(["boxes", "scores"], {"images": normalise(np.stack([picture, noise]))})
    found = check(boxes, scores, Suppression(score_threshold=0.05))
    assert len(found[0].scores) > 3


def test_only_the_best_candidates_enter() -> None:
    rng = np.random.default_rng(3)
    scores = rng.uniform(0.3, 1, (1, 80, CLASSES)).astype(np.float32)
    found = check(random_boxes(rng, 1, 80, 4000), scores, Suppression(candidates=20))
    assert len(found[0].scores) <= 20


def test_types_and_shapes_are_those_of_the_contract() -> None:
    outputs = detect(np.zeros((2, 5, 4), np.float32), np.zeros((2, 5, CLASSES), np.float32))
    assert [output.shape for output in outputs] == [(2, 1), (2, 100, 4), (2, 100), (2, 100)]
    assert [output.dtype for output in outputs] == [np.int32, np.float32, np.float32, np.int32]


def test_no_candidate_gives_zeros() -> None:
    scores = np.full((2, 30, CLASSES), 0.2, np.float32)
    outputs = detect(random_boxes(np.random.default_rng(0), 2, 30, 500), scores)
    assert not any(output.any() for output in outputs)


def test_pictures_of_a_batch_keep_their_own_counts() -> None:
    rng = np.random.default_rng(5)
    scores = rng.uniform(0.3, 1, (4, 40, CLASSES)).astype(np.float32)
    scores[1] = 0
    scores[2, 3:] = 0.1
    found = check(random_boxes(rng, 4, 40, 2000), scores)
    counts = [len(picture.scores) for picture in found]
    assert counts[1] == 0
    assert counts[2] == 3
    assert counts[0] > 30
    assert counts[3] > 30


def test_more_than_a_hundred_survivors_are_cut_to_the_best() -> None:
    grid = np.stack(np.meshgrid(np.arange(15) * 40.0, np.arange(15) * 40.0), -1).reshape(1, -1, 2)
    boxes = np.concatenate([grid, grid + 30], -1).astype(np.float32)
    scores = np.random.default_rng(1).uniform(0.3, 1, (1, 225, CLASSES)).astype(np.float32)
    found = check(boxes, scores)
    np.testing.assert_array_equal(found[0].scores, np.sort(scores.max(2)[0])[::-1][:100])


def test_more_than_a_hundred_of_one_class_do_not_displace_a_better_one_of_another() -> None:
    grid = np.stack(np.meshgrid(np.arange(11) * 40.0, np.arange(11) * 40.0), -1).reshape(1, -1, 2)
    boxes = np.concatenate([grid, grid + 30], -1).astype(np.float32)
    scores = np.zeros((1, 121, CLASSES), np.float32)
    scores[..., 0] = np.linspace(0.9, 0.5, 121)
    scores[0, 60] = [0, 0, 0.95]
    found = check(boxes, scores)
    assert found[0].classes[0] == 2
    assert len(found[0].classes) == 100


def test_two_classes_at_one_spot_both_stay() -> None:
    boxes = np.array([[[10, 10, 60, 60], [10, 10, 60, 60], [11, 10, 60, 60]]], np.float32)
    scores = np.array([[[0.9, 0, 0], [0, 0.8, 0], [0.7, 0, 0]]], np.float32)
    found = check(boxes, scores)
    assert found[0].classes.tolist() == [0, 1]


def test_of_equal_scores_at_one_spot_the_first_stays() -> None:
    boxes = np.array([[[10, 10, 60, 60 + shift] for shift in range(6)]], np.float32)
    scores = np.zeros((1, 6, CLASSES), np.float32)
    scores[..., 2] = 0.75
    found = check(boxes, scores)
    assert found[0].boxes.tolist() == [[10, 10, 60, 60]]


def test_boxes_that_touch_do_not_suppress_each_other() -> None:
    boxes = np.array([[[0, 0, 10, 10], [10, 0, 20, 10], [0, 10, 10, 20], [10, 10, 20, 20]]], np.float32)
    scores = np.full((1, 4, CLASSES), 0.0, np.float32)
    scores[..., 1] = 0.8
    assert len(check(boxes, scores, Suppression(iou_threshold=0.0))[0].scores) == 4


def test_an_overlap_of_exactly_the_threshold_stays() -> None:
    boxes = np.array([[[0, 0, 10, 10], [0, 0, 10, 20], [0, 0, 10, 19.9]]], np.float32)
    scores = np.array([[[0.9], [0.8], [0.7]]], np.float32)
    assert overlap(boxes[0, 0], boxes[0, 1:2])[0] == np.float32(0.5)
    assert len(check(boxes[:, :2], scores[:, :2])[0].scores) == 2
    assert len(check(boxes[:, [0, 2]], scores[:, :2])[0].scores) == 1


@pytest.mark.parametrize("classes", [80, 1200])
def test_small_boxes_of_the_last_of_many_classes_keep_their_fractions_of_a_pixel(classes: int) -> None:
    """Boxes moved apart by class would lose them: float32 has steps of a pixel at 1200 * 8192."""
    rng = np.random.default_rng(classes)
    start = rng.uniform(0, 12, (1, 200, 2))
    boxes = np.concatenate([start, start + rng.uniform(3, 5, (1, 200, 2))], -1).astype(np.float32)
    scores = np.zeros((1, 200, classes), np.float32)
    scores[..., -1] = rng.uniform(0.3, 1, (1, 200))
    check(boxes, scores)


def test_boxes_far_outside_the_picture_do_not_meet_those_of_another_class() -> None:
    boxes = np.array([[[8192, 0, 8292, 50], [0, 0, 100, 50], [-1e6, 0, 1e6, 50]]], np.float32)
    scores = np.array([[[0.9, 0, 0], [0, 0.8, 0], [0, 0, 0.7]]], np.float32)
    assert len(check(boxes, scores)[0].scores) == 3


def test_an_unknown_output_is_refused_by_name() -> None:
    with pytest.raises(GraphError, match="'logits'"):
        add_end2end(raw_model(), "boxes", "logits")
