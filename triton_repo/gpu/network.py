"""An ONNX file as a PyTorch graph, with all shapes but the length of the batch known."""

from __future__ import annotations

import hashlib
import math
import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import torch
from onnx import NodeProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from torch import Tensor, fx
from torch._subclasses.fake_tensor import FakeTensorMode

from sightlog.errors import SightlogError
from triton_repo.gpu.fusions import with_activations
from triton_repo.gpu.operators import KNOWN_INPUTS, MATRIX_INPUTS, OPERATORS, is_depthwise

Array = npt.NDArray[Any]

#: The length of the batch while a graph is written: a prime that no other size is a multiple of, so that every number
#: that comes from it is known.
_BATCH = 97


class UnsupportedGraphError(SightlogError):
    """The ONNX file does something that the GPU profile has no code for."""


@dataclass(frozen=True)
class Precision:
    """Of what the graph holds. `matrices`: weights and what is multiplied with them; `rest`: other constants.

    A detector's grid and strides must stay float32: half a pixel is all that half precision can tell at 640.
    """

    matrices: torch.dtype
    rest: torch.dtype


@dataclass(frozen=True)
class _Traced:
    """A value that depends on the input: as a node of the graph that is written, and as an example."""

    node: fx.Node
    example: Tensor


class Network:
    """The graph of one file; its weights lie on `device` once, whatever is written out of it."""

    def __init__(self, path: Path, precision: Precision, device: torch.device) -> None:
        """Raises UnsupportedGraphError for operators that are not known here."""
        model = onnx.load(str(path))
        self._path, self._precision, self._device = path, precision, device
        constants = _constants(model.graph)
        self._outputs = [output.name for output in model.graph.output]
        nodes = without_dynamic_suppression(list(model.graph.node), constants)
        self._nodes = with_activations(nodes, constants, self._outputs)
        self._given = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
        self._opset = next(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx"))
        self._weights: dict[tuple[Any, ...], Tensor] = {}

    @torch.no_grad()
    def written(self, inputs: Mapping[str, Tensor], *, any_length: bool = False) -> fx.GraphModule:
        """A module for inputs like these, by name; it answers with a tuple.

        `any_length`: the first axis may have any length, else that of these inputs.
        Raises UnsupportedGraphError where the shape of something depends on what a picture shows, or, with
        `any_length`, on the length in a way that a graph cannot leave open.
        """
        mode = FakeTensorMode()  # nothing is computed, only shapes are
        with mode:
            examples = {
                name: torch.empty_strided(
                    (_BATCH if any_length else len(rows), *rows.shape[1:]),
                    rows.stride(),
                    dtype=rows.dtype,
                    device=rows.device,
                )
                for name, rows in inputs.items()
            }
        writing = _Writing(self, examples, mode, any_length=any_length)
        for node in self._nodes:
            writing.add(node)
        return writing.finished(self._outputs)

    def weight(self, value: Array, *, matrix: bool) -> Tensor:
        """A constant of the graph on the device; equal ones, of whatever batch size, lie there once."""
        dtype = self._precision.matrices if matrix else self._precision.rest
        tensor = torch.from_numpy(np.array(value, order="C"))
        if tensor.is_floating_point():
            tensor = tensor.to(dtype)
        key = (tensor.dtype, value.shape, matrix, hashlib.sha1(value.tobytes(), usedforsecurity=False).digest())
        if key not in self._weights:
            # Convolutions run on pixels whose channels lie together.
            layout = torch.channels_last if tensor.ndim == 4 and matrix else torch.contiguous_format
            self._weights[key] = tensor.to(self._device).contiguous(memory_format=layout)
        return self._weights[key]

    def on_host(self, node: NodeProto, inputs: Sequence[Array | None]) -> list[Array]:
        """What a node computes from constants, by ONNX's own reference."""
        feeds = {name: value for name, value in zip(node.input, inputs, strict=True) if name}
        return list(ReferenceEvaluator(node, opsets={"": self._opset}).run(None, feeds))

    def unsupported(self, node: NodeProto, why: str) -> UnsupportedGraphError:
        """Names the place."""
        return self.refused(f"{node.op_type} {node.name or node.output[0]!r}: {why}")

    def refused(self, why: str) -> UnsupportedGraphError:
        """Names the file."""
        return UnsupportedGraphError(
            f"{self._path.name}: {why}; serve these models with the profile 'cpu' or 'onnxruntime'"
        )

    def given(self, name: str) -> Array | None:
        """An initializer of the file."""
        return self._given.get(name)


class _Writing:
    """One pass over the nodes: what is known becomes a number, the rest a call in an fx graph."""

    def __init__(
        self, network: Network, inputs: Mapping[str, Tensor], mode: FakeTensorMode, *, any_length: bool
    ) -> None:
        self._network, self._mode, self._any_length = network, mode, any_length
        self._graph = fx.Graph()
        self._weights = torch.nn.Module()
        self._names: dict[int, str] = {}
        self._values: dict[str, Array | _Traced] = {
            name: _Traced(self._graph.placeholder(name), example) for name, example in inputs.items()
        }

    def add(self, node: NodeProto) -> None:
        inputs = [self._value(name) for name in node.input]
        traced = any(isinstance(value, _Traced) for value in inputs)
        if node.op_type in ("Shape", "Size") and traced:
            (value,) = inputs
            assert isinstance(value, _Traced)
            inputs = [np.broadcast_to(np.False_, tuple(value.example.shape))]
            traced = False
        if not traced:
            results: Sequence[Any] = self._network.on_host(node, inputs)
        else:
            results = self._called(node, inputs)
        for name, result in zip(node.output, results, strict=False):
            self._values[name] = result

    def finished(self, outputs: Sequence[str]) -> fx.GraphModule:
        results = []
        for name in outputs:
            value = self._values[name]
            if not isinstance(value, _Traced):
                raise self._network.refused(f"its output {name!r} does not depend on the picture")
            results.append(value.node)
        self._graph.output(tuple(results))
        self._graph.eliminate_dead_code()
        return fx.GraphModule(self._weights, self._graph)

    def _called(self, node: NodeProto, inputs: Sequence[Any]) -> list[_Traced]:
        attributes = {entry.name: _plain(helper.get_attribute_value(entry)) for entry in node.attribute}
        op_type = node.op_type
        if (
            op_type == "Conv"
            and isinstance(inputs[1], np.ndarray)
            and is_depthwise(inputs[1].shape, len(inputs), attributes)
        ):
            op_type = "DepthwiseConv"
            attributes["kernel_shape"] = list(inputs[1].shape[2:])
            inputs = [inputs[0], inputs[1].reshape(len(inputs[1]), -1).T, inputs[2]]
        function = OPERATORS.get(op_type)
        if function is None:
            raise self._network.unsupported(node, "an operator that is not known here")
        if attributes.get("auto_pad", "NOTSET") != "NOTSET":
            raise self._network.unsupported(node, "pads must be told, not found")
        arguments = [self._argument(node, op_type, place, value, inputs) for place, value in enumerate(inputs)]
        nodes = [value.node if isinstance(value, _Traced) else value for value in arguments]
        examples = [value.example if isinstance(value, _Traced) else value for value in arguments]
        try:
            with self._mode:
                result = function(*examples, **attributes)
        except (AssertionError, TypeError, KeyError, ValueError, IndexError, RuntimeError) as error:
            raise self._network.unsupported(node, str(error)) from error
        call = self._graph.call_function(function, tuple(nodes), attributes)
        if isinstance(result, Tensor):
            return [_Traced(call, result)]
        return [
            _Traced(self._graph.call_function(operator.getitem, (call, place)), part)
            for place, part in enumerate(result)
        ]

    def _argument(self, node: NodeProto, op_type: str, place: int, value: Any, inputs: Sequence[Any]) -> Any:
        if value is None:
            return None
        if place in KNOWN_INPUTS.get(op_type, ()):
            if isinstance(value, _Traced):
                raise self._network.unsupported(node, "a shape depends on what the picture shows")
            return self._for_any_batch(node, inputs[0], np.asarray(value).reshape(-1).tolist())
        if isinstance(value, _Traced):
            return value
        if self._any_length and _BATCH in value.shape:
            raise self._network.unsupported(node, "a constant is as long as the batch")
        matrix = place in MATRIX_INPUTS.get(op_type, ())
        if value.size == 1 and value.dtype.kind == "f" and not matrix:
            # As a scalar it takes the precision of what it meets.
            rank = max(other.example.ndim for other in inputs if isinstance(other, _Traced))
            value = value.reshape(()) if value.ndim <= rank else value
        return self._constant(self._network.weight(value, matrix=matrix))

    def _for_any_batch(self, node: NodeProto, x: Any, numbers: list[Any]) -> tuple[Any, ...]:
        """The numbers with the one that comes from the length of the batch left open."""
        if not self._any_length:
            return tuple(numbers)
        if node.op_type == "Reshape" and -1 in numbers:
            known = [x.example.shape[axis] if number == 0 else number for axis, number in enumerate(numbers)]
            numbers[numbers.index(-1)] = x.example.numel() // -math.prod(known)
        follow = [isinstance(number, int) and number != 0 and number % _BATCH == 0 for number in numbers]
        if any(follow) and (node.op_type not in ("Reshape", "Expand") or sum(follow) > 1):
            raise self._network.unsupported(node, f"{numbers} depends on the length of the batch")
        return tuple(-1 if open_ else number for number, open_ in zip(numbers, follow, strict=True))

    def _constant(self, tensor: Tensor) -> _Traced:
        name = self._names.get(id(tensor))
        if name is None:
            name = self._names[id(tensor)] = f"constant_{len(self._names)}"
            self._weights.register_buffer(name, tensor)
        return _Traced(self._graph.get_attr(name), self._mode.from_tensor(tensor))

    def _value(self, name: str) -> Any:
        if not name:
            return None
        if name not in self._values:
            given = self._network.given(name)
            assert given is not None, f"{name} is used before it is there"
            return given
        return self._values[name]


def without_dynamic_suppression(nodes: Sequence[NodeProto], constants: Mapping[str, Array]) -> list[NodeProto]:
    """The nodes with `NonMaxSuppression` and what scatters its answer replaced by one node of fixed shape.

    Only for what `models.detectors.end2end` writes: candidates in the order of their scores, each of one class.
    `KeepBest`(boxes [N, C, 4], scores by class [N, K, C], scores [N, C]) -> scores of the kept ones, 0 for the others.
    """
    made_by = {output: node for node in nodes for output in node.output}
    replaced: dict[int, NodeProto] = {}
    for node in nodes:
        if node.op_type != "ScatterND":
            continue
        place, values = made_by.get(node.input[1]), made_by.get(node.input[2])
        suppression = made_by.get(place.input[0]) if place and place.input else None
        if suppression and suppression.op_type == "NonMaxSuppression" and values and values.op_type == "GatherND":
            boxes, by_class, _, iou, score = suppression.input
            replaced[id(node)] = helper.make_node(
                "KeepBest",
                [boxes, by_class, values.input[0]],
                list(node.output),
                iou_threshold=float(constants[iou].reshape(())),
                score_threshold=float(constants[score].reshape(())),
            )
    kept = [replaced.get(id(node), node) for node in nodes]
    return _needed(kept, replaced) if replaced else kept


def _needed(nodes: Sequence[NodeProto], replaced: Mapping[int, NodeProto]) -> list[NodeProto]:
    """Without the nodes whose answer was only read by those that were replaced."""
    result: list[NodeProto] = []
    read: set[str] = set()
    for node in reversed(nodes):
        leads_nowhere = node.op_type in {"NonMaxSuppression", "Gather", "GatherND"} and not read & set(node.output)
        if not leads_nowhere:
            result.append(node)
            read |= set(node.input)
    return result[::-1]


def _constants(graph: onnx.GraphProto) -> dict[str, Array]:
    values = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant":
            (value,) = (helper.get_attribute_value(entry) for entry in node.attribute)
            if isinstance(value, onnx.TensorProto):
                values[node.output[0]] = numpy_helper.to_array(value)
    return values


def _plain(value: Any) -> Any:
    return value.decode() if isinstance(value, bytes) else value
