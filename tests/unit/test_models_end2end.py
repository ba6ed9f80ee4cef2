"""The End2End surgery gives the same detections as a plain NumPy non-maximum suppression."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime
import pytest

onnx = pytest.importorskip("onnx")

from onnx import TensorProto, helper  # noqa: E402

from models.end2end import OUTPUTS, GraphError, Suppression, add_end2end  # noqa: E402

CLASSES = 3
SETTINGS = Suppression(max_detections=100, iou_threshold=0.5, score_threshold=0.25, candidates=1000)
Float32 = npt.NDArray[np.float32]


def raw_model(anchors: int | str) -> Any:
    """A detector that answers with its inputs."""
    boxes, scores = ("batch", anchors, 4), ("batch", anchors, CLASSES)
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
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def detect(boxes: Float32, scores: Float32, settings: Suppression = SETTINGS) -> list[npt.NDArray[Any]]:
    model = add_end2end(raw_model("anchors"), "boxes", "scores", settings)
    onnx.checker.check_model(model)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return list(session.run(list(OUTPUTS), {"b": boxes, "s": scores}))


def reference(boxes: Float32, scores: Float32, settings: Suppression = SETTINGS) -> list[tuple[float, ...]]:
    """Greedy NMS within each class for one image: rows (score, class, x1, y1, x2, y2), best first."""
    kept: list[tuple[float, ...]] = []
    best, classes = scores.max(1), scores.argmax(1)
    for anchor in np.argsort(-best, kind="stable")[: settings.candidates]:
        if best[anchor] <= settings.score_threshold:
            continue
        rivals = [row[2:] for row in kept if row[1] == classes[anchor]]
        if all(overlap(boxes[anchor], rival) <= settings.iou_threshold for rival in rivals):
            kept.append((float(best[anchor]), float(classes[anchor]), *map(float, boxes[anchor])))
    return kept[: settings.max_detections]


def overlap(first: Any, second: Any) -> float:
    width = max(0.0, min(first[2], second[2]) - max(first[0], second[0]))
    height = max(0.0, min(first[3], second[3]) - max(first[1], second[1]))
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (first, second)]
    return float(width * height / (sum(areas) - width * height))


def assert_same(outputs: list[npt.NDArray[Any]], image: int, expected: list[tuple[float, ...]]) -> None:
    count, boxes, scores, classes = (output[image] for output in outputs)
    assert count[0] == len(expected)
    found = sorted((-s, c, *b) for s, c, b in zip(scores, classes, boxes.tolist(), strict=True) if s > 0)
    wanted = sorted((-row[0], *row[1:]) for row in expected)
    np.testing.assert_allclose(np.array(found).reshape(-1, 6), np.array(wanted).reshape(-1, 6), rtol=1e-5)
    assert (np.diff(scores) <= 0).all()
    assert not boxes[len(expected) :].any()
    assert not scores[len(expected) :].any()
    assert not classes[len(expected) :].any()


def random_boxes(rng: np.random.Generator, images: int, anchors: int, spread: float) -> Float32:
    start = rng.uniform(0, spread, (images, anchors, 2))
    end = start + rng.uniform(20, 90, (images, anchors, 2))
    return np.asarray(np.concatenate([start, end], -1), np.float32)


@pytest.mark.parametrize("anchors", [7, 60, 240])
def test_random_boxes_give_what_numpy_gives_for_every_image_of_a_batch(anchors: int) -> None:
    rng = np.random.default_rng(anchors)
    boxes = random_boxes(rng, 3, anchors, 550)
    scores = rng.uniform(0, 1, (3, anchors, CLASSES)).astype(np.float32) ** 3
    outputs = detect(boxes, scores)
    for image in range(3):
        assert_same(outputs, image, reference(boxes[image], scores[image]))


def test_only_the_best_candidates_enter() -> None:
    few = Suppression(candidates=20)
    rng = np.random.default_rng(3)
    boxes = random_boxes(rng, 1, 80, 4000)
    scores = rng.uniform(0.3, 1, (1, 80, CLASSES)).astype(np.float32)
    outputs = detect(boxes, scores, few)
    assert_same(outputs, 0, reference(boxes[0], scores[0], few))
    assert outputs[0][0, 0] <= 20


def test_types_and_shapes_are_those_of_the_contract() -> None:
    outputs = detect(np.zeros((2, 5, 4), np.float32), np.zeros((2, 5, CLASSES), np.float32))
    assert [output.shape for output in outputs] == [(2, 1), (2, 100, 4), (2, 100), (2, 100)]
    assert [output.dtype for output in outputs] == [np.int32, np.float32, np.float32, np.int32]


def test_no_candidate_gives_zeros() -> None:
    rng = np.random.default_rng(0)
    scores = np.full((2, 30, CLASSES), 0.2, np.float32)
    outputs = detect(random_boxes(rng, 2, 30, 500), scores)
    assert not any(output.any() for output in outputs)


def test_more_than_a_hundred_survivors_are_cut_to_the_best() -> None:
    grid = np.stack(np.meshgrid(np.arange(15) * 40.0, np.arange(15) * 40.0), -1).reshape(1, -1, 2)
    boxes = np.concatenate([grid, grid + 30], -1).astype(np.float32)
    scores = np.random.default_rng(1).uniform(0.3, 1, (1, 225, CLASSES)).astype(np.float32)
    outputs = detect(boxes, scores)
    assert outputs[0][0, 0] == 100
    np.testing.assert_allclose(outputs[2][0], np.sort(scores.max(2)[0])[::-1][:100])
    assert_same(outputs, 0, reference(boxes[0], scores[0]))


def test_two_classes_at_one_spot_both_stay() -> None:
    boxes = np.array([[[10, 10, 60, 60], [10, 10, 60, 60], [11, 10, 60, 60]]], np.float32)
    scores = np.array([[[0.9, 0, 0], [0, 0.8, 0], [0.7, 0, 0]]], np.float32)
    outputs = detect(boxes, scores)
    assert outputs[0][0, 0] == 2
    assert outputs[3][0, :2].tolist() == [0, 1]


def test_of_equal_scores_at_one_spot_one_stays() -> None:
    boxes = np.repeat(np.array([[[10, 10, 60, 60]]], np.float32), 6, axis=1)
    scores = np.full((1, 6, CLASSES), 0.0, np.float32)
    scores[..., 2] = 0.75
    outputs = detect(boxes, scores)
    assert outputs[0][0, 0] == 1
    assert outputs[3][0, 0] == 2


def test_an_unknown_output_is_refused_by_name() -> None:
    with pytest.raises(GraphError, match="'logits'"):
        add_end2end(raw_model(5), "boxes", "logits")
