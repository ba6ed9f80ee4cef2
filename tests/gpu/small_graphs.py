"""Small ONNX graphs: of one node, and as PyTorch's exporter writes what detectors and towers are made of."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn
from torch.nn import functional as F

from triton_repo.gpu.network import Network, Precision

Array = npt.NDArray[Any]
CPU = torch.device("cpu")
_KINDS = {"f": TensorProto.FLOAT, "i": TensorProto.INT64, "b": TensorProto.BOOL}


def graph_of(
    nodes: list[onnx.NodeProto], row: Array, outputs: dict[str, int], constants: dict[str, Array], *, opset: int = 17
) -> onnx.ModelProto:
    """From `images` [batch, *row.shape] to outputs by name, each with its TensorProto type."""
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("images", _KINDS[row.dtype.kind], ["batch", *row.shape])],
        [helper.make_tensor_value_info(name, kind, None) for name, kind in outputs.items()],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)


def one_node(
    op_type: str,
    row: Array,
    *others: Array | None,
    kind: int = TensorProto.FLOAT,
    opset: int = 17,
    results: int = 1,
    **attributes: Any,
) -> onnx.ModelProto:
    """`images` and constants through one operator; None leaves an optional input out. The first result is answered."""
    names = [f"constant{place}" if value is not None else "" for place, value in enumerate(others)]
    constants = {name: value for name, value in zip(names, others, strict=True) if value is not None}
    node = helper.make_node(op_type, ["images", *names], ["result", "other"][:results], **attributes)
    return graph_of([node], row, {"result": kind}, constants, opset=opset)


def network(model: onnx.ModelProto | Path, folder: Path) -> Network:
    return Network(_file(model, folder), Precision(torch.float32, torch.float32), CPU)


def assert_same_as_onnxruntime(
    model: onnx.ModelProto | Path,
    folder: Path,
    rows: Array,
    *,
    name: str = "images",
    any_length: bool = True,
    tolerance: float = 1e-4,
) -> list[Array]:
    """One module for batches of any length, and one for a fixed length; returns what onnxruntime gave for all rows."""
    file = _file(model, folder)
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    written = network(file, folder)
    tensor = torch.from_numpy(rows)
    expected: list[Array] = []
    modules = {"fixed": written.written({name: tensor})}
    if any_length:
        modules["any"] = written.written({name: tensor[:1]}, any_length=True)
    for kind, module in modules.items():
        for length in {"fixed": [len(rows)], "any": [1, 2, len(rows)]}[kind]:
            found = module(tensor[:length])
            expected = session.run(None, {name: rows[:length]})
            assert_close(found, expected, tolerance)
    return expected


def assert_close(found: Sequence[Tensor], expected: Sequence[Array], tolerance: float) -> None:
    for one, wanted in zip(found, expected, strict=True):
        assert tuple(one.shape) == wanted.shape
        np.testing.assert_allclose(one.numpy(), wanted, rtol=tolerance, atol=tolerance)


def exported(module: nn.Module, row: Tensor, file: Path, *, batch: str | None = "batch") -> Path:
    """As users export: the tracing exporter, a dynamic batch or one of 1."""
    torch.manual_seed(0)
    axes = {"images": {0: batch}, "output0": {0: batch}} if batch else None
    torch.onnx.export(
        module.eval(),
        (row[None],),
        str(file),
        input_names=["images"],
        output_names=["output0"],
        dynamic_axes=axes,
        opset_version=17,
        dynamo=False,
    )
    return file


def noise(count: int, *shape: int, low: float = 0.0, high: float = 1.0) -> Array:
    return np.random.default_rng(count).uniform(low, high, (count, *shape)).astype(np.float32)


class Unit(nn.Sequential):
    """Convolution, normalisation, SiLU."""

    def __init__(self, inputs: int, outputs: int, side: int = 1, stride: int = 1, groups: int = 1) -> None:
        convolution = nn.Conv2d(inputs, outputs, side, stride, side // 2, groups=groups, bias=False)
        super().__init__(convolution, nn.BatchNorm2d(outputs), nn.SiLU())


class YoloxLike(nn.Module):
    """Focus, depthwise convolutions, a pyramid of pools, an upsampled branch; [n, anchors, 5 + classes] in pixels."""

    def __init__(self, side: int, classes: int) -> None:
        super().__init__()
        self.stem = Unit(12, 8, 3)
        self.down = nn.ModuleList([nn.Sequential(Unit(8, 8, 3, 2, 8), Unit(8, 8)) for _ in range(4)])
        self.pool = Unit(32, 8)
        self.merge = Unit(16, 8, 3)
        self.heads = nn.ModuleList([nn.Conv2d(8, 5 + classes, 1) for _ in range(3)])
        cells, strides = [], []
        for stride in (8, 16, 32):
            line = torch.arange(side // stride)
            rows, columns = torch.meshgrid(line, line, indexing="ij")
            cells.append(torch.stack([columns, rows], -1).reshape(-1, 2))
            strides.append(torch.full((len(cells[-1]), 1), stride))
        self.register_buffer("cells", torch.cat(cells).float())
        self.register_buffer("strides", torch.cat(strides).float())
        _spread(self)

    def forward(self, x: Tensor) -> Tensor:
        corners = [x[..., ::2, ::2], x[..., 1::2, ::2], x[..., ::2, 1::2], x[..., 1::2, 1::2]]
        x = self.stem(torch.cat(corners, 1))
        first = self.down[1](self.down[0](x))
        second = self.down[2](first)
        third = self.down[3](second)
        third = self.pool(torch.cat([third, *(F.max_pool2d(third, k, 1, k // 2) for k in (5, 9, 13))], 1))
        second = self.merge(torch.cat([second, F.interpolate(third, scale_factor=2, mode="nearest")], 1))
        maps = [head(level) for head, level in zip(self.heads, (first, second, third), strict=True)]
        maps = [torch.cat([one[:, :4], one[:, 4:].sigmoid()], 1) for one in maps]
        rows = torch.cat([one.flatten(2) for one in maps], 2).permute(0, 2, 1)
        places = (rows[..., :2].tanh() + self.cells + 0.5) * self.strides
        sizes = (rows[..., 2:4].tanh().exp() + 1) * self.strides
        return torch.cat([places, sizes, rows[..., 4:]], 2)


class Yolov8Like(nn.Module):
    """Boxes as expectations of distances; [n, 4 + classes, anchors]."""

    def __init__(self, side: int, classes: int, bins: int = 4) -> None:
        super().__init__()
        self.bins, self.classes = bins, classes
        self.levels = nn.ModuleList(
            [nn.Conv2d(3, 4 * bins + classes, stride, stride) for stride in (8, 16, 32) if stride <= side]
        )
        self.expectation = nn.Conv2d(bins, 1, 1, bias=False)
        _spread(self)
        self.expectation.weight.data = torch.arange(bins).float().view(1, bins, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        maps = [level(x).flatten(2) for level in self.levels]
        distances, scores = torch.cat(maps, 2).split((4 * self.bins, self.classes), 1)
        count, _, anchors = distances.shape
        distances = distances.view(count, 4, self.bins, anchors).transpose(2, 1).softmax(1)
        sides = self.expectation(distances).view(count, 4, anchors)
        near, far = sides.chunk(2, 1)
        middle = torch.arange(anchors).float() / anchors * 60 + 2
        return torch.cat([middle + (far - near) * 4, (far + near) * 6 + 4, scores.sigmoid()], 1)


class Yolov10Like(nn.Module):
    """Its own choice of the best rows, [n, 20, 6]: corners, score, class."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.level = nn.Conv2d(3, 4 + classes, 8, 8)
        _spread(self)

    def forward(self, x: Tensor) -> Tensor:
        rows = self.level(x).flatten(2).permute(0, 2, 1)
        boxes, scores = rows[..., :4].sigmoid() * 30, rows[..., 4:].sigmoid()
        boxes = torch.cat([boxes[..., :2], boxes[..., :2] + boxes[..., 2:] + 2], 2)
        best, index = scores.amax(2).topk(20)
        boxes = boxes.gather(1, index.unsqueeze(2).repeat(1, 1, 4))
        kinds = scores.gather(1, index.unsqueeze(2).repeat(1, 1, scores.shape[2])).argmax(2)
        return torch.cat([boxes, best.unsqueeze(2), kinds.unsqueeze(2).float()], 2)


