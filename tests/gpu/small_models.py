"""Models whose answers a picture's colour tells: red and green say which it is, blue how many objects it has."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from models.manifest import ModelManifest, load_manifest, write_manifest
from tests.pictures import encoded
from triton_repo.contract import ImageInference
from triton_repo.gpu_settings import GpuSettings

CANVAS, CROP, ROWS, DIM = 64, 16, 8, 4
_CORNERS = np.stack(np.meshgrid([4.0, 20.0, 36.0, 50.0], [10.0, 40.0]), -1).reshape(-1, 2)
BOXES = np.concatenate([_CORNERS, _CORNERS + 10], 1).astype(np.float32)
SCORES = np.linspace(0.9, 0.3, ROWS).astype(np.float32)
#: Batches of four, one thread, nothing compiled.
SETTINGS = GpuSettings(
    device="cpu",
    batch=4,
    dali_threads=1,
    detector_sizes=(1, 4),
    tower_sizes=(4, 16),
    text_sizes=(1,),
    crops=1 + ROWS,
    compiled=False,
)


def colour_manifest(folder: Path) -> ModelManifest:
    """A detector of 8 rows, and a tower that answers (red, green, blue, 0.5) at length 1, or NaN where red is 0."""
    tiny = load_manifest()
    clip = dataclasses.replace(
        tiny.clip,
        image_onnx="tower.onnx",
        text_onnx="tower.onnx",
        dim=DIM,
        image_size=CROP,
        mean=(0, 0, 0),
        std=(1,) * 3,
    )
    detector = dataclasses.replace(
        tiny.detector,
        onnx="detector.onnx",
        input_size=CANVAS,
        max_detections=ROWS,
        value_range=(0, 1),
        colour_order="rgb",
    )
    onnx.save(_detector(), str(folder / "detector.onnx"))
    onnx.save(_tower(), str(folder / "tower.onnx"))
    return write_manifest(folder, "colours", clip, detector, tiny.preprocessing)


def picture(red: int, green: int = 100, objects: int = 0, *, side: int = CANVAS) -> bytes:
    """A file of one colour; without red nothing can be said about it."""
    return encoded(Image.new("RGB", (side, side), (red, green, round(objects * 255 / ROWS))), "PNG")


def vector_of(red: int, green: int = 100, objects: int = 0) -> npt.NDArray[np.float32]:
    vector = np.array([red, green, round(objects * 255 / ROWS), 127.5], np.float32)
    return np.asarray(vector / np.linalg.norm(vector), np.float32)


def assert_answers(found: Any, red: int, green: int = 100, objects: int = 0, *, side: int = CANVAS) -> None:
    """What a picture of this colour must give, and no other picture does."""
    assert isinstance(found, ImageInference), found
    assert (found.width, found.height) == (side, side)
    np.testing.assert_allclose(found.embedding, vector_of(red, green, objects), atol=1e-5)
    np.testing.assert_allclose(found.boxes, BOXES[:objects] * side / CANVAS, atol=1e-3)
    np.testing.assert_allclose(found.scores, SCORES[:objects])
    assert found.class_ids.tolist() == list(range(objects))
    wanted = np.broadcast_to(vector_of(red, green, objects), (objects, DIM))
    np.testing.assert_allclose(found.object_embeddings, wanted, atol=1e-5)


def _detector() -> onnx.ModelProto:
    constants: dict[str, Any] = {
        "blue_channel": np.array([2]),
        "rows": np.array(ROWS, np.float32),
        "half": np.array(0.5, np.float32),
        "zero": np.array(0, np.float32),
        "last": np.array([2]),
        "boxes": BOXES[None],
        "scores": SCORES[None],
        "classes": np.arange(ROWS, dtype=np.float32)[None],
    }
    nodes = [
        helper.make_node("ReduceMean", ["images"], ["means"], axes=[2, 3], keepdims=0),
        helper.make_node("Gather", ["means", "blue_channel"], ["blue"], axis=1),
        helper.make_node("Mul", ["blue", "rows"], ["many"]),
        helper.make_node("Add", ["many", "half"], ["rounded"]),
        helper.make_node("Cast", ["rounded"], ["num_dets"], to=TensorProto.INT32),
        helper.make_node("Mul", ["blue", "zero"], ["nothing"]),
        helper.make_node("Unsqueeze", ["nothing", "last"], ["nothing_of_boxes"]),
        helper.make_node("Add", ["boxes", "nothing_of_boxes"], ["det_boxes"]),
        helper.make_node("Add", ["scores", "nothing"], ["det_scores"]),
        helper.make_node("Add", ["classes", "nothing"], ["class_numbers"]),
        helper.make_node("Cast", ["class_numbers"], ["det_classes"], to=TensorProto.INT32),
    ]
    outputs = [
        helper.make_tensor_value_info("num_dets", TensorProto.INT32, ["n", 1]),
        helper.make_tensor_value_info("det_boxes", TensorProto.FLOAT, ["n", ROWS, 4]),
        helper.make_tensor_value_info("det_scores", TensorProto.FLOAT, ["n", ROWS]),
        helper.make_tensor_value_info("det_classes", TensorProto.INT32, ["n", ROWS]),
    ]
    return _model(nodes, CANVAS, outputs, constants)


def _tower() -> onnx.ModelProto:
    constants: dict[str, Any] = {
        "place": np.eye(3, DIM, dtype=np.float32),
        "fourth": np.array([0, 0, 0, 0.5], np.float32),
        "red_channel": np.array([0]),
        "zero": np.array(0, np.float32),
    }
    nodes = [
        helper.make_node("GlobalAveragePool", ["images"], ["averages"]),
        helper.make_node("Flatten", ["averages"], ["means"]),
        helper.make_node("MatMul", ["means", "place"], ["placed"]),
        helper.make_node("Add", ["placed", "fourth"], ["colours"]),
        helper.make_node("Gather", ["means", "red_channel"], ["red"], axis=1),
        helper.make_node("Log", ["red"], ["infinite"]),
        helper.make_node("Mul", ["infinite", "zero"], ["nothing"]),
        helper.make_node("Add", ["colours", "nothing"], ["sum"]),
        helper.make_node("ReduceL2", ["sum"], ["length"], axes=[1]),
        helper.make_node("Div", ["sum", "length"], ["embedding"]),
    ]
    outputs = [helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["n", DIM])]
    return _model(nodes, CROP, outputs, constants)


def _model(
    nodes: list[onnx.NodeProto], side: int, outputs: list[onnx.ValueInfoProto], constants: dict[str, Any]
) -> onnx.ModelProto:
    images = helper.make_tensor_value_info("images", TensorProto.FLOAT, ["n", 3, side, side])
    weights = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "colours", [images], outputs, weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
