"""The two towers as ONNX: from batch to vectors of length one."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import onnx
import torch
from torch import nn

from models.export.errors import ExportError
from models.export.fp16 import store_weights_as_fp16

Precision = Literal["fp32", "fp16"]

OPSET = 17
OUTPUT = "embeddings"
_LARGEST_BYTES = 2_000_000_000  # protobuf refuses 2 GiB, and the graph needs some room beside its weights


class NormalisedTower(nn.Module):
    """A tower whose vectors have length 1: float32 [N, dim]."""

    def __init__(self, tower: nn.Module) -> None:
        super().__init__()
        self.tower = tower

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        return nn.functional.normalize(self.tower(batch), dim=-1)


def write_tower(tower: nn.Module, example: torch.Tensor, name: str, file: Path, precision: Precision) -> None:
    """Writes `tower` as ONNX, its input called `name`, any batch size. Raises ExportError.

    `example`: a batch of at least two, since the exporter takes a batch of one for a constant.
    """
    size = sum(tensor.numel() * tensor.element_size() for tensor in (*tower.parameters(), *tower.buffers()))
    if size > _LARGEST_BYTES:
        raise ExportError(f"{file.name} would have {size / 1e9:.1f} GB, and ONNX files end at 2; use a smaller model")
    torch.onnx.export(
        NormalisedTower(tower).eval(),
        (example,),
        str(file),
        input_names=[name],
        output_names=[OUTPUT],
        dynamic_axes={name: {0: "batch"}, OUTPUT: {0: "batch"}},
        opset_version=OPSET,
        dynamo=False,  # the tracing exporter needs no further package
    )
    if precision == "fp16":
        graph = onnx.load(str(file))
        store_weights_as_fp16(graph)
        onnx.save(graph, str(file))
