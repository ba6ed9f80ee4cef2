"""Graph surgery: appends non-maximum suppression to a detector ONNX, with standard operators and a dynamic batch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from sightlog.errors import SightlogError

OUTPUTS = ("num_dets", "det_boxes", "det_scores", "det_classes")
_PREFIX = "end2end_"


class GraphError(SightlogError):
    """The graph does not have the outputs that the surgery needs."""


@dataclass(frozen=True)
class Suppression:
    """How candidates become detections."""

    max_detections: int = 100
    iou_threshold: float = 0.5  #: of two boxes of one class that overlap more, the lower score goes
    score_threshold: float = 0.25
    candidates: int = 1000  #: best candidates that enter NMS; bounds its quadratic cost
    class_offset: float = 8192.0  #: pixels between classes, more than any input is wide, so classes never meet


def add_end2end(
    model: onnx.ModelProto, boxes: str, scores: str, settings: Suppression | None = None
) -> onnx.ModelProto:
    """Replaces the outputs of `model` (changed in place, and returned) with the four End2End outputs.

    `boxes`: name of a float32 [N, A, 4] output, xyxy in input pixels. `scores`: float32 [N, A, classes], 0..1.
    New outputs, sorted by score and zero-filled: `num_dets` int32 [N, 1], `det_boxes` float32 [N, K, 4],
    `det_scores` float32 [N, K], `det_classes` int32 [N, K]. Needs opset 13 to 17.

    Raises GraphError where `boxes` or `scores` is not an output of the model.
    """
    known = [output.name for output in model.graph.output]
    for name in (boxes, scores):
        if name not in known:
            raise GraphError(f"the detector has no output {name!r} (it has {known}); name its boxes and scores")
    settings = settings or Suppression()
    surgery = _Surgery(model.graph)
    best_boxes, best_scores, best_classes = _best_candidates(surgery, boxes, scores, settings)
    kept_scores = _suppress(surgery, best_boxes, best_scores, best_classes, settings)
    _select(surgery, best_boxes, kept_scores, best_classes, settings)
    del model.graph.output[:]
    k = settings.max_detections
    model.graph.output.extend(
        [
            helper.make_tensor_value_info("num_dets", TensorProto.INT32, ["batch", 1]),
            helper.make_tensor_value_info("det_boxes", TensorProto.FLOAT, ["batch", k, 4]),
            helper.make_tensor_value_info("det_scores", TensorProto.FLOAT, ["batch", k]),
            helper.make_tensor_value_info("det_classes", TensorProto.INT32, ["batch", k]),
        ]
    )
    return model


class _Surgery:
    """Adds nodes and constants to a graph under names of their own."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self._graph = graph

    def constant(self, name: str, value: npt.ArrayLike, dtype: type[np.generic]) -> str:
        self._graph.initializer.append(numpy_helper.from_array(np.asarray(value, dtype), _PREFIX + name))
        return _PREFIX + name

    def node(self, operator: str, inputs: list[str], *outputs: str, **attributes: Any) -> str:
        """Returns the first output. Names of final outputs stay as they are, others get the prefix."""
        names = [name if name in OUTPUTS else _PREFIX + name for name in outputs]
        self._graph.node.append(helper.make_node(operator, inputs, names, name=names[0] + "_node", **attributes))
        return names[0]


def _best_candidates(surgery: _Surgery, boxes: str, scores: str, settings: Suppression) -> tuple[str, str, str]:
    """Best class of each anchor, then the anchors with the best scores: boxes, scores, classes, sorted."""
    best = surgery.node("ReduceMax", [scores], "best", axes=[2], keepdims=0)
    classes = surgery.node("ArgMax", [scores], "class", axis=2, keepdims=0)
    shape = surgery.node("Shape", [best], "shape")
    anchors = surgery.node("Gather", [shape, surgery.constant("anchor_axis", [1], np.int64)], "anchors")
    limit = surgery.constant("candidates", [settings.candidates], np.int64)
    count = surgery.node("Min", [anchors, limit], "candidate_count")
    top_scores = surgery.node("TopK", [best, count], "top_scores", "top_index", axis=1)
    index = _PREFIX + "top_index"
    top_classes = surgery.node("GatherElements", [classes, index], "top_classes", axis=1)
    surgery.constant("last_axis", [2], np.int64)
    surgery.constant("four_columns", [1, 1, 4], np.int64)
    return _gather_boxes(surgery, boxes, index, "top"), top_scores, top_classes


