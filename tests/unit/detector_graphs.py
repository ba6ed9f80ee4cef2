"""Detectors as other people's exporters write them, small and with answers that are known beforehand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from models.detectors.end2end import OUTPUTS

Array = npt.NDArray[Any]
SIDE = 64
ANCHORS = 84  #: of a 64 pixel input: 8 * 8 + 4 * 4 + 2 * 2


class Exporter:
    """Builds a graph whose answers are tables, partly scaled by a factor that depends on the picture."""

    def __init__(
        self, *, batch: int | str = "batch", side: int | str = SIDE, opset: int = 17, half: bool = False
    ) -> None:
        self.batch, self.side, self.opset = batch, side, opset
        self.kind = TensorProto.FLOAT16 if half else TensorProto.FLOAT
        self.dtype = np.float16 if half else np.float32
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        self.outputs: list[onnx.ValueInfoProto] = []
        weights = self.constant("weights", np.array([[0.2], [0.3], [0.5]], self.dtype))
        self.nodes += [
            helper.make_node("GlobalAveragePool", ["data"], ["averages"]),
            helper.make_node("Flatten", ["averages"], ["flat"]),
            helper.make_node("MatMul", ["flat", weights], ["mean"]),
            helper.make_node("Sigmoid", ["mean"], ["factor"]),
        ]

    def constant(self, name: str, value: Any) -> str:
        self.constants.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def answer(self, name: str, table: Array, *, scaled: Array | float = 1.0, kind: int | None = None) -> None:
        """An output `name` [batch, *table.shape]: table * scaled * factor + table * (1 - scaled)."""
        scaled = np.broadcast_to(scaled, table.shape)
        moving = self.constant(f"{name}_moving", (table * scaled).reshape(1, -1).astype(self.dtype))
        still = self.constant(f"{name}_still", (table * (1 - scaled)).reshape(1, -1).astype(self.dtype))
        first = self.batch if isinstance(self.batch, int) else -1
        shape = self.constant(f"{name}_shape", np.array([first, *table.shape], np.int64))
        self.nodes += [
            helper.make_node("Mul", [moving, "factor"], [f"{name}_scaled"]),
            helper.make_node("Add", [f"{name}_scaled", still], [f"{name}_sum"]),
            helper.make_node("Reshape", [f"{name}_sum", shape], [f"{name}_table"]),
            helper.make_node("Cast", [f"{name}_table"], [name], to=kind or self.kind),
        ]
        self.outputs.append(helper.make_tensor_value_info(name, kind or self.kind, [self.batch, *table.shape]))

    def model(self, names: str | None = None) -> onnx.ModelProto:
        """The model; `names` goes into its metadata."""
        pictures = helper.make_tensor_value_info("data", self.kind, [self.batch, 3, self.side, self.side])
        graph = helper.make_graph(self.nodes, "exported", [pictures], self.outputs, self.constants)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", self.opset)], ir_version=8)
        if names is not None:
            helper.set_model_props(model, {"names": names})
        return model


def factor(pictures: Array) -> Array:
    """What tables are scaled with: pictures [n, 3, h, w] -> [n]."""
    mean = pictures.mean((2, 3)) @ np.array([0.2, 0.3, 0.5], np.float32)
    return np.asarray(1 / (1 + np.exp(-mean)), np.float32)


def anchors_table(classes: int, anchors: int = ANCHORS, *, side: int = SIDE, objectness: bool = False) -> Array:
    """Rows (cx, cy, w, h, [objectness,] class scores) spread over the picture, float32 [anchors, 4|5 + classes]."""
    rng = np.random.default_rng(classes)
    boxes = np.concatenate([rng.uniform(8, side - 8, (anchors, 2)), rng.uniform(6, 30, (anchors, 2))], 1)
    scores = rng.uniform(0, 1, (anchors, classes + objectness)) ** (0.5 if objectness else 2)
    return np.asarray(np.concatenate([boxes, scores], 1), np.float32)


def rows_table(rows: int, classes: int, *, side: int = SIDE) -> Array:
    """Rows (x1, y1, x2, y2, score, class), best first, float32 [rows, 6]."""
    rng = np.random.default_rng(rows)
    start = rng.uniform(0, side / 2, (rows, 2))
    scores = np.sort(rng.uniform(0, 1, (rows, 1)), axis=0)[::-1]
    columns = [start, start + rng.uniform(4, 30, (rows, 2)), scores, rng.integers(0, classes, (rows, 1))]
    return np.asarray(np.concatenate(columns, 1), np.float32)


def run(file: Path, pictures: Array) -> dict[str, Array]:
    """The four outputs by name."""
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    return dict(zip(OUTPUTS, session.run(list(OUTPUTS), {"images": pictures}), strict=True))
