"""The ONNX models of a manifest as plain callables on NumPy arrays, on CPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from models.manifest import ModelManifest
from triton_repo.steps import ImageSteps

UInt8 = npt.NDArray[np.uint8]
Float32 = npt.NDArray[np.float32]

#: Crops per run of the image tower and pictures per run of the detector: bounds the activations whatever the batch, and
#: on CPU keeps them in the cache (a batch of 8 costs the detector 10 % more per picture than 8 runs of one).
CLIP_CHUNK = 16
DETECTOR_CHUNK = 1


def open_session(path: Path, threads: int) -> ort.InferenceSession:
    """Load an ONNX file with `threads` intra-op threads."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    # Idle threads that spin take the core from the next step of the pipeline.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


class Detector:
    """Letterboxed pictures to End2End rows."""

    def __init__(self, manifest: ModelManifest, threads: int = 1, steps: ImageSteps | None = None) -> None:
        self._steps = steps or ImageSteps(manifest)
        self._session = open_session(manifest.path(manifest.detector.onnx), threads)

    def __call__(self, letterboxed: list[UInt8]) -> tuple[Any, Any, Any, Any]:
        """n arrays uint8 [640, 640, 3] -> num_dets [n, 1], det_boxes [n, 100, 4], det_scores, det_classes [n, 100]."""
        parts = [
            self._run(letterboxed[start : start + DETECTOR_CHUNK])
            for start in range(0, len(letterboxed), DETECTOR_CHUNK)
        ]
        num_dets, boxes, scores, classes = (np.concatenate(column) for column in zip(*parts, strict=True))
        return num_dets, boxes, scores, classes

    def _run(self, pictures: list[UInt8]) -> Any:
        side = self._steps.detector.input_size
        images = np.empty((len(pictures), 3, side, side), np.float32)
        for row, picture in enumerate(pictures):
            self._steps.detector_input(picture[None], out=images[row : row + 1])
        return self._session.run(["num_dets", "det_boxes", "det_scores", "det_classes"], {"images": images})


class ImageTower:
    """Crops to vectors."""

    def __init__(self, manifest: ModelManifest, threads: int = 1, steps: ImageSteps | None = None) -> None:
        self._steps = steps or ImageSteps(manifest)
        self._session = open_session(manifest.path(manifest.clip.image_onnx), threads)

    def __call__(self, crops: UInt8) -> Float32:
        """uint8 [n, S, S, 3] -> float32 [n, dim], L2-normalised."""
        vectors = np.empty((len(crops), self._steps.clip.dim), np.float32)
        for start in range(0, len(crops), CLIP_CHUNK):
            chunk = crops[start : start + CLIP_CHUNK]
            images = self._steps.clip_input(chunk)
            vectors[start : start + len(chunk)] = self._session.run(["embeddings"], {"images": images})[0]
        return vectors


class TextTower:
    """Tokens to vectors."""

    def __init__(self, manifest: ModelManifest, threads: int = 1, steps: ImageSteps | None = None) -> None:
        self._steps = steps or ImageSteps(manifest)
        self._session = open_session(manifest.path(manifest.clip.text_onnx), threads)

    def __call__(self, tokens: npt.NDArray[np.int64]) -> Float32:
        """int64 [n, context] -> float32 [n, dim], L2-normalised."""
        vectors: Float32 = self._session.run(["embeddings"], {"tokens": self._steps.functions.tokens(tokens)})[0]
        return vectors
