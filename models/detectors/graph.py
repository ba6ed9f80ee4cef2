"""Writing into an ONNX graph: nodes and constants under names of their own, for every opset from 13 on."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from models.detectors.errors import GraphError

OLDEST_OPSET = 13  # the first where Unsqueeze and ReduceSum take their axes as an input
_PREFIX = "end2end_"


class GraphWriter:
    """Appends nodes and constants to the graph of a model. Methods return the name of the value that they make."""

    def __init__(self, model: onnx.ModelProto) -> None:
        """Raises GraphError for an opset below 13."""
        self.graph = model.graph
        self.opset = opset_of(model)
        if self.opset < OLDEST_OPSET:
            raise GraphError(f"the graph has opset {self.opset}, the surgery needs {OLDEST_OPSET} or newer")

    def add(self, operator: str, *inputs: str, output: str | None = None, **attributes: Any) -> str:
        """A node with one output; `output` names it where the name matters."""
        return self.add_many(operator, inputs, [output or self._fresh(operator)], **attributes)[0]

    def add_many(
        self, operator: str, inputs: tuple[str, ...], outputs: list[str], *, domain: str = "", **attributes: Any
    ) -> list[str]:
        """A node with the outputs named."""
        node = helper.make_node(operator, inputs, outputs, name=outputs[0] + "_node", domain=domain, **attributes)
        self.graph.node.append(node)
        return outputs

    def constant(self, value: npt.ArrayLike, dtype: type[np.generic] = np.int64) -> str:
        """A constant of that shape and dtype."""
        name = f"{_PREFIX}constant_{len(self.graph.initializer)}"
        self.graph.initializer.append(numpy_helper.from_array(np.asarray(value, dtype), name))
        return name

    def cast(self, value: str, kind: int) -> str:
        """`kind`: a TensorProto type."""
        return self.add("Cast", value, to=kind)

    def as_float(self, value: str) -> str:
        """float32, whatever it was."""
        return self.cast(value, TensorProto.FLOAT)

    def unsqueeze(self, value: str, axis: int) -> str:
        """A dimension of 1 at `axis`."""
        return self.add("Unsqueeze", value, self.constant([axis]))

    def columns(self, value: str, start: int, stop: int) -> str:
        """value [N, A, C] -> [N, A, stop - start]."""
        return self.add("Slice", value, self.constant([start]), self.constant([stop]), self.constant([2]))

    def rows(self, value: str, index: str) -> str:
        """value [N, A, ...] at index int64 [N, K] -> [N, K, ...]."""
        return self.add("GatherND", value, self.unsqueeze(index, 2), batch_dims=1)

    def top_k(self, scores: str, count: str) -> tuple[str, str]:
        """The best `count` of scores [N, A], sorted, equal ones by lower index: values and index [N, K]."""
        outputs = [self._fresh("TopK"), self._fresh("TopKIndex")]
        self.add_many("TopK", (scores, count), outputs, axis=1)
        return outputs[0], outputs[1]

    def row_maximum(self, value: str) -> str:
        """value [N, A, C] -> [N, A]."""
        if self.opset >= 18:  # ReduceMax takes its axes as an input from here on
            return self.add("ReduceMax", value, self.constant([2]), keepdims=0)
        return self.add("ReduceMax", value, axes=[2], keepdims=0)

    def length(self, value: str, axis: int) -> str:
        """int64 [1]: how long `value` is along `axis`."""
        return self.add("Gather", self.add("Shape", value), self.constant([axis]))

    def _fresh(self, operator: str) -> str:
        """A new name: the number of nodes only grows."""
        return f"{_PREFIX}{operator}_{len(self.graph.node)}"


def opset_of(model: onnx.ModelProto) -> int:
    """The version of the standard operators; 0 where the model names none."""
    return max((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), default=0)


def set_outputs(graph: onnx.GraphProto, outputs: list[onnx.ValueInfoProto]) -> None:
    """Replaces the outputs of a graph."""
    del graph.output[:]
    graph.output.extend(outputs)
