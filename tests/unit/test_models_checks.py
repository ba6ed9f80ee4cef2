"""A graph that is not what its manifest says is refused when it is imported or chosen, in one clear sentence."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from models.checks import ModelCheckError, check_clip, check_detector, check_manifest
from models.manifest import TINY_FOLDER, load_manifest, write_manifest

TINY = load_manifest()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for file in TINY.files:
        shutil.copyfile(TINY_FOLDER / file, tmp_path / file)
    return tmp_path


def test_the_built_in_models_pass() -> None:
    check_manifest(TINY)
    check_clip(TINY_FOLDER, TINY.clip)
    check_detector(TINY_FOLDER, TINY.detector)


@pytest.mark.parametrize(
    ("field", "value", "complaint"),
    [
        ("dim", 768, r"embeddings has dimensions \[512\], its manifest says \[768\]"),
        ("image_size", 256, r"images has dimensions \[3, 128, 128\]"),
        ("context_length", 64, r"tokens has dimensions \[77\]"),
    ],
)
def test_a_wrong_clip_manifest_is_refused(folder: Path, field: str, value: Any, complaint: str) -> None:
    wrong = replace(TINY.clip, **{field: value})
    with pytest.raises(ModelCheckError, match=complaint):
        check_clip(folder, wrong)
    manifest = write_manifest(folder, "wrong", wrong, TINY.detector, TINY.preprocessing)
    with pytest.raises(ModelCheckError, match=complaint):
        check_manifest(manifest)


@pytest.mark.parametrize(
    ("field", "value", "complaint"),
    [
        ("input_size", 320, r"images has dimensions \[3, 640, 640\]"),
        ("max_detections", 50, r"det_boxes has dimensions \[100, 4\]"),
    ],
)
def test_a_wrong_detector_manifest_is_refused(folder: Path, field: str, value: Any, complaint: str) -> None:
    with pytest.raises(ModelCheckError, match=complaint):
        check_detector(folder, replace(TINY.detector, **{field: value}))


@pytest.mark.parametrize("keep", [0, 1000, 100_000])
def test_a_cut_off_file_is_refused(folder: Path, keep: int) -> None:
    path = folder / "clip_image.onnx"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ModelCheckError, match=r"clip_image\.onnx cannot be loaded"):
        check_clip(folder, TINY.clip)


def test_a_file_that_is_no_model_is_refused(folder: Path) -> None:
    (folder / "detector.onnx").write_text("<html>not found</html>")
    with pytest.raises(ModelCheckError, match=r"detector\.onnx cannot be loaded"):
        check_detector(folder, TINY.detector)


def test_a_missing_file_is_refused(folder: Path) -> None:
    (folder / "clip_text.onnx").unlink()
    with pytest.raises(ModelCheckError, match=r"clip_text\.onnx is missing"):
        check_clip(folder, TINY.clip)


def test_towers_that_were_swapped_are_refused(folder: Path) -> None:
    with pytest.raises(ModelCheckError, match="there is no tensor 'images', only tokens"):
        check_clip(folder, replace(TINY.clip, image_onnx="clip_text.onnx", text_onnx="clip_image.onnx"))


def test_vectors_that_are_not_normalised_are_refused(folder: Path) -> None:
    _append(folder / "clip_text.onnx", "embeddings", "Mul", np.float32(2))
    with pytest.raises(ModelCheckError, match="normalise them inside the graph"):
        check_clip(folder, TINY.clip)


def test_a_fixed_batch_is_refused(folder: Path) -> None:
    model = onnx.load(str(folder / "clip_image.onnx"))
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
    onnx.save(model, str(folder / "clip_image.onnx"))
    with pytest.raises(ModelCheckError, match="fixed batch of 1"):
        check_clip(folder, TINY.clip)


def test_class_ids_without_a_name_are_refused(folder: Path) -> None:
    _append(folder / "detector.onnx", "det_classes", "Add", np.int32(6))
    with pytest.raises(ModelCheckError, match="a class id is not below 6"):
        check_detector(folder, TINY.detector)


def test_boxes_that_are_no_numbers_are_refused(folder: Path) -> None:
    _append(folder / "detector.onnx", "det_boxes", "Add", np.float32(np.nan))
    with pytest.raises(ModelCheckError, match="det_boxes holds NaN"):
        check_detector(folder, TINY.detector)


def _append(path: Path, output: str, operator: str, constant: Any) -> None:
    """Let an output of the graph pass through one more node."""
    model = onnx.load(str(path))
    for node in model.graph.node:
        node.output[:] = ["before_" + output if name == output else name for name in node.output]
        node.input[:] = ["before_" + output if name == output else name for name in node.input]
    model.graph.initializer.append(numpy_helper.from_array(np.asarray(constant), "constant_of_the_test"))
    model.graph.node.append(helper.make_node(operator, ["before_" + output, "constant_of_the_test"], [output]))
    onnx.save(model, str(path))
