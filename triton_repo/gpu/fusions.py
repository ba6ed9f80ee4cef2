"""What an exporter took apart, put together again: activations, and the convolutions that they follow."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy.typing as npt
from onnx import NodeProto, helper

Array = npt.NDArray[Any]
_TOLERANCE = 1e-3  # of constants, which may have been stored in half precision


def with_activations(
    nodes: Sequence[NodeProto], constants: Mapping[str, Array], outputs: Sequence[str]
) -> list[NodeProto]:
    """The nodes with GELU as one node, or, where a convolution alone feeds it, as its attribute `activation`."""
    return _with_activated_convolutions(_with_gelu(nodes, constants, outputs), outputs)


def _with_gelu(nodes: Sequence[NodeProto], constants: Mapping[str, Array], outputs: Sequence[str]) -> list[NodeProto]:
    """x / sqrt(2) -> Erf -> + 1 -> * x -> * 0.5, as PyTorch's exporter writes it."""
    makers = {output: node for node in nodes for output in node.output}
    readers = _readers(nodes)

    def is_constant(name: str, value: float) -> bool:
        array = constants.get(name)
        return (
            array is not None and array.size == 1 and math.isclose(float(array.reshape(())), value, rel_tol=_TOLERANCE)
        )

    def only_reader(node: NodeProto, op_type: str) -> NodeProto | None:
        reading = readers.get(node.output[0], [])
        alone = len(reading) == 1 and node.output[0] not in outputs
        return reading[0] if alone and reading[0].op_type == op_type else None

    gone: set[int] = set()
    fused: dict[int, NodeProto] = {}
    for erf in nodes:
        divided = makers.get(erf.input[0]) if erf.op_type == "Erf" else None
        if divided is None or divided.op_type != "Div" or not is_constant(divided.input[1], math.sqrt(2)):
            continue
        x = divided.input[0]
        plus = only_reader(erf, "Add") if only_reader(divided, "Erf") else None
        times = only_reader(plus, "Mul") if plus and is_constant(plus.input[1], 1) else None
        half = only_reader(times, "Mul") if times and x in times.input else None
        if plus and times and half and is_constant(half.input[1], 0.5):
            gone |= {id(divided), id(erf), id(plus), id(times)}
            fused[id(half)] = helper.make_node("Gelu", [x], list(half.output), name=half.name)
    return [fused.get(id(node), node) for node in nodes if id(node) not in gone]


def _with_activated_convolutions(nodes: Sequence[NodeProto], outputs: Sequence[str]) -> list[NodeProto]:
    readers = _readers(nodes)
    result: list[NodeProto] = []
    gone: set[int] = set()
    for node in nodes:
        if id(node) in gone:
            continue
        reading = readers.get(node.output[0], []) if node.op_type == "Conv" else []
        if len(reading) == 1 and reading[0].op_type == "Gelu" and node.output[0] not in outputs:
            activated = NodeProto()
            activated.CopyFrom(node)
            activated.output[0] = reading[0].output[0]
            activated.attribute.append(helper.make_attribute("activation", "gelu"))
            gone.add(id(reading[0]))
            node = activated
        result.append(node)
    return result


def _readers(nodes: Sequence[NodeProto]) -> dict[str, list[NodeProto]]:
    readers: dict[str, list[NodeProto]] = {}
    for node in nodes:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    return readers
