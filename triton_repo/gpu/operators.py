"""ONNX operators on PyTorch tensors, as far as detectors and CLIP towers use them.

Arguments that ONNX passes as tensors but that must be known beforehand (shapes, axes, sizes: `KNOWN_INPUTS`) come as
tuples of numbers. Attributes come by their ONNX names.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from onnx import TensorProto
from torch import Tensor
from torch.nn import functional as F

import triton_repo.gpu.suppression  # noqa: F401  (registers torch.ops.sightlog.suppress)
from triton_repo.gpu.convolutions import pointwise

Numbers = Sequence[Any]

#: Inputs, by their position, that an operator needs as numbers.
KNOWN_INPUTS: Mapping[str, tuple[int, ...]] = {
    "Clip": (1, 2),
    "ConstantOfShape": (0,),
    "Expand": (1,),
    "Pad": (1, 2, 3),
    "Reshape": (1,),
    "Resize": (1, 2, 3),
    "Slice": (1, 2, 3, 4),
    "Split": (1,),
    "Squeeze": (1,),
    "Tile": (1,),
    "TopK": (1,),
    "Unsqueeze": (1,),
    "OneHot": (1, 2),
    **{f"Reduce{kind}": (1,) for kind in ("L1", "L2", "Max", "Mean", "Min", "Sum")},
}

#: Inputs that are multiplied as matrices: they and what they meet have the precision of the weights.
MATRIX_INPUTS: Mapping[str, tuple[int, ...]] = {
    "Conv": (1, 2),
    "ConvTranspose": (1, 2),
    "DepthwiseConv": (1, 2),
    "Gemm": (1, 2),
    "MatMul": (0, 1),
}

_DTYPES = {
    TensorProto.FLOAT: torch.float32,
    TensorProto.FLOAT16: torch.float16,
    TensorProto.DOUBLE: torch.float32,
    TensorProto.INT64: torch.int64,
    TensorProto.INT32: torch.int32,
    TensorProto.UINT8: torch.uint8,
    TensorProto.BOOL: torch.bool,
}


def _convolution(x: Tensor, weight: Tensor, bias: Tensor | None = None, **attributes: Any) -> Tensor:
    dims = weight.ndim - 2
    begin, end = _pads(attributes.get("pads"), dims)
    strides, groups = attributes.get("strides", [1] * dims), attributes.get("group", 1)
    gelu = attributes.get("activation") == "gelu"
    x = x.to(weight.dtype)
    if dims == 2 and groups == 1 and not any((*begin, *end)) and {*weight.shape[2:], *strides} == {1}:
        return pointwise(x, weight, bias, gelu=gelu)
    if begin != end:
        x, begin = F.pad(x, _torch_pads([*([0] * 2), *begin], [*([0] * 2), *end])), [0] * dims
    convolve = (F.conv1d, F.conv2d, F.conv3d)[dims - 1]
    result = convolve(x, weight, bias, strides, begin, attributes.get("dilations", [1] * dims), groups)
    return F.gelu(result) if gelu else result


def _depthwise(x: Tensor, weight: Tensor, bias: Tensor, **attributes: Any) -> Tensor:
    side, stride = attributes["kernel_shape"][0], attributes.get("strides", [1])[0]
    padding = attributes.get("pads", [0])[0]
    gelu = attributes.get("activation") == "gelu"
    result: Tensor = torch.ops.sightlog.depthwise(x.to(weight.dtype), weight, bias, side, stride, padding, gelu)
    return result


def is_depthwise(weight_shape: Sequence[int], inputs: int, attributes: Mapping[str, Any]) -> bool:
    """Whether a convolution is one that `convolutions.depthwise` runs; `inputs`: how many it has, the bias included."""
    square = len(weight_shape) == 4 and weight_shape[1] == 1 and weight_shape[2] == weight_shape[3] > 1
    plain = len({*attributes.get("pads", [0])}) == 1 and len({*attributes.get("strides", [1])}) == 1
    return (
        square
        and plain
        and attributes.get("group", 1) > 1
        and inputs == 3
        and {*attributes.get("dilations", [1])} == {1}
    )


def _transposed_convolution(x: Tensor, weight: Tensor, bias: Tensor | None = None, **attributes: Any) -> Tensor:
    dims = weight.ndim - 2
    begin, end = _pads(attributes.get("pads"), dims)
    assert begin == end, "a transposed convolution has the same padding on both sides"
    assert "output_shape" not in attributes, "a transposed convolution tells its padding, not the size of its result"
    return F.conv_transpose2d(
        x.to(weight.dtype),
        weight,
        bias,
        stride=attributes.get("strides", [1] * dims),
        padding=begin,
        output_padding=attributes.get("output_padding", [0] * dims),
        dilation=attributes.get("dilations", [1] * dims),
        groups=attributes.get("group", 1),
    )


def _max_pool(x: Tensor, *, kernel_shape: Numbers, **attributes: Any) -> Tensor:
    begin, end = _pads(attributes.get("pads"), len(kernel_shape))
    assert begin == end, "a pool has the same padding on both sides"
    return F.max_pool2d(
        x,
        list(kernel_shape),
        stride=attributes.get("strides", 1),
        padding=begin,
        dilation=attributes.get("dilations", 1),
        ceil_mode=bool(attributes.get("ceil_mode", 0)),
    )


def _average_pool(x: Tensor, *, kernel_shape: Numbers, **attributes: Any) -> Tensor:
    begin, end = _pads(attributes.get("pads"), len(kernel_shape))
    assert begin == end, "a pool has the same padding on both sides"
    assert {*attributes.get("dilations", [1])} == {1}, "an average is taken of neighbours"
    return F.avg_pool2d(
        x,
        list(kernel_shape),
        stride=attributes.get("strides", 1),
        padding=begin,
        ceil_mode=bool(attributes.get("ceil_mode", 0)),
        count_include_pad=bool(attributes.get("count_include_pad", 0)),
    )


def _pads(pads: Numbers | None, dims: int) -> tuple[list[int], list[int]]:
    values = list(pads or [0] * 2 * dims)
    return values[:dims], values[dims:]


def _torch_pads(begin: Numbers, end: Numbers) -> list[int]:
    """ONNX: all beginnings, then all ends. PyTorch: both of the last dimension first."""
    return [int(pad) for pair in reversed(list(zip(begin, end, strict=True))) for pad in pair]


def _pad(x: Tensor, pads: Numbers, value: Numbers | None = None, axes: Numbers | None = None, **attributes: Any) -> Any:
    assert axes is None, "padding names all axes"
    mode = attributes.get("mode", "constant")
    half = len(pads) // 2
    sides = _torch_pads(pads[:half], pads[half:])
    if mode == "constant":
        return F.pad(x, sides, value=value[0] if value else 0)
    inner = 2 * (x.ndim - 2)
    assert not any(sides[inner:]), "only pixels are repeated, not channels"
    return F.pad(x, sides[:inner], mode={"reflect": "reflect", "edge": "replicate"}[mode])


def _gemm(a: Tensor, b: Tensor, c: Tensor | None = None, **attributes: Any) -> Tensor:
    a = a.T if attributes.get("transA") else a
    b = b.T if attributes.get("transB") else b
    product = a.to(b.dtype) @ b
    if (alpha := attributes.get("alpha", 1.0)) != 1.0:
        product = product * alpha
    return product if c is None else product + c * attributes.get("beta", 1.0)


def _matmul(a: Tensor, b: Tensor) -> Tensor:
    # Half precision on one side is there on purpose: matrix units are what it is for.
    shared = min(a.dtype, b.dtype, key=lambda dtype: dtype.itemsize)
    return torch.matmul(a.to(shared), b.to(shared))


def _layer_norm(x: Tensor, scale: Tensor, bias: Tensor | None = None, **attributes: Any) -> Tensor:
    shape = x.shape[attributes.get("axis", -1) :]
    offset = None if bias is None else bias.to(x.dtype)
    return F.layer_norm(x, shape, scale.to(x.dtype), offset, attributes.get("epsilon", 1e-5))


def _batch_norm(x: Tensor, scale: Tensor, bias: Tensor, mean: Tensor, variance: Tensor, **attributes: Any) -> Tensor:
    factor = scale.float() / torch.sqrt(variance.float() + attributes.get("epsilon", 1e-5))
    shape = [1, -1, *([1] * (x.ndim - 2))]
    return (x.float() * factor.view(shape) + (bias.float() - mean.float() * factor).view(shape)).to(x.dtype)


#: How places are computed and rounded where each pixel is repeated as often as the others.
_NEAREST = {("asymmetric", "floor"), ("half_pixel", "round"), ("pytorch_half_pixel", "round")}


def _resize(
    x: Tensor,
    roi: Numbers | None = None,
    scales: Numbers | None = None,
    sizes: Numbers | None = None,
    **attributes: Any,
) -> Tensor:
    assert not any(attributes.get(name) for name in ("antialias", "axes", "exclude_outside")), "an unusual resize"
    old = x.shape[2:]
    new = list(sizes[2:]) if sizes else [math.floor(n * s) for n, s in zip(old, (scales or ())[2:], strict=True)]
    mode, places = attributes.get("mode", "nearest"), attributes.get("coordinate_transformation_mode", "half_pixel")
    if mode == "nearest":
        rounding = attributes.get("nearest_mode", "round_prefer_floor").split("_")[0]
        assert (places, rounding) in _NEAREST, f"{places} with {rounding}"
        assert all(n % o == 0 for n, o in zip(new, old, strict=True)), "nearest neighbours are taken for whole factors"
        return F.interpolate(x, size=new, mode="nearest")
    assert places in ("half_pixel", "pytorch_half_pixel", "align_corners"), places
    kind = {"linear": "bilinear", "cubic": "bicubic"}[mode]
    return F.interpolate(x, size=new, mode=kind, align_corners=places == "align_corners")


def _slice(
    x: Tensor, starts: Numbers, ends: Numbers, axes: Numbers | None = None, steps: Numbers | None = None
) -> Tensor:
    for axis, start, end, step in zip(
        axes or range(len(starts)), starts, ends, steps or [1] * len(starts), strict=True
    ):
        assert step > 0, "slices run forwards"
        place = (*([slice(None)] * (axis % x.ndim)), slice(start, end, step))
        x = x[place]
    return x


def _split(x: Tensor, sizes: Numbers | None = None, *, axis: int = 0, num_outputs: int | None = None) -> Any:
    if sizes is None:
        assert num_outputs, "a split names its parts"
        return x.split(-(-x.shape[axis] // num_outputs), axis)
    return x.split([int(size) for size in sizes], axis)


def _reshape(x: Tensor, shape: Numbers, *, allowzero: int = 0) -> Tensor:
    kept = [x.shape[axis] if size == 0 and not allowzero else int(size) for axis, size in enumerate(shape)]
    return x.reshape(kept)


def _flatten(x: Tensor, *, axis: int = 1) -> Tensor:
    return x.reshape(math.prod(x.shape[:axis]), -1)


def _squeeze(x: Tensor, axes: Numbers | None = None) -> Tensor:
    return x.squeeze() if axes is None else x.squeeze(tuple(int(axis) for axis in axes))


def _unsqueeze(x: Tensor, axes: Numbers) -> Tensor:
    dims = x.ndim + len(axes)
    for axis in sorted(int(axis) % dims for axis in axes):
        x = x.unsqueeze(axis)
    return x


def _expand(x: Tensor, shape: Numbers) -> Tensor:
    """A size of -1 keeps the one that is there; ONNX also allows sizes that are smaller than those."""
    missing = len(shape) - x.ndim
    kept = [-1 if size in (-1, 1) and axis >= missing else int(size) for axis, size in enumerate(shape)]
    return x.expand([-1] * max(0, -missing) + kept)


def _gather(x: Tensor, index: Tensor, *, axis: int = 0) -> Tensor:
    length = x.shape[axis]
    flat = torch.where(index < 0, index + length, index).reshape(-1)
    return x.index_select(axis, flat).reshape(*x.shape[: axis % x.ndim], *index.shape, *x.shape[axis % x.ndim + 1 :])


def _gather_nd(x: Tensor, index: Tensor, *, batch_dims: int = 0) -> Tensor:
    batch = [
        torch.arange(x.shape[dim], device=x.device).view([-1 if other == dim else 1 for other in range(index.ndim - 1)])
        for dim in range(batch_dims)
    ]
    place = (*batch, *index.unbind(-1))
    gathered: Tensor = x[place]
    return gathered


def _top_k(x: Tensor, count: Numbers, *, axis: int = -1, largest: int = 1, sorted: int = 1) -> tuple[Tensor, Tensor]:
    values, index = torch.topk(x, int(count[0]), axis, bool(largest), bool(sorted))
    return values, index


def _reduced(reduce: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def operator(x: Tensor, axes: Numbers | None = None, **attributes: Any) -> Tensor:
        assert not attributes.get("noop_with_empty_axes"), "no axes mean all"
        dims = tuple(axes or attributes.get("axes") or range(x.ndim))
        return reduce(x, dims, keepdim=bool(attributes.get("keepdims", 1)))

    return operator


def _arg_max(x: Tensor, *, axis: int = 0, keepdims: int = 1, select_last_index: int = 0) -> Tensor:
    assert not select_last_index, "the first of equal ones is taken"
    return x.argmax(axis, keepdim=bool(keepdims))


def _cast(x: Tensor, *, to: int) -> Tensor:
    return x.to(_DTYPES[to])  # type: ignore[index]


def _one_hot(index: Tensor, depth: Numbers, values: Numbers, *, axis: int = -1) -> Tensor:
    off, on = values
    places = torch.arange(int(depth[0]), device=index.device)
    hot = (index.unsqueeze(-1) == places).movedim(-1, axis)
    return hot * (on - off) + off if off else hot * on


def _clip(x: Tensor, low: Numbers | None = None, high: Numbers | None = None, **attributes: Any) -> Tensor:
    least = low[0] if low else attributes.get("min")
    most = high[0] if high else attributes.get("max")
    return x.clamp(least, most)


def _gelu(x: Tensor, *, approximate: str = "none") -> Tensor:
    return F.gelu(x, approximate=approximate)


def _divided(a: Tensor, b: Tensor) -> Tensor:
    return torch.div(a, b, rounding_mode=None if a.is_floating_point() else "trunc")


def _where(condition: Tensor, a: Tensor, b: Tensor) -> Tensor:
    return torch.where(condition, a, b)


def _folded(binary: Callable[[Tensor, Tensor], Tensor]) -> Callable[..., Tensor]:
    def operator(first: Tensor, *others: Tensor) -> Tensor:
        for other in others:
            first = binary(first, other)
        return first

    return operator


def _softmax(x: Tensor, *, axis: int = -1) -> Tensor:
    return x.softmax(axis)


def _hard_sigmoid(x: Tensor, *, alpha: float = 0.2, beta: float = 0.5) -> Tensor:
    return (x * alpha + beta).clamp(0, 1)


def _keep_best(
    boxes: Tensor, by_class: Tensor, scores: Tensor, *, iou_threshold: float, score_threshold: float
) -> Tensor:
    """What replaces non-maximum suppression: see `network.without_dynamic_suppression`."""
    classes = by_class.argmax(1)
    kept: Tensor = torch.ops.sightlog.suppress(boxes.float(), scores.float(), classes, iou_threshold, score_threshold)
    return kept


OPERATORS: Mapping[str, Callable[..., Any]] = {
    "Abs": torch.abs,
    "Add": torch.add,
    "And": torch.logical_and,
    "ArgMax": _arg_max,
    "AveragePool": _average_pool,
    "BatchNormalization": _batch_norm,
    "Cast": _cast,
    "Clip": _clip,
    "Concat": lambda *parts, axis: torch.cat(parts, axis),
    "Conv": _convolution,
    "ConvTranspose": _transposed_convolution,
    "Cos": torch.cos,
    "DepthwiseConv": _depthwise,
    "Div": _divided,
    "Equal": torch.eq,
    "Erf": torch.erf,
    "Exp": torch.exp,
    "Expand": _expand,
    "Flatten": _flatten,
    "Floor": torch.floor,
    "Gather": _gather,
    "GatherElements": lambda x, index, axis=0: torch.gather(x, axis, index),
    "GatherND": _gather_nd,
    "Gelu": _gelu,
    "Gemm": _gemm,
    "GlobalAveragePool": lambda x: x.mean((2, 3), keepdim=True),
    "Greater": torch.gt,
    "GreaterOrEqual": torch.ge,
    "HardSigmoid": _hard_sigmoid,
    "HardSwish": F.hardswish,
    "Identity": lambda x: x,
    "KeepBest": _keep_best,
    "LayerNormalization": _layer_norm,
    "LeakyRelu": lambda x, alpha=0.01: F.leaky_relu(x, alpha),
    "Less": torch.lt,
    "LessOrEqual": torch.le,
    "Log": torch.log,
    "MatMul": _matmul,
    "Max": _folded(torch.maximum),
    "MaxPool": _max_pool,
    "Min": _folded(torch.minimum),
    "Mod": lambda a, b, fmod=0: torch.fmod(a, b) if fmod else torch.remainder(a, b),
    "Mul": torch.mul,
    "Neg": torch.neg,
    "Not": torch.logical_not,
    "OneHot": _one_hot,
    "Or": torch.logical_or,
    "Pad": _pad,
    "Pow": torch.pow,
    "Reciprocal": torch.reciprocal,
    "ReduceL2": _reduced(lambda x, dims, keepdim: torch.linalg.vector_norm(x, dim=dims, keepdim=keepdim)),
    "ReduceMax": _reduced(torch.amax),
    "ReduceMean": _reduced(torch.mean),
    "ReduceMin": _reduced(torch.amin),
    "ReduceSum": _reduced(torch.sum),
    "Relu": torch.relu,
    "Reshape": _reshape,
    "Resize": _resize,
    "Round": torch.round,
    "Sigmoid": torch.sigmoid,
    "Sin": torch.sin,
    "Slice": _slice,
    "Softmax": _softmax,
    "Softplus": F.softplus,
    "Split": _split,
    "Sqrt": torch.sqrt,
    "Squeeze": _squeeze,
    "Sub": torch.sub,
    "Tanh": torch.tanh,
    "Tile": lambda x, repeats: x.repeat(*repeats),
    "TopK": _top_k,
    "Transpose": lambda x, perm: x.permute(*perm),
    "Unsqueeze": _unsqueeze,
    "Where": _where,
}