def _gather_boxes(surgery: _Surgery, boxes: str, index: str, stem: str) -> str:
    """boxes [N, A, 4] at index [N, K] -> [N, K, 4]."""
    column = surgery.node("Unsqueeze", [index, _PREFIX + "last_axis"], f"{stem}_column")
    columns = surgery.node("Expand", [column, _PREFIX + "four_columns"], f"{stem}_columns")
    return surgery.node("GatherElements", [boxes, columns], f"{stem}_boxes", axis=1)


def _suppress(surgery: _Surgery, boxes: str, scores: str, classes: str, settings: Suppression) -> str:
    """The scores of candidates that survive NMS within their class, 0 for the others: [N, candidates]."""
    as_float = surgery.node("Cast", [classes], "class_float", to=TensorProto.FLOAT)
    offset_size = surgery.constant("class_offset", settings.class_offset, np.float32)
    offset = surgery.node("Mul", [as_float, offset_size], "offset")
    offset = surgery.node("Unsqueeze", [offset, _PREFIX + "last_axis"], "offset_column")
    shifted = surgery.node("Add", [boxes, offset], "shifted_boxes")
    one_class = surgery.node("Unsqueeze", [scores, surgery.constant("class_axis", [1], np.int64)], "one_class")
    selected = surgery.node(
        "NonMaxSuppression",
        [
            shifted,
            one_class,
            surgery.constant("keep", [settings.max_detections], np.int64),
            surgery.constant("iou", [settings.iou_threshold], np.float32),
            surgery.constant("score", [settings.score_threshold], np.float32),
        ],
        "selected",
    )
    image_and_anchor = surgery.constant("image_and_anchor", [0, 2], np.int64)
    place = surgery.node("Gather", [selected, image_and_anchor], "selected_place", axis=1)
    values = surgery.node("GatherND", [scores, place], "selected_scores")
    zeros = surgery.node("Mul", [scores, surgery.constant("zero", 0.0, np.float32)], "no_scores")
    return surgery.node("ScatterND", [zeros, place, values], "kept_scores")


def _select(surgery: _Surgery, boxes: str, kept_scores: str, classes: str, settings: Suppression) -> None:
    """The best survivors as the four outputs. Padding first: TopK(K) is illegal on fewer than K candidates."""
    k = settings.max_detections
    pad_rows = surgery.constant("pad_rows", [0, 0, 0, k], np.int64)
    pad_boxes = surgery.constant("pad_boxes", [0, 0, 0, 0, k, 0], np.int64)
    padded_scores = surgery.node("Pad", [kept_scores, pad_rows], "padded_scores")
    limit = surgery.constant("detections", [k], np.int64)
    det_scores = surgery.node("TopK", [padded_scores, limit], "det_scores", "det_index", axis=1)
    index = _PREFIX + "det_index"
    padded_classes = surgery.node("Pad", [classes, pad_rows], "padded_classes")
    all_classes = surgery.node("GatherElements", [padded_classes, index], "all_classes", axis=1)
    padded_boxes = surgery.node("Pad", [boxes, pad_boxes], "padded_boxes")
    all_boxes = _gather_boxes(surgery, padded_boxes, index, "final")

    real = surgery.node("Greater", [det_scores, _PREFIX + "zero"], "real")
    real_int = surgery.node("Cast", [real], "real_int", to=TensorProto.INT32)
    real_float = surgery.node("Cast", [real], "real_float", to=TensorProto.FLOAT)
    surgery.node("ReduceSum", [real_int, _PREFIX + "class_axis"], "num_dets", keepdims=1)
    column = surgery.node("Unsqueeze", [real_float, _PREFIX + "last_axis"], "real_column")
    surgery.node("Mul", [all_boxes, column], "det_boxes")
    class_int = surgery.node("Cast", [all_classes], "class_int", to=TensorProto.INT32)
    surgery.node("Mul", [class_int, real_int], "det_classes")
