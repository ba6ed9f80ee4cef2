"""From the outputs of each head to boxes and scores, or to final rows, as nodes of the graph."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper

from models.detectors.graph import GraphWriter, set_outputs
from models.detectors.heads import STRIDES, Array, Head, cells_of


def has_final_rows(head: Head) -> bool:
    """Whether the detector suppresses by itself."""
    return head.name in ("yolov10", "end2end")


def expose_boxes(model: onnx.ModelProto, head: Head, side: int) -> tuple[str, str]:
    """Makes boxes float32 [N, A, 4], xyxy in pixels, and scores float32 [N, A, classes] the outputs; their names.

    For heads without final rows.
    """
    writer = GraphWriter(model)
    output, classes = writer.as_float(head.outputs[0]), head.classes or 0
    if head.name == "yolov8":
        output = writer.add("Transpose", output, perm=[0, 2, 1])
        scores = writer.columns(output, 4, 4 + classes)
    else:
        objectness = writer.columns(output, 4, 5)
        scores = writer.add("Mul", objectness, writer.columns(output, 5, 5 + classes))
    centres, sizes = writer.columns(output, 0, 2), writer.columns(output, 2, 4)
    if head.name == "yolox-raw":
        cells, strides = _grid(side)
        stride = writer.constant(strides, np.float32)
        centres = writer.add("Mul", writer.add("Add", centres, writer.constant(cells, np.float32)), stride)
        sizes = writer.add("Mul", writer.add("Exp", sizes), stride)
    return name_outputs(writer, corners(writer, centres, sizes), scores)


def corners(writer: GraphWriter, centres: str, sizes: str) -> str:
    """Centres and sizes [N, A, 2] -> xyxy [N, A, 4]."""
    half = writer.add("Mul", sizes, writer.constant(0.5, np.float32))
    return writer.add("Concat", writer.add("Sub", centres, half), writer.add("Add", centres, half), axis=2)


def name_outputs(writer: GraphWriter, boxes: str, scores: str) -> tuple[str, str]:
    """Makes two values the outputs of the graph; their names."""
    names = (boxes, scores)
    set_outputs(writer.graph, [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in names])
    return names


def expose_rows(model: onnx.ModelProto, head: Head) -> tuple[str, str, str]:
    """Boxes float32 [N, R, 4], scores float32 [N, R] and classes int64 [N, R]; rows that are none score 0.

    For heads with final rows. The names of the values, which are no outputs.
    """
    writer = GraphWriter(model)
    if head.name == "yolov10":
        rows = writer.as_float(head.outputs[0])
        boxes, last = writer.columns(rows, 0, 4), writer.constant([2])
        scores = writer.add("Squeeze", writer.columns(rows, 4, 5), last)
        classes = writer.add("Squeeze", writer.columns(rows, 5, 6), last)
    else:
        count, boxes, scores, classes = (writer.as_float(name) for name in head.outputs)
        one = writer.constant(1, np.int64)
        length = writer.add("Squeeze", writer.length(scores, 1))
        ordinal = writer.as_float(writer.add("Range", writer.constant(0, np.int64), length, one))
        real = writer.add("Less", ordinal, writer.add("Reshape", count, writer.constant([-1, 1])))
        # Rows beyond the count hold whatever the engine left there.
        scores = writer.add("Where", real, scores, writer.constant(0.0, np.float32))
    return boxes, scores, writer.cast(writer.add("Round", classes), TensorProto.INT64)


def _grid(side: int) -> tuple[Array, Array]:
    """Of each anchor of YOLOX: its cell (x, y) [1, A, 2] and its stride [1, A, 1]."""
    cells, strides = [], []
    for stride in STRIDES:
        length = cells_of(side, stride)
        rows, columns = np.meshgrid(np.arange(length), np.arange(length), indexing="ij")
        cells.append(np.stack([columns, rows], -1).reshape(1, -1, 2))
        strides.append(np.full((1, length * length, 1), stride))
    return np.concatenate(cells, 1), np.concatenate(strides, 1)
