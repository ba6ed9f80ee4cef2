"""Reading a detector's ONNX file as its exporter wrote it, and giving its input the form that all detectors share."""

from __future__ import annotations

from pathlib import Path

import onnx
from google.protobuf.message import DecodeError
from onnx import TensorProto, helper, version_converter
from onnx.external_data_helper import load_external_data_for_model

from models.detectors.errors import DetectorFileError, GraphError, first_line
from models.detectors.graph import OLDEST_OPSET, opset_of

IMAGES = "images"
DEFAULT_INPUT_SIZE = 640
#: Where operators come from that onnxruntime brings with it.
_STANDARD_DOMAINS = ("", "ai.onnx")
_KNOWN_DOMAINS = (*_STANDARD_DOMAINS, "ai.onnx.ml", "com.microsoft")
_UPGRADED_OPSET = 17
_OLDEST_IR = 8  # older ones list initializers as inputs or lack operators' types


def read_onnx(path: Path) -> onnx.ModelProto:
    """The whole model, weights in other files included, with opset 13 or newer.

    Raises DetectorFileError where it is no ONNX, cut off, or lacks its weights; GraphError for an opset too old.
    """
    try:
        model = onnx.load(str(path), load_external_data=False)
    except OSError as error:
        raise DetectorFileError(f"{path} cannot be read ({error.strerror}); name an ONNX file") from error
    except DecodeError:
        raise DetectorFileError(f"{path} is no ONNX file, or is cut off or damaged; export or fetch it again") from None
    if not model.graph.node or not opset_of(model):
        raise DetectorFileError(f"{path} holds no ONNX graph: it is empty, cut off or something else; export it again")
    try:
        load_external_data_for_model(model, str(path.parent))
    except (OSError, ValueError, onnx.checker.ValidationError) as error:
        raise DetectorFileError(
            f"{path} keeps its weights in another file that cannot be read ({first_line(error)}); "
            "put that file beside it, or export into one file"
        ) from None
    model.ir_version = max(model.ir_version, _OLDEST_IR)
    return model if opset_of(model) >= OLDEST_OPSET else _upgraded(model, path)


def unify_input(model: onnx.ModelProto, input_size: int | None) -> int:
    """Makes `images` float32 [batch, 3, S, S] the only input (in place), all other names get a prefix. Returns S.

    `input_size` is for graphs that leave height and width open (640 where None). Raises GraphError for other inputs.
    """
    graph = model.graph
    weights = {tensor.name for tensor in graph.initializer}
    inputs = [value for value in graph.input if value.name not in weights]
    if len(inputs) != 1:
        names = ", ".join(value.name for value in inputs) or "none"
        raise GraphError(f"the detector has {len(inputs)} inputs ({names}); wanted is one, the pictures")
    kind = inputs[0].type.tensor_type
    side = _side([int(dim.dim_value) for dim in kind.shape.dim], inputs[0].name, input_size)
    if kind.elem_type not in (TensorProto.FLOAT, TensorProto.FLOAT16):
        found = TensorProto.DataType.Name(kind.elem_type)
        raise GraphError(
            f"the input {inputs[0].name!r} is {found}; export the detector with a float32 or float16 input"
        )
    _prefix_names(graph, "model/")
    # A cast to the type that it has costs nothing: the runtime removes it.
    graph.node.insert(0, helper.make_node("Cast", [IMAGES], [inputs[0].name], to=kind.elem_type))
    del graph.input[:]
    graph.input.append(helper.make_tensor_value_info(IMAGES, TensorProto.FLOAT, ["batch", 3, side, side]))
    del graph.value_info[:]  # shapes of the exporter's batch
    for output in graph.output:
        output.type.tensor_type.ClearField("shape")
    return side


def fixed_batch(model: onnx.ModelProto) -> int | None:
    """How many pictures the exporter's graph takes at once; None where it says that any number."""
    weights = {tensor.name for tensor in model.graph.initializer}
    for value in model.graph.input:
        if value.name not in weights and value.type.tensor_type.shape.dim:
            return int(value.type.tensor_type.shape.dim[0].dim_value) or None
    return None


def unknown_operators(model: onnx.ModelProto) -> list[str]:
    """Operators of the graph that neither the standard, nor onnxruntime, nor the file itself defines."""
    own = {(function.domain, function.name) for function in model.functions}
    return sorted(
        {
            f"{node.domain}::{node.op_type}" if node.domain else node.op_type
            for node in model.graph.node
            if (node.domain, node.op_type) not in own
            and (
                node.domain not in _KNOWN_DOMAINS
                or (node.domain in _STANDARD_DOMAINS and not onnx.defs.has(node.op_type))
            )
        }
    )


def _upgraded(model: onnx.ModelProto, path: Path) -> onnx.ModelProto:
    try:
        return version_converter.convert_version(model, _UPGRADED_OPSET)
    except Exception as error:  # the converter raises whatever its C++ part threw
        raise GraphError(
            f"{path} has opset {opset_of(model)}, which cannot be brought to {_UPGRADED_OPSET} ({first_line(error)}); "
            f"export it with opset {_UPGRADED_OPSET}"
        ) from None


def _side(dims: list[int], name: str, input_size: int | None) -> int:
    """The side of the square input; dims: 0 where the graph leaves a length open."""
    if len(dims) != 4 or dims[1] not in (0, 3):
        raise GraphError(f"the input {name!r} has dimensions {dims}; wanted are pictures as [batch, 3, height, width]")
    height, width = dims[2:]
    if height != width:
        raise GraphError(f"the input {name!r} is {height} high and {width} wide; export the detector with a square one")
    if height and input_size not in (None, height):
        raise GraphError(f"the input {name!r} is {height} pixels square, not {input_size}; leave --input-size out")
    return height or input_size or DEFAULT_INPUT_SIZE


def _prefix_names(graph: onnx.GraphProto, prefix: str) -> None:
    """Every name, so that none meets those of the surgery; onnx.compose forgets some inside branches."""
    for node in graph.node:
        node.name = node.name and prefix + node.name
        node.input[:] = [name and prefix + name for name in node.input]
        node.output[:] = [name and prefix + name for name in node.output]
        for attribute in node.attribute:
            for branch in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
                _prefix_names(branch, prefix)
    for value in (*graph.input, *graph.output, *graph.value_info, *graph.initializer):
        value.name = prefix + value.name
    for sparse in graph.sparse_initializer:
        sparse.values.name = prefix + sparse.values.name
    del graph.quantization_annotation[:]
