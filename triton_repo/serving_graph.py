"""Graph surgery: an ONNX file of a manifest becomes what Triton serves without Python, with the served tensors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from models.manifest import ModelManifest
from sightlog.errors import SightlogError
from triton_repo import contract
from triton_repo.model_config import Model, TensorSpec

#: Served names of tensors that have another name in the ONNX files of a manifest.
_OUTPUTS = {contract.EMBEDDING: "embeddings"}
_PREFIX = "serving_"
_TYPES = {
    "UINT8": TensorProto.UINT8,
    "INT32": TensorProto.INT32,
    "INT64": TensorProto.INT64,
    "FP32": TensorProto.FLOAT,
}


class ServingGraphError(SightlogError):
    """An ONNX file has not the tensors that the surgery begins from."""


@dataclass(frozen=True)
class PixelInput:
    """How served pixels, uint8 [n, h, w, 3] RGB, become `images`: `models.preprocessing.normalise` as graph nodes."""

    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    std: tuple[float, float, float] = (1.0, 1.0, 1.0)
    value_range: tuple[float, float] = (0.0, 1.0)
    bgr: bool = False


def pixel_input(manifest: ModelManifest, model: str) -> PixelInput | None:
    """What the pixels of a served model go through; None for the text tower."""
    if model == contract.CLIP_IMAGE:
        return PixelInput(manifest.clip.mean, manifest.clip.std)
    if model == contract.DETECTOR:
        detector = manifest.detector
        return PixelInput(value_range=detector.value_range, bgr=detector.colour_order == "bgr")
    return None


def serving_graph(graph: onnx.ModelProto, served: Model, pixels: PixelInput | None) -> onnx.ModelProto:
    """Give `graph` (changed in place, and returned) the inputs and outputs of `served`, pixels prepared inside.

    Raises ServingGraphError where an input or output that it should have is missing.
    """
    body = graph.graph
    (given,) = served.inputs
    renamed = {spec.name: _OUTPUTS.get(spec.name, spec.name) for spec in served.outputs}
    weights = {weight.name for weight in body.initializer}
    found = [value.name for value in body.input if value.name not in weights], {value.name for value in body.output}
    wanted = [given.name if pixels is None else "images"], set(renamed.values())
    if found != wanted:
        raise ServingGraphError(
            f"the ONNX of {served.name} has inputs and outputs {found}, not {wanted}; export or import it again"
        )
    nodes = list(body.node)
    del body.node[:], body.input[:], body.output[:]
    if pixels is not None:
        body.node.extend(_prepare(body, given.name, pixels))
    body.node.extend(nodes)
    for name, old in renamed.items():
        if name != old:
            body.node.append(helper.make_node("Identity", [old], [name]))
    body.input.append(_value(given))
    body.output.extend(_value(spec) for spec in served.outputs)
    return graph


def _prepare(body: onnx.GraphProto, pixels: str, how: PixelInput) -> list[onnx.NodeProto]:
    """Nodes from the served pixels to `images`; their constants go into `body`."""

    def constant(name: str, value: npt.NDArray[np.generic]) -> str:
        body.initializer.append(numpy_helper.from_array(value, _PREFIX + name))
        return _PREFIX + name

    low, high = how.value_range
    mean, std = np.array(how.mean), np.array(how.std)
    factor = constant("factor", ((high - low) / 255 / std).astype(np.float32))
    offset = constant("offset", ((low - mean) / std).astype(np.float32))
    # The cast comes first, because TensorRT can do nothing else to bytes.
    chain: list[tuple[str, list[str], dict[str, Any]]] = [("Cast", [], {"to": TensorProto.FLOAT})]
    if how.bgr:
        chain.append(("Gather", [constant("bgr", np.array([2, 1, 0]))], {"axis": 3}))
    chain += [("Mul", [factor], {}), ("Add", [offset], {}), ("Transpose", [], {"perm": [0, 3, 1, 2]})]
    nodes, current = [], pixels
    for operator, constants, attributes in chain:
        result = "images" if operator == "Transpose" else _PREFIX + operator.lower()
        nodes.append(helper.make_node(operator, [current, *constants], [result], **attributes))
        current = result
    return nodes


def _value(spec: TensorSpec) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(spec.name, _TYPES[spec.dtype], ["batch", *spec.dims])
