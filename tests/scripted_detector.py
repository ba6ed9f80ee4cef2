"""A detector whose findings are known beforehand, so that tests of the pipeline depend on no training."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from models.manifest import ModelManifest, load_manifest, write_manifest

#: What it finds in every bright picture, in letterbox pixels and not in the order of the scores; in dark ones nothing.
BOXES = np.array([[100, 200, 180, 240], [300, 220, 420, 400], [500, 300, 560, 420]], np.float32)
SCORES = np.array([0.5, 0.9, 0.7], np.float32)
CLASS_IDS = np.array([2, 0, 5], np.int32)


def scripted_manifest(folder: Path) -> ModelManifest:
    """The committed CLIP towers beside the scripted detector, in `folder`."""
    tiny = load_manifest()
    for file in (tiny.clip.image_onnx, tiny.clip.text_onnx):
        shutil.copyfile(tiny.path(file), folder / file)
    detector = dataclasses.replace(tiny.detector, onnx="scripted.onnx")
    onnx.save(_graph(detector.input_size, detector.max_detections), folder / detector.onnx)
    return write_manifest(folder, "scripted", tiny.clip, detector, tiny.preprocessing)


def _graph(side: int, rows: int) -> onnx.ModelProto:
    """num_dets is len(BOXES) where the mean of the picture (the bars included) is above 0.3, else 0."""
    padding = rows - len(BOXES)
    constants = {
        "threshold": np.array(0.3, np.float32),
        "one_dim": np.array([1], np.int64),
        "all_boxes": np.pad(BOXES, ((0, padding), (0, 0)))[None],
        "all_scores": np.pad(SCORES, (0, padding))[None],
        "all_classes": np.pad(CLASS_IDS, (0, padding))[None],
        "count": np.array(len(BOXES), np.int32),
    }
    nodes = [
        helper.make_node("ReduceMean", ["images"], ["mean"], axes=[1, 2, 3], keepdims=0),
        helper.make_node("Unsqueeze", ["mean", "one_dim"], ["column"]),
        helper.make_node("Greater", ["column", "threshold"], ["bright"]),
        helper.make_node("Cast", ["bright"], ["seen"], to=TensorProto.INT32),
        helper.make_node("Mul", ["seen", "count"], ["num_dets"]),
        helper.make_node("Shape", ["images"], ["batch"], start=0, end=1),
    ]
    for name, ones in (("boxes", 2), ("scores", 1), ("classes", 1)):
        constants[f"{name}_ones"] = np.ones(ones, np.int64)
        nodes += [
            helper.make_node("Concat", ["batch", f"{name}_ones"], [f"{name}_shape"], axis=0),
            helper.make_node("Expand", [f"all_{name}", f"{name}_shape"], [f"det_{name}"]),
        ]
    graph = helper.make_graph(
        nodes,
        "scripted",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, ["n", 3, side, side])],
        [
            helper.make_tensor_value_info("num_dets", TensorProto.INT32, ["n", 1]),
            helper.make_tensor_value_info("det_boxes", TensorProto.FLOAT, ["n", rows, 4]),
            helper.make_tensor_value_info("det_scores", TensorProto.FLOAT, ["n", rows]),
            helper.make_tensor_value_info("det_classes", TensorProto.INT32, ["n", rows]),
        ],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
