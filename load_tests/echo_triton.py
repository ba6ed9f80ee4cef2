"""A model repository for a real Triton whose `image_pipeline` answers at once: it does not look at the picture."""

from __future__ import annotations

from pathlib import Path

from models.manifest import ModelManifest
from triton_repo import contract
from triton_repo.model_config import Model, to_text
from triton_repo.pipeline_parts import Tensors

_MODEL = '''\
"""Answers every request with the same: a picture of 640 x 480 with one object."""

import numpy as np
import triton_python_backend_utils as pb

DIM = {dim}


class TritonPythonModel:
    def execute(self, requests):
        return [self._answer() for _ in requests]

    def _answer(self):
        vector = np.full((1, DIM), DIM**-0.5, np.float32)
        tensors = {{
            "{embedding}": vector,
            "{boxes}": np.array([[[10, 20, 110, 220]]], np.float32),
            "{scores}": np.array([[0.9]], np.float32),
            "{class_ids}": np.zeros((1, 1), np.int32),
            "{objects}": vector[None],
            "{size}": np.array([[640, 480]], np.int32),
        }}
        return pb.InferenceResponse([pb.Tensor(name, value) for name, value in tensors.items()])
'''


def build_echo(manifest: ModelManifest, folder: Path) -> Path:
    """Write the repository into `folder`, with names, tensors and version of the real one, and return it."""
    tensors = Tensors(manifest)
    model = Model(
        contract.IMAGE_PIPELINE, (tensors.image,), (*tensors.results, tensors.size), max_batch_size=8, warmup=None
    )
    target = folder / model.name
    version = target / str(contract.serving_version(manifest.digest))
    version.mkdir(parents=True)
    (target / "configs").mkdir()
    for config in (target / "config.pbtxt", target / "configs" / "cpu.pbtxt"):
        config.write_text(to_text(model.to_protobuf()), encoding="utf-8")
    text = _MODEL.format(
        dim=manifest.clip.dim,
        embedding=contract.IMAGE_EMBEDDING,
        boxes=contract.BOXES,
        scores=contract.SCORES,
        class_ids=contract.CLASS_IDS,
        objects=contract.OBJECT_EMBEDDINGS,
        size=contract.IMAGE_SIZE,
    )
    (version / "model.py").write_text(text, encoding="utf-8")
    return folder
