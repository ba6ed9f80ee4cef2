"""Graph surgery: appends non-maximum suppression to a detector ONNX, with standard operators and a dynamic batch."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx
from onnx import TensorProto, helper

from models.detectors.errors import GraphError
from models.detectors.graph import GraphWriter, set_outputs

OUTPUTS = ("num_dets", "det_boxes", "det_scores", "det_classes")


@dataclass(frozen=True)
class Suppression:
    """How candidates become detections."""

    max_detections: int = 100
    iou_threshold: float = 0.5  #: of two boxes of one class that overlap more, the lower score goes
    score_threshold: float = 0.25  #: detections score more than this
    candidates: int = 1000  #: best candidates that enter NMS; bounds its quadratic cost


def add_end2end(
    model: onnx.ModelProto, boxes: str, scores: str, settings: Suppression | None = None
) -> onnx.ModelProto:
    """Replaces the outputs of `model` (changed in place, and returned) with the four End2End outputs.

    `boxes`: name of a float32 [N, A, 4] output, xyxy in input pixels. `scores`: float32 [N, A, classes], 0..1.
    New outputs, sorted by score and zero-filled: `num_dets` int32 [N, 1], `det_boxes` float32 [N, K, 4],
    `det_scores` float32 [N, K], `det_classes` int32 [N, K]. An anchor stands for its best class alone.

    Raises GraphError where `boxes` or `scores` is not an output of the model, or its opset is below 13.
    """
    known = [output.name for output in model.graph.output]
    for name in (boxes, scores):
        if name not in known:
            raise GraphError(f"the detector has no output {name!r} (it has {known}); name its boxes and scores")
    settings = settings or Suppression()
    writer = GraphWriter(model)
    limit = writer.constant([settings.candidates])
    count = writer.add("Min", writer.length(scores, 1), limit)
    best, index = writer.top_k(writer.row_maximum(scores), count)
    candidates = writer.rows(boxes, index)
    # Only now the class: ArgMax over all anchors costs as much as everything else here.
    classes = writer.add("ArgMax", writer.rows(scores, index), axis=2, keepdims=0)
    kept = _suppress(writer, candidates, best, classes, writer.length(scores, 2), settings)
    _write_detections(writer, candidates, kept, classes, settings.max_detections)
    return model


def add_selection(
    model: onnx.ModelProto, boxes: str, scores: str, classes: str, settings: Suppression
) -> onnx.ModelProto:
    """Replaces the outputs with the End2End ones for rows that need no suppression, in any order.

    `boxes`: float32 [N, R, 4], xyxy in input pixels; `scores`: float32 [N, R]; `classes`: int64 [N, R].
    """
    writer = GraphWriter(model)
    good = writer.add("Greater", scores, writer.constant(settings.score_threshold, np.float32))
    kept = writer.add("Where", good, scores, writer.constant(0.0, np.float32))
    _write_detections(writer, boxes, kept, classes, settings.max_detections)
    return model


def end2end_outputs(rows: int) -> list[onnx.ValueInfoProto]:
    """What every stored detector answers with."""
    return [
        helper.make_tensor_value_info("num_dets", TensorProto.INT32, ["batch", 1]),
        helper.make_tensor_value_info("det_boxes", TensorProto.FLOAT, ["batch", rows, 4]),
        helper.make_tensor_value_info("det_scores", TensorProto.FLOAT, ["batch", rows]),
        helper.make_tensor_value_info("det_classes", TensorProto.INT32, ["batch", rows]),
    ]


def _suppress(writer: GraphWriter, boxes: str, scores: str, classes: str, depth: str, settings: Suppression) -> str:
    """The scores [N, C] of candidates that survive NMS within their class, 0 for the others.

    Each class gets its own row of scores. Moving the boxes of each class elsewhere instead would be quicker, but
    float32 has no room for it: 80 classes 8192 px apart leave steps of 1/16 px, 1200 classes of 1 px.
    """
    one_hot = writer.add("OneHot", classes, depth, writer.constant([0, 1], np.float32), axis=1)
    by_class = writer.add("Mul", one_hot, writer.unsqueeze(scores, 1))
    selected = writer.add(
        "NonMaxSuppression",
        boxes,
        by_class,
        writer.constant([settings.max_detections]),
        writer.constant([settings.iou_threshold], np.float32),
        writer.constant([settings.score_threshold], np.float32),
    )
    place = writer.add("Gather", selected, writer.constant([0, 2]), axis=1)  # image and candidate
    values = writer.add("GatherND", scores, place)
    nothing = writer.add("Mul", scores, writer.constant(0.0, np.float32))
    return writer.add("ScatterND", nothing, place, values)


def _write_detections(writer: GraphWriter, boxes: str, scores: str, classes: str, rows: int) -> None:
    """The best rows with a score above 0 as the four outputs."""
    # Padding first: TopK(K) is illegal on fewer than K candidates.
    pad_rows = writer.constant([0, 0, 0, rows])
    padded = writer.add("Pad", scores, pad_rows)
    top_scores, index = writer.top_k(padded, writer.constant([rows]))
    top_boxes = writer.rows(writer.add("Pad", boxes, writer.constant([0, 0, 0, 0, rows, 0])), index)
    top_classes = writer.rows(writer.add("Pad", classes, pad_rows), index)

    real = writer.add("Greater", top_scores, writer.constant(0.0, np.float32))
    as_int = writer.cast(real, TensorProto.INT32)
    writer.add("ReduceSum", as_int, writer.constant([1]), keepdims=1, output="num_dets")
    no_box = writer.constant(0.0, np.float32)
    writer.add("Where", writer.unsqueeze(real, 2), top_boxes, no_box, output="det_boxes")
    writer.add("Identity", top_scores, output="det_scores")
    writer.add("Mul", writer.cast(top_classes, TensorProto.INT32), as_int, output="det_classes")
    set_outputs(writer.graph, end2end_outputs(rows))
