"""Halves ONNX files: weights are stored as float16, and inference stays float32."""

from __future__ import annotations

import math

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

_FP16_FROM = 256  # values; smaller tensors stay float32: biases and norms gain nothing


def store_weights_as_fp16(model: onnx.ModelProto) -> None:
    """Large float32 weights become float16 with a Cast to float32, which the runtime folds as it loads the file."""
    graph = model.graph
    casts = []
    for tensor in graph.initializer:
        if tensor.data_type == TensorProto.FLOAT and math.prod(tensor.dims) >= _FP16_FROM:
            wide = tensor.name
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float16), wide + "_fp16"))
            casts.append(helper.make_node("Cast", [wide + "_fp16"], [wide], to=TensorProto.FLOAT))
    nodes = [*casts, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)
