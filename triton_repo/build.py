"""Writes a Triton model repository for one model manifest."""

from __future__ import annotations

import importlib
import shutil
from pathlib import Path
from typing import Any

from models.manifest import MANIFEST_FILE, ModelManifest
from sightlog.errors import ConfigurationError
from triton_repo import contract
from triton_repo.configs import NATIVE, ON_TORCH, Profile, pipeline_models
from triton_repo.model_config import PYTHON, Ensemble, Model, to_text
from triton_repo.serving_settings import ServingSettings

SOURCES = Path(__file__).parent
#: Beside the models, where Triton looks at folders alone.
SERVER_FLAGS = "server.args"


def build_repository(
    manifest: ModelManifest, target: Path, settings: ServingSettings | None = None, profile: Profile = "cpu"
) -> Path:
    """Write the repository of `manifest` into the folder `target` and return it; what it wrote before is replaced.

    Each model's version folder is complete in itself: model.py, the manifest, the weights, and what the backends of
    the profile load. A server takes `config.pbtxt`, which is the profile's, or `configs/cpu.pbtxt`, which is the python
    backend's, if it is started with `--model-config-name=cpu`; `fused` and `ensemble` have the first alone.

    A server of the profile `ensemble` needs the flags in `server.args`, one a line.

    Raises `ModelFileError` if a weight file is not the one that the manifest names, `ConfigurationError` if a package
    is missing that the profile needs.
    """
    manifest.verify()
    settings = settings or ServingSettings()
    native = _native(profile) if profile in NATIVE else None
    on_cpu = {model.name: model for model in pipeline_models(manifest, settings)}
    for name in (*on_cpu, contract.DALI_READY, contract.FUSED_PIPELINE):
        shutil.rmtree(target / name, ignore_errors=True)
    (target / SERVER_FLAGS).unlink(missing_ok=True)
    for model in pipeline_models(manifest, settings, profile):
        folder = target / model.name
        version = folder / str(contract.serving_version(manifest.digest))
        version.mkdir(parents=True)  # an ensemble needs the empty version folder too
        _write_config(model, folder / "config.pbtxt")
        if profile not in ON_TORCH:
            _write_config(on_cpu.get(model.name, model), folder / "configs" / "cpu.pbtxt")
        if isinstance(model, Ensemble):
            continue
        weights = _copy_sources(model, manifest, version)
        if native and model.runtime.backend != PYTHON.backend:
            native.write_native(model, manifest, weights, version)
    if profile == "ensemble":
        flags = _server_flags(settings)
        (target / SERVER_FLAGS).write_text("".join(f"{flag}\n" for flag in flags), encoding="utf-8")
    return target


def _server_flags(settings: ServingSettings) -> list[str]:
    """What a server of the profile `ensemble` is started with: memory on each GPU for the tensors between the steps."""
    if settings.gpu.device == "cpu":
        return []
    return [f"--cuda-memory-pool-byte-size={gpu}:{settings.gpu.pool_mb << 20}" for gpu in settings.gpus]


def _native(profile: Profile) -> Any:
    """Loaded only where it is needed: the local stack runs without these packages."""
    try:
        return importlib.import_module("triton_repo.native")
    except ModuleNotFoundError as error:
        raise ConfigurationError(
            f"a repository for {profile} is written with NVIDIA DALI and onnx, and {error.name} is missing: "
            "pip install 'sightlog[stack,dali]'"
        ) from None


def _write_config(model: Model | Ensemble, path: Path) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(to_text(model.to_protobuf()), encoding="utf-8")


def _copy_sources(model: Model, manifest: ModelManifest, folder: Path) -> Path | None:
    """What is there before the repository: samples, Python, weights. -> the weights of the manifest, if it has any."""
    for sample in (model.warmup or {}).values():
        (folder.parent / "warmup").mkdir(exist_ok=True)
        (folder.parent / "warmup" / sample.name).write_bytes(sample.content)
    shutil.copyfile(SOURCES / (model.source or model.name) / "1" / "model.py", folder / "model.py")
    shutil.copyfile(manifest.folder / MANIFEST_FILE, folder / MANIFEST_FILE)
    files = {
        contract.DETECTOR: [manifest.detector.onnx],
        contract.CLIP_IMAGE: [manifest.clip.image_onnx],
        contract.CLIP_TEXT: [manifest.clip.text_onnx],
        contract.FUSED_PIPELINE: [manifest.detector.onnx, manifest.clip.image_onnx],
    }.get(model.name, [])
    for file in files:
        # Not a link: weights that are exported again would change under a server that is running or restarts.
        shutil.copyfile(manifest.path(file), folder / file)
    return manifest.path(files[0]) if files else None
