"""Each ONNX operator alone against onnxruntime: the same values, or a refusal, and never other values."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch", reason="needs PyTorch: pip install 'sightlog[stack,gpu]'")

import numpy as np
import onnx
import torch
from onnx import TensorProto

from tests.gpu.small_graphs import assert_same_as_onnxruntime, network, noise, one_node
from triton_repo.gpu.network import UnsupportedGraphError

Array = Any
ROW = np.zeros((4, 6, 8), np.float32)
LINE = np.zeros(8, np.float32)


def f(*values: float) -> Array:
    return np.array(values, np.float32)


def i(*values: int) -> Array:
    return np.array(values, np.int64)


def weights(*shape: int) -> Array:
    return np.random.default_rng(1).normal(0, 1, shape).astype(np.float32)


#: What must be there: operators that imported detectors and towers contain.
SERVED: dict[str, onnx.ModelProto] = {
    **{
        op_type: one_node(op_type, ROW)
        for op_type in (
            *("Abs", "Cos", "Erf", "Exp", "Floor", "GlobalAveragePool", "HardSwish", "Identity", "LeakyRelu", "Neg"),
            *("Relu", "Sigmoid", "Sin", "Softmax", "Softplus", "Tanh", "Flatten", "HardSigmoid"),
        )
    },
    **{f"{op_type} with a number": one_node(op_type, ROW, f(0.3)) for op_type in ("Add", "Sub", "Mul", "Div", "Pow")},
    **{f"{op_type} with a row": one_node(op_type, ROW, weights(6, 1)) for op_type in ("Add", "Max", "Min")},
    "Greater": one_node("Greater", ROW, f(0.5), kind=TensorProto.BOOL),
    "Conv": one_node("Conv", ROW, weights(5, 4, 3, 3), weights(5), pads=[1, 1, 1, 1], strides=[2, 1]),
    "Conv without bias": one_node("Conv", ROW, weights(5, 4, 3, 3)),
    "Conv with uneven pads": one_node("Conv", ROW, weights(5, 4, 3, 3), pads=[0, 1, 1, 0]),
    "Conv in groups": one_node("Conv", ROW, weights(6, 2, 3, 3), weights(6), group=2, dilations=[2, 2]),
    "pointwise Conv": one_node("Conv", ROW, weights(5, 4, 1, 1), weights(5)),
    "pointwise Conv without bias": one_node("Conv", ROW, weights(5, 4, 1, 1)),
    "depthwise Conv": one_node("Conv", ROW, weights(8, 1, 3, 3), weights(8), group=4, pads=[1] * 4, strides=[2, 2]),
    "depthwise Conv without pads": one_node("Conv", ROW, weights(4, 1, 3, 3), weights(4), group=4),
    "depthwise Conv of a rectangle": one_node("Conv", ROW, weights(4, 1, 1, 3), weights(4), group=4),
    "Conv of a line": one_node("Conv", ROW[0], weights(5, 6, 3), weights(5), pads=[1, 1]),
    "ConvTranspose": one_node("ConvTranspose", ROW, weights(4, 3, 2, 2), weights(3), strides=[2, 2]),
    "MaxPool": one_node("MaxPool", ROW, kernel_shape=[5, 5], strides=[1, 1], pads=[2, 2, 2, 2]),
    "MaxPool without strides": one_node("MaxPool", ROW, kernel_shape=[2, 2]),
    "AveragePool": one_node("AveragePool", ROW, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1]),
    "AveragePool without strides": one_node("AveragePool", ROW, kernel_shape=[3, 3]),
    "AveragePool with pads": one_node(
        "AveragePool", ROW, kernel_shape=[3, 3], strides=[1, 1], pads=[1, 1, 1, 1], count_include_pad=1
    ),
    "BatchNormalization": one_node(
        "BatchNormalization", ROW, weights(4), weights(4), weights(4), np.abs(weights(4)), epsilon=1e-3
    ),
    "LayerNormalization": one_node("LayerNormalization", ROW, weights(8), weights(8), axis=-1),
    "LayerNormalization of two axes": one_node("LayerNormalization", ROW, weights(6, 8), weights(6, 8), axis=-2),
    "Gemm": one_node("Gemm", LINE, weights(5, 8), weights(5), transB=1, alpha=0.5, beta=2.0),
    "MatMul": one_node("MatMul", ROW, weights(8, 3)),
    "Clip": one_node("Clip", ROW, f(0.2).reshape(()), f(0.7).reshape(())),
    "Clip above": one_node("Clip", ROW, None, f(0.7).reshape(())),
    "Concat": one_node("Concat", ROW, axis=2),
    "Expand": one_node("Expand", ROW[:, :1], i(1, 1, 5, 1)),
    "Gather": one_node("Gather", ROW, i(2, 0, -1), axis=2),
    "Gather of one": one_node("Gather", ROW, i(2), axis=2),
    "Gather of a number": one_node("Gather", ROW, np.array(2), axis=1),
    "Gather of a table": one_node("Gather", ROW, i(0, 1, 2, 3).reshape(2, 2), axis=-1),
    "OneHot": one_node("OneHot", np.zeros(5, np.int64), np.array(9), f(0, 1), axis=1),
    "OneHot with other values": one_node("OneHot", np.zeros(5, np.int64), np.array(9), f(-1, 2)),
    "Pad": one_node("Pad", ROW, i(0, 0, 1, 0, 0, 0, 2, 3), f(0.4).reshape(())),
    "Pad by reflection": one_node("Pad", ROW, i(0, 0, 1, 0, 0, 0, 2, 3), mode="reflect"),
    "ReduceL2": one_node("ReduceL2", ROW, axes=[-1]),
    "ReduceMax": one_node("ReduceMax", ROW, axes=[1, 3], keepdims=0),
    "ReduceMax of opset 18": one_node("ReduceMax", ROW, i(2), keepdims=0, opset=18),
    "ReduceMean": one_node("ReduceMean", ROW, axes=[2, 3]),
    "ReduceMin": one_node("ReduceMin", ROW, axes=[2]),
    "ReduceSum": one_node("ReduceSum", ROW, i(1), keepdims=0),
    "Reshape": one_node("Reshape", ROW, i(0, 2, -1, 8)),
    "Reshape of the rest": one_node("Reshape", ROW, i(-1, 4, 48)),
    "Resize": one_node(
        "Resize",
        ROW,
        None,
        f(1, 1, 2, 2),
        mode="nearest",
        coordinate_transformation_mode="asymmetric",
        nearest_mode="floor",
    ),
    "Resize between": one_node("Resize", ROW, None, f(1, 1, 2, 2), mode="linear"),
    "Slice": one_node("Slice", ROW, i(1, -6), i(5, -1), i(2, 3), i(2, 1)),
    "Slice to the end": one_node("Slice", ROW, i(1), i(2**62), i(3)),
    "Split": one_node("Split", ROW, i(1, 3), axis=1, results=2),
    "Squeeze": one_node("Squeeze", ROW[:1], i(1)),
    "Tile": one_node("Tile", ROW, i(1, 2, 1, 3)),
    "TopK": one_node("TopK", ROW, i(3), axis=2, results=2),
    "Transpose": one_node("Transpose", ROW, perm=[0, 2, 3, 1]),
    "Unsqueeze": one_node("Unsqueeze", ROW, i(1, -1)),
    "ArgMax": one_node("ArgMax", ROW, axis=2, keepdims=0, kind=TensorProto.INT64),
    "Cast": one_node("Cast", ROW, to=TensorProto.INT32, kind=TensorProto.INT32),
    "Mod": one_node("Mod", np.zeros(8, np.int64), i(3), kind=TensorProto.INT64),
    "Div of whole numbers": one_node("Div", np.zeros(8, np.int64), i(3), kind=TensorProto.INT64),
}


def _resizes() -> dict[str, onnx.ModelProto]:
    found = {}
    for places in ("asymmetric", "half_pixel", "pytorch_half_pixel", "align_corners"):
        for scale in (0.5, 1.5, 2, 3, 4):
            for rounding in ("floor", "ceil", "round_prefer_floor", "round_prefer_ceil"):
                found[f"Resize nearest {places} {rounding} {scale}"] = one_node(
                    "Resize",
                    ROW,
                    None,
                    f(1, 1, scale, scale),
                    mode="nearest",
                    nearest_mode=rounding,
                    coordinate_transformation_mode=places,
                )
            for mode in ("linear", "cubic"):
                found[f"Resize {mode} {places} {scale}"] = one_node(
                    "Resize", ROW, None, f(1, 1, scale, scale), mode=mode, coordinate_transformation_mode=places
                )
    return found


#: What may be refused, but if it is not, it must be right: forms that other exporters write.
UNUSUAL: dict[str, onnx.ModelProto] = {
    **_resizes(),
    **{
        f"{op_type}{' in groups' if attributes.get('group') else ''} {auto_pad}": one_node(
            op_type, ROW, *others, auto_pad=auto_pad, strides=[2, 2], **attributes
        )
        for auto_pad in ("SAME_UPPER", "SAME_LOWER", "VALID")
        for op_type, others, attributes in (
            ("MaxPool", (), {"kernel_shape": [3, 3]}),
            ("AveragePool", (), {"kernel_shape": [3, 3]}),
            ("Conv", (weights(5, 4, 3, 3),), {}),
            ("Conv", (weights(4, 1, 3, 3), weights(4)), {"group": 4}),
            ("ConvTranspose", (weights(4, 3, 3, 3),), {}),
        )
    },
    **{
        f"{op_type} with a part of a window{', padded' if pad else ''}": one_node(
            op_type, ROW, kernel_shape=[3, 3], strides=[2, 2], ceil_mode=1, pads=[pad] * 4
        )
        for op_type in ("MaxPool", "AveragePool")
        for pad in (0, 1)
    },
    "MaxPool with dilations": one_node("MaxPool", ROW, kernel_shape=[2, 2], strides=[1, 1], dilations=[2, 2]),
    "AveragePool with dilations": one_node(
        "AveragePool", ROW, kernel_shape=[2, 2], strides=[1, 1], dilations=[2, 2], opset=19
    ),
    "ConvTranspose to a size": one_node(
        "ConvTranspose", ROW, weights(4, 3, 3, 3), strides=[2, 2], output_shape=[12, 16]
    ),
    "ConvTranspose with uneven pads": one_node("ConvTranspose", ROW, weights(4, 3, 3, 3), pads=[0, 1, 1, 0]),
    "Resize of two axes": one_node("Resize", ROW, None, f(2, 2), mode="nearest", axes=[2, 3], opset=18),
    "Resize with antialias": one_node("Resize", ROW, None, f(1, 1, 0.5, 0.5), mode="linear", antialias=1, opset=18),
    "Pad of two axes": one_node("Pad", ROW, i(1, 2, 3, 4), f(0.5).reshape(()), i(2, 3), opset=18),
    "Pad of channels by repetition": one_node("Pad", ROW, i(0, 1, 1, 1, 0, 1, 1, 1), mode="edge"),
    "Slice backwards": one_node("Slice", ROW, i(-1), i(-9), i(3), i(-1)),
    "Split into parts of one size": one_node("Split", ROW, axis=3, num_outputs=2, opset=18, results=2),
    "Flatten behind": one_node("Flatten", ROW, axis=-1),
    "Flatten all": one_node("Flatten", ROW, axis=0),
    "Squeeze of whatever is one": one_node("Squeeze", ROW[:1]),
    "Softmax over channels": one_node("Softmax", ROW, axis=1),
    "ReduceMean of all": one_node("ReduceMean", ROW, keepdims=0),
    "ReduceMax of nothing": one_node("ReduceMax", ROW, i(), noop_with_empty_axes=1, opset=18),
    "ArgMax of the last": one_node("ArgMax", ROW, axis=2, select_last_index=1, kind=TensorProto.INT64),
    "Mod of negative numbers like C": one_node("Mod", np.zeros(8, np.int64), i(3), fmod=1, kind=TensorProto.INT64),
    "Gelu by tanh": one_node("Gelu", ROW, approximate="tanh", opset=20),
    "HardSigmoid of another slope": one_node("HardSigmoid", ROW, alpha=0.3, beta=0.4),
    "Pow of a root": one_node("Pow", ROW, f(2.0)),
    "GatherND": one_node("GatherND", ROW, i(0).reshape(1, 1)),
}


def rows_for(model: onnx.ModelProto) -> Array:
    kind = model.graph.input[0].type.tensor_type
    shape = [dim.dim_value for dim in kind.shape.dim][1:]
    if kind.elem_type == TensorProto.INT64:
        return np.random.default_rng(0).integers(0, 8, (5, *shape))
    return noise(5, *shape, low=-2, high=2)


@pytest.mark.parametrize("name", SERVED)
def test_operator_gives_what_onnxruntime_gives(name: str, tmp_path: Path) -> None:
    assert_same_as_onnxruntime(SERVED[name], tmp_path, rows_for(SERVED[name]))


@pytest.mark.parametrize("name", UNUSUAL)
def test_other_forms_of_an_operator_are_right_or_refused(name: str, tmp_path: Path) -> None:
    model = UNUSUAL[name]
    rows = rows_for(model)
    written = network(model, tmp_path)
    any_length = True
    try:
        written.written({"images": torch.from_numpy(rows)})
    except UnsupportedGraphError:
        return
    try:
        written.written({"images": torch.from_numpy(rows)}, any_length=True)
    except UnsupportedGraphError:
        any_length = False
    assert_same_as_onnxruntime(model, tmp_path, rows, any_length=any_length)
