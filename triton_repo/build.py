"""Writes a Triton model repository for one model manifest."""

from __future__ import annotations

import shutil
from pathlib import Path

from models.manifest import MANIFEST_FILE, ModelManifest
from triton_repo import contract
from triton_repo.configs import Ensemble, PythonModel, ServingSettings, pipeline_models, to_text

SOURCES = Path(__file__).parent


def build_repository(manifest: ModelManifest, target: Path, settings: ServingSettings | None = None) -> Path:
    """Write the repository of `manifest` into the folder `target` and return it; what it wrote before is replaced.

    Each model's version folder is complete in itself: model.py, the manifest and the weights it runs.
    Raises `ModelFileError` if a weight file is not the one that the manifest names.
    """
    manifest.verify()
    weights = {
        contract.DETECTOR: manifest.detector.onnx,
        contract.CLIP_IMAGE: manifest.clip.image_onnx,
        contract.CLIP_TEXT: manifest.clip.text_onnx,
    }
    version = str(contract.serving_version(manifest.digest))
    for model in pipeline_models(manifest, settings or ServingSettings()):
        folder = target / model.name
        if folder.exists():
            shutil.rmtree(folder)
        (folder / version).mkdir(parents=True)  # an ensemble needs the empty version folder too
        (folder / "config.pbtxt").write_text(to_text(model.to_protobuf()), encoding="utf-8")
        _fill_version(model, folder / version, manifest, weights.get(model.name))
    return target


def _fill_version(model: PythonModel | Ensemble, folder: Path, manifest: ModelManifest, weights: str | None) -> None:
    if isinstance(model, Ensemble):
        return
    shutil.copyfile(SOURCES / model.name / "1" / "model.py", folder / "model.py")
    shutil.copyfile(manifest.folder / MANIFEST_FILE, folder / MANIFEST_FILE)
    if weights is not None:
        # Not a link: weights that are exported again would change under a server that is running or restarts.
        shutil.copyfile(manifest.path(weights), folder / weights)
