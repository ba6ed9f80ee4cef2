"""Making a graph that was exported for a fixed number of pictures take any number."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import numpy_helper, shape_inference

from models.detectors.errors import GraphError
from models.detectors.heads import Array
from models.detectors.onnx_file import IMAGES
from models.detectors.probe import Float32, takes_any_batch


def with_any_batch(
    model: onnx.ModelProto, fixed: int | None, pictures: Float32, apart: dict[str, Array]
) -> onnx.ModelProto:
    """The model, its Reshape constants rewritten if it needs that; two pictures give what they give apart.

    `fixed`: the number of pictures the exporter's graph takes, None = it says any. Raises GraphError where it does not
    get there.
    """
    if takes_any_batch(model, pictures, apart):
        return model
    rewritten = _free_reshapes(model, fixed or 1)
    if takes_any_batch(rewritten, pictures, apart):
        return rewritten
    raise GraphError(
        f"the detector is made for {fixed or 1} picture(s) a run, and other numbers of pictures give wrong results; "
        "export it with a dynamic batch (`dynamic=True` of Ultralytics, `--dynamic` of YOLOX and YOLOv5, "
        "`dynamic_axes` of torch.onnx.export)"
    )


def _free_reshapes(model: onnx.ModelProto, fixed: int) -> onnx.ModelProto:
    """A copy in which no Reshape fixes the first length where that is the batch."""
    freed = onnx.ModelProto()
    freed.CopyFrom(model)
    graph = freed.graph
    lengths = _first_lengths(model, fixed)
    constants = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant" and node.attribute[0].name == "value":
            constants[node.output[0]] = node.attribute[0].t
    for number, node in enumerate(graph.node):
        if node.op_type != "Reshape" or node.input[1] not in constants:
            continue
        target = numpy_helper.to_array(constants[node.input[1]]).copy()
        literal_zeros = any(attribute.i for attribute in node.attribute)  # allowzero, as new exporters write it
        if (literal_zeros and 0 in target) or not _free(target, lengths.get(node.input[0], 0), fixed):
            continue
        name = f"free_shape_{number}"  # of its own, as several nodes may share the constant
        graph.initializer.append(numpy_helper.from_array(target.astype(np.int64), name))
        node.input[1] = name
        del node.attribute[:]
    return freed


def _free(target: Array, length: int, fixed: int) -> bool:
    """Rewrite the target shape of a Reshape in place where its first length may hold the batch; whether it did.

    `length`: the first length of what is reshaped, with a batch of `fixed`, 0 where it is not known. The new target
    means the same for that batch.
    """
    if not length or target.size == 0 or target[0] <= 0 or target[0] % fixed:
        return False
    if target[0] == length:
        target[0] = 0  # as long as it was
    elif -1 not in target:
        target[0] = -1  # what is left: heads or windows were split off the batch, or merged into it
    else:
        return False
    return True


def _first_lengths(model: onnx.ModelProto, fixed: int) -> dict[str, int]:
    """The first length of every value that shape inference knows, for a batch of `fixed`."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for value in copy.graph.input:
        if value.name == IMAGES:
            value.type.tensor_type.shape.dim[0].dim_value = fixed
    inferred = shape_inference.infer_shapes(copy).graph
    return {
        value.name: int(value.type.tensor_type.shape.dim[0].dim_value)
        for value in (*inferred.value_info, *inferred.input)
        if value.type.tensor_type.shape.dim
    }
