"""Opens the ONNX files of a model and compares them with their spec, so that a wrong one never reaches a server."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from models.manifest import ClipSpec, DetectorSpec, ModelManifest
from models.tokenizer import ClipTokenizer
from sightlog.errors import SightlogError

#: End2End outputs after the batch dimension, by name; K is the spec's max_detections.
_END2END = {"num_dets": "int32", "det_boxes": "float", "det_scores": "float", "det_classes": "int32"}
_UNIT_TOLERANCE = 1e-3


class ModelCheckError(SightlogError):
    """An ONNX file cannot be loaded, or is not what its manifest says."""


def check_manifest(manifest: ModelManifest) -> None:
    """Compare names, types and dimensions of all three graphs with the manifest, without running them.

    Raises ModelCheckError. Takes about a second for a gigabyte of weights.
    """
    clip, detector = manifest.clip, manifest.detector
    _image_tower(_open(manifest.path(clip.image_onnx), optimise=False), clip)
    _text_tower(_open(manifest.path(clip.text_onnx), optimise=False), clip)
    _detector(_open(manifest.path(detector.onnx), optimise=False), detector)


def check_clip(folder: Path, spec: ClipSpec) -> None:
    """Load and run both towers on batches of one and two. Raises ModelCheckError."""
    rng = np.random.default_rng(0)
    pictures = rng.random((2, 3, spec.image_size, spec.image_size), np.float32)
    tower = _image_tower(_open(folder / spec.image_onnx), spec)
    _check_vectors(tower, "images", pictures, spec.dim)
    tokens = ClipTokenizer(spec.context_length).encode(["a photo of a cat", "two red circles"])
    tower = _text_tower(_open(folder / spec.text_onnx), spec)
    _check_vectors(tower, "tokens", tokens, spec.dim)


def check_detector(folder: Path, spec: DetectorSpec) -> None:
    """Load and run the detector on batches of one and two. Raises ModelCheckError."""
    low, high = spec.value_range
    side, rows = spec.input_size, spec.max_detections
    pictures = (low + np.random.default_rng(0).random((2, 3, side, side)) * (high - low)).astype(np.float32)
    session = _detector(_open(folder / spec.onnx), spec)
    for batch in (1, 2):
        outputs = _run(session, list(_END2END), {"images": pictures[:batch]})
        wanted = [(batch, 1), (batch, rows, 4), (batch, rows), (batch, rows)]
        for name, value, shape in zip(_END2END, outputs, wanted, strict=True):
            _require(session, value.shape == shape, f"{name} has shape {value.shape} for {batch} pictures, not {shape}")
            _require(session, bool(np.isfinite(value).all()), f"{name} holds NaN or infinity")
        count, _boxes, _scores, classes = outputs
        _require(session, bool(((count >= 0) & (count <= rows)).all()), f"num_dets is not between 0 and {rows}")
        known = len(spec.classes)
        _require(session, bool(((classes >= 0) & (classes < known)).all()), f"a class id is not below {known}")


class _Session:
    """A loaded graph with the path it came from."""

    def __init__(self, path: Path, optimise: bool) -> None:
        self.path = path
        options = ort.SessionOptions()
        options.log_severity_level = 4
        options.intra_op_num_threads = 1
        if not optimise:
            options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        self.session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        self.inputs = {one.name: (one.type, one.shape) for one in self.session.get_inputs()}
        self.outputs = {one.name: (one.type, one.shape) for one in self.session.get_outputs()}


def _open(path: Path, *, optimise: bool = True) -> _Session:
    if not path.is_file():
        raise ModelCheckError(f"{path} is missing; export or import the model again")
    try:
        return _Session(path, optimise)
    except Exception as error:  # onnxruntime raises a type of its own for each status, none of them public
        raise ModelCheckError(
            f"{path} cannot be loaded ({_first_line(error)}); it is damaged, cut off or no ONNX model: export it again"
        ) from None


def _image_tower(session: _Session, spec: ClipSpec) -> _Session:
    size = spec.image_size
    _expect(session, session.inputs, "images", "float", [3, size, size])
    _expect(session, session.outputs, "embeddings", "float", [spec.dim])
    return session


def _text_tower(session: _Session, spec: ClipSpec) -> _Session:
    _expect(session, session.inputs, "tokens", "int64", [spec.context_length])
    _expect(session, session.outputs, "embeddings", "float", [spec.dim])
    return session


def _detector(session: _Session, spec: DetectorSpec) -> _Session:
    side, rows = spec.input_size, spec.max_detections
    _expect(session, session.inputs, "images", "float", [3, side, side])
    for (name, kind), dims in zip(_END2END.items(), ([1], [rows, 4], [rows], [rows]), strict=True):
        _expect(session, session.outputs, name, kind, dims)
    return session


def _expect(
    session: _Session, tensors: dict[str, tuple[str, list[Any]]], name: str, kind: str, dims: list[int]
) -> None:
    """A tensor of that name and type with a batch dimension of any length before `dims`."""
    _require(session, name in tensors, f"there is no tensor {name!r}, only {', '.join(tensors)}")
    found_kind, shape = tensors[name]
    _require(session, found_kind == f"tensor({kind})", f"{name} is {found_kind}, not tensor({kind})")
    _require(session, not isinstance(shape[0], int), f"{name} has a fixed batch of {shape[0]}; export a dynamic one")
    # A graph may leave a length open that only a run tells.
    agrees = len(shape) == 1 + len(dims) and all(
        not isinstance(found, int) or found == wanted for found, wanted in zip(shape[1:], dims, strict=True)
    )
    _require(session, agrees, f"{name} has dimensions {shape[1:]}, its manifest says {dims}")


def _check_vectors(session: _Session, name: str, rows: npt.NDArray[Any], dim: int) -> None:
    for batch in (1, 2):
        (vectors,) = _run(session, ["embeddings"], {name: rows[:batch]})
        shape = (batch, dim)
        _require(session, vectors.shape == shape, f"embeddings have shape {vectors.shape}, not {shape}")
        lengths = np.linalg.norm(vectors, axis=1)  # NaN fails the comparison too
        unit = bool((np.abs(lengths - 1) < _UNIT_TOLERANCE).all())
        _require(session, unit, f"embeddings have length {lengths.tolist()}, not 1: normalise them inside the graph")


def _run(session: _Session, outputs: list[str], feeds: dict[str, npt.NDArray[Any]]) -> list[npt.NDArray[Any]]:
    try:
        values: list[npt.NDArray[Any]] = session.session.run(outputs, feeds)
    except Exception as error:  # as above
        batch = len(next(iter(feeds.values())))
        raise ModelCheckError(
            f"{session.path} fails on a batch of {batch} ({_first_line(error)}); export it with a dynamic batch"
        ) from None
    return values


def _require(session: _Session, holds: bool, complaint: str) -> None:
    if not holds:
        raise ModelCheckError(f"{session.path}: {complaint}; export the model again, or give the manifest of this file")


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0][:200]
