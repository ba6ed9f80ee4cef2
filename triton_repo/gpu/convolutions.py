"""Operators with kernels of our own, where PyTorch's are slow: depthwise convolutions, and matrices with an activation.

Pictures are channels-last. cuDNN runs the depthwise convolutions of a CLIP tower slowly, and reorders some
inputs first; an activation of its own reads and writes what a matrix product has just written.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

_ROWS = 4  # that one program of `depthwise_rows_kernel` makes


@torch.library.custom_op("sightlog::depthwise", mutates_args=())
def depthwise(x: Tensor, weight: Tensor, bias: Tensor, kernel: int, stride: int, padding: int, gelu: bool) -> Tensor:
    """x [n, c, h, w] with weight [kernel * kernel, m * c] and bias [m * c] -> [n, m * c, h', w'], channels last.

    Output channel j sees input channel j // m.
    """
    outputs = weight.shape[1]
    square = weight.T.reshape(outputs, 1, kernel, kernel)
    result = F.conv2d(x, square, bias, stride, padding, groups=x.shape[1])
    return (F.gelu(result) if gelu else result).contiguous(memory_format=torch.channels_last)


@depthwise.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor, kernel: int, stride: int, padding: int, gelu: bool) -> Tensor:
    height, width = ((side + 2 * padding - kernel) // stride + 1 for side in x.shape[2:])
    result = x.new_empty(x.shape[0], height, width, weight.shape[1])
    return result.permute(0, 3, 1, 2)


@depthwise.register_kernel("cuda")
def _depthwise_on_gpu(
    x: Tensor, weight: Tensor, bias: Tensor, kernel: int, stride: int, padding: int, gelu: bool
) -> Tensor:
    from triton_repo.gpu.kernels import depthwise_kernel, depthwise_rows_kernel

    x = x.contiguous(memory_format=torch.channels_last)
    count, channels, height, width = x.shape
    outputs = weight.shape[1]
    rows, columns = ((side + 2 * padding - kernel) // stride + 1 for side in (height, width))
    result = x.new_empty(count, rows, columns, outputs)
    launch: Any
    if kernel in (3, 7) and stride == 1 and outputs == channels and padding == kernel // 2:
        across, block = (16, 64) if width > 8 else (8, 128)
        tiles_y, tiles_x = -(-rows // _ROWS), -(-columns // across)
        launch = depthwise_rows_kernel[(count * tiles_y * tiles_x, -(-channels // block))]
        sizes = {"KERNEL": kernel, "PADDING": padding, "COLUMNS": across, "BLOCK": block}
        launch(x, weight, bias, result, height, width, channels, tiles_y, tiles_x, GELU=gelu, num_warps=4, **sizes)
        return result.permute(0, 3, 1, 2)
    tile, block = 8, min(64, 1 << (outputs - 1).bit_length())
    tiles_y, tiles_x = -(-rows // tile), -(-columns // tile)
    launch = depthwise_kernel[(count * tiles_y * tiles_x, -(-outputs // block))]
    launch(
        x,
        weight,
        bias,
        result,
        height,
        width,
        channels,
        rows,
        columns,
        outputs,
        tiles_y,
        tiles_x,
        KERNEL=kernel,
        STRIDE=stride,
        PADDING=padding,
        MULTIPLE=outputs // channels,
        GELU=gelu,
        TILE=tile,
        BLOCK=block,
        num_warps=4,
    )
    return result.permute(0, 3, 1, 2)


@torch.library.custom_op("sightlog::linear_gelu", mutates_args=())
def linear_gelu(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """x [n, c] with weight [d, c] and bias [d] -> GELU of [n, d]."""
    return F.gelu(F.linear(x, weight, bias))


@linear_gelu.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return x.new_empty(x.shape[0], weight.shape[0])


@linear_gelu.register_kernel("cuda")
def _linear_gelu_on_gpu(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    # cuBLAS applies it to the product while that is in registers, by the tanh formula: 0.0005 off at most.
    return torch._addmm_activation(bias, x, weight.T, use_gelu=True)


def pointwise(x: Tensor, weight: Tensor, bias: Tensor | None, *, gelu: bool) -> Tensor:
    """A convolution of one pixel as a matrix product: x [n, c, h, w] with weight [d, c, 1, 1] -> [n, d, h, w]."""
    matrix = weight.flatten(1)
    pixels = x.permute(0, 2, 3, 1)
    if not gelu or bias is None:
        result = F.linear(pixels, matrix, bias)
        return (F.gelu(result) if gelu else result).permute(0, 3, 1, 2)
    flat: Tensor = torch.ops.sightlog.linear_gelu(pixels.reshape(-1, x.shape[1]), matrix, bias)
    return flat.view(x.shape[0], *x.shape[2:], matrix.shape[0]).permute(0, 3, 1, 2)