class TowerLike(nn.Module):
    """Depthwise and pointwise convolutions with GELU, attention, a projection to length 1."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 4, 4)
        self.depthwise = nn.Conv2d(6, 12, 7, 2, 3, groups=6)
        self.pointwise = nn.Conv2d(12, 16, 1)
        self.norm = nn.LayerNorm(16)
        self.qkv = nn.Linear(16, 48)
        self.project = nn.Linear(16, 10, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = F.gelu(self.pointwise(F.gelu(self.depthwise(F.gelu(self.stem(x))))))
        x = self.norm(x.flatten(2).transpose(1, 2))
        count, tokens, width = x.shape
        q, k, v = self.qkv(x).reshape(count, tokens, 3, 4, width // 4).permute(2, 0, 3, 1, 4).unbind(0)
        x = x + ((q @ k.transpose(-2, -1)) * 0.5).softmax(-1).matmul(v).transpose(1, 2).reshape(count, tokens, width)
        return F.normalize(self.project(F.gelu(x).mean(1)), dim=-1)


def _spread(module: nn.Module) -> None:
    """Weights that make values differ from anchor to anchor, so that no two scores are equal."""
    generator = torch.Generator().manual_seed(7)
    for parameter in module.parameters():
        reach = parameter[0].numel() ** 0.5 if parameter.ndim > 1 else 3
        parameter.data = torch.randn(parameter.shape, generator=generator) * 2 / reach


def _file(model: onnx.ModelProto | Path, folder: Path) -> Path:
    if isinstance(model, Path):
        return model
    file = folder / "small.onnx"
    onnx.save(model, str(file))
    return file
