"""What Triton's native backends load: graphs for ONNX Runtime and TensorRT, and the serialised DALI graph."""

from __future__ import annotations

from pathlib import Path

import onnx

from models.manifest import ModelManifest
from triton_repo.contract import DETECTOR
from triton_repo.dali_pipeline import OUTPUTS, serialize
from triton_repo.model_config import DALI, TENSORRT, Model
from triton_repo.serving_graph import pixel_input, serving_graph

#: The detector with TensorRT's own suppression, beside the manifest's files if it was imported with it.
TENSORRT_DETECTOR = "detector.trt.onnx"


def write_native(model: Model, manifest: ModelManifest, weights: Path | None, folder: Path) -> None:
    """Write what a native backend loads into a version folder; `weights`: the model's ONNX file, None for DALI.

    A TensorRT plan depends on the GPU: `scripts/tensorrt` makes it later, from the `model.onnx` that is written here.
    """
    if model.runtime == DALI:
        assert tuple(spec.name for spec in model.outputs) == OUTPUTS, "Triton tells DALI's outputs by their order"
        serialize(manifest, "gpu", folder / "model.dali")
        return
    assert weights is not None
    special = weights.with_name(TENSORRT_DETECTOR)
    if model.runtime == TENSORRT and model.name == DETECTOR and special.is_file():
        weights = special
    graph = serving_graph(onnx.load(str(weights)), model, pixel_input(manifest, model.name))
    onnx.save(graph, str(folder / "model.onnx"))
