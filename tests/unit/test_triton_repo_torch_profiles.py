"""The repositories of the profiles with PyTorch: public tensors as on CPU, steps in a row, what stays on the GPU."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2 as pb

from models.manifest import ModelManifest, load_manifest
from triton_repo.build import SERVER_FLAGS, build_repository
from triton_repo.configs import Profile, pipeline_models
from triton_repo.contract import serving_version
from triton_repo.gpu_settings import GpuSettings
from triton_repo.model_config import Ensemble, to_text
from triton_repo.serving_settings import ServingSettings

PROFILES: tuple[Profile, ...] = ("fused", "ensemble")
ON_CPU = ServingSettings(gpu=GpuSettings(device="cpu"))


@pytest.fixture(scope="module")
def manifest() -> ModelManifest:
    return load_manifest()


def configs_of(
    manifest: ModelManifest, profile: Profile, settings: ServingSettings | None = None
) -> dict[str, pb.ModelConfig]:
    models = pipeline_models(manifest, settings or ServingSettings(), profile)
    return {model.name: model.to_protobuf() for model in models}


@pytest.mark.parametrize("profile", PROFILES)
def test_every_config_survives_its_text_form(manifest: ModelManifest, profile: Profile) -> None:
    for config in configs_of(manifest, profile).values():
        assert text_format.Parse(to_text(config), pb.ModelConfig()) == config


@pytest.mark.parametrize("profile", PROFILES)
def test_public_models_have_the_tensors_of_the_profile_for_cpu(manifest: ModelManifest, profile: Profile) -> None:
    expected, found = configs_of(manifest, "cpu"), configs_of(manifest, profile)
    for name in {"image_pipeline", "clip_text"} | ({"clip_image"} & set(found)):
        assert list(found[name].input) == list(expected[name].input)
        assert list(found[name].output) == list(expected[name].output)


@pytest.mark.parametrize(
    ("profile", "steps"),
    [("fused", ["dali_ready", "fused_pipeline"]), ("ensemble", ["preprocess", "detector", "box_embedder"])],
)
def test_each_step_takes_only_what_an_earlier_one_made(
    manifest: ModelManifest, profile: Profile, steps: list[str]
) -> None:
    models = {model.name: model for model in pipeline_models(manifest, ServingSettings(), profile)}
    ensemble = models["image_pipeline"]
    assert isinstance(ensemble, Ensemble)
    assert [step.model for step in ensemble.steps] == steps
    known = {spec.name: spec for spec in ensemble.inputs}
    for step in ensemble.steps:
        assert step.version == serving_version(manifest.digest)
        for spec in models[step.model].inputs:
            made = known[step.inputs[spec.name]]
            assert (made.dtype, made.dims) == (spec.dtype, spec.dims)
        known |= {step.outputs[spec.name]: spec for spec in models[step.model].outputs}
    assert {spec.name for spec in ensemble.outputs} <= set(known)


@pytest.mark.parametrize("profile", PROFILES)
def test_only_what_clients_reach_first_limits_its_queue(manifest: ModelManifest, profile: Profile) -> None:
    configs = configs_of(manifest, profile, ServingSettings(max_queue_size=7))
    limited = {name for name, one in configs.items() if one.dynamic_batching.default_queue_policy.max_queue_size == 7}
    assert limited == {"dali_ready" if profile == "fused" else "preprocess", "clip_text"}


def test_steps_take_tensors_where_they_lie_on_each_gpu(manifest: ModelManifest) -> None:
    configs = configs_of(manifest, "ensemble", ServingSettings(gpus=(1, 3)))
    for name in ("preprocess", "detector", "box_embedder", "clip_image"):
        assert configs[name].parameters["FORCE_CPU_ONLY_INPUT_TENSORS"].string_value == "no"
        (group,) = configs[name].instance_group
        assert (group.kind, list(group.gpus)) == (pb.ModelInstanceGroup.KIND_GPU, [1, 3])


def test_without_a_gpu_all_is_on_the_host(manifest: ModelManifest) -> None:
    for config in configs_of(manifest, "ensemble", ON_CPU).values():
        assert "FORCE_CPU_ONLY_INPUT_TENSORS" not in config.parameters
        assert all(group.kind == pb.ModelInstanceGroup.KIND_CPU for group in config.instance_group)


def test_batches_and_instances_are_those_of_the_settings(manifest: ModelManifest) -> None:
    gpu = GpuSettings(batch=16, crops=640, preprocess_instances=3, box_embedder_instances=4)
    configs = configs_of(manifest, "ensemble", ServingSettings(gpu=gpu))
    sizes = {name: configs[name].max_batch_size for name in ("preprocess", "detector", "box_embedder", "clip_image")}
    assert sizes == {"preprocess": 16, "detector": 16, "box_embedder": 16, "clip_image": 640}
    counts = {name: one.instance_group[0].count for name, one in configs.items() if one.instance_group}
    assert counts == {"preprocess": 3, "detector": 1, "box_embedder": 4, "clip_image": 1, "clip_text": 1}
    parameters = json.loads(configs["detector"].parameters["sightlog"].string_value)
    assert GpuSettings.from_json(parameters["gpu"]) == gpu


def test_the_repository_tells_how_much_memory_its_server_needs(manifest: ModelManifest, tmp_path: Path) -> None:
    settings = ServingSettings(gpus=(0, 2), gpu=GpuSettings(pool_mb=1024))
    build_repository(manifest, tmp_path, settings, "ensemble")
    assert (tmp_path / SERVER_FLAGS).read_text().split() == [
        "--cuda-memory-pool-byte-size=0:1073741824",
        "--cuda-memory-pool-byte-size=2:1073741824",
    ]
    for name in ("preprocess", "detector", "box_embedder", "clip_image", "clip_text"):
        version = tmp_path / name / str(serving_version(manifest.digest))
        assert (version / "model.py").exists()
        assert (version / "manifest.json").exists()
        assert not (tmp_path / name / "configs").exists()
    build_repository(manifest, tmp_path, replace(settings, gpu=GpuSettings()), "fused")
    assert not (tmp_path / SERVER_FLAGS).exists()
    assert {path.name for path in tmp_path.iterdir()} == {"image_pipeline", "dali_ready", "fused_pipeline", "clip_text"}
