"""The generated model repository: valid, as large as the manifest says, and one strictly linear ensemble."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2 as pb

from models.manifest import ModelFileError, ModelManifest, load_manifest
from sightlog.errors import ConfigurationError
from triton_repo import contract
from triton_repo.build import build_repository
from triton_repo.configs import Profile, pipeline_models
from triton_repo.contract import refused_item_code
from triton_repo.model_config import Ensemble, to_text
from triton_repo.serving_settings import ServingSettings

PROFILES: tuple[Profile, ...] = ("cpu", "onnxruntime", "tensorrt")


@pytest.fixture(scope="module")
def manifest() -> ModelManifest:
    return load_manifest()


def configs_of(
    manifest: ModelManifest, settings: ServingSettings | None = None, profile: Profile = "cpu"
) -> dict[str, pb.ModelConfig]:
    models = pipeline_models(manifest, settings or ServingSettings(), profile)
    return {model.name: model.to_protobuf() for model in models}


def dims(tensors: list[pb.ModelInput] | list[pb.ModelOutput]) -> dict[str, tuple[int, ...]]:
    return {tensor.name: tuple(tensor.dims) for tensor in tensors}


@pytest.mark.parametrize("profile", PROFILES)
def test_every_config_survives_its_text_form(manifest: ModelManifest, profile: Profile) -> None:
    for config in configs_of(manifest, profile=profile).values():
        assert text_format.Parse(to_text(config), pb.ModelConfig()) == config


def test_public_names_and_types_are_the_agreed_ones(manifest: ModelManifest) -> None:
    pipeline = configs_of(manifest)["image_pipeline"]
    assert [(t.name, t.data_type, tuple(t.dims)) for t in pipeline.input] == [("image", pb.TYPE_UINT8, (-1,))]
    assert {t.name: (t.data_type, tuple(t.dims)) for t in pipeline.output} == {
        "image_embedding": (pb.TYPE_FP32, (512,)),
        "boxes": (pb.TYPE_FP32, (-1, 4)),
        "scores": (pb.TYPE_FP32, (-1,)),
        "class_ids": (pb.TYPE_INT32, (-1,)),
        "object_embeddings": (pb.TYPE_FP32, (-1, 512)),
        "image_size": (pb.TYPE_INT32, (2,)),
    }
    text = configs_of(manifest)["clip_text"]
    assert (dims(text.input), dims(text.output)) == ({"tokens": (77,)}, {"embedding": (512,)})


def test_dimensions_follow_the_manifest(manifest: ModelManifest) -> None:
    other = dataclasses.replace(
        manifest,
        clip=dataclasses.replace(manifest.clip, dim=768, image_size=256, context_length=64),
        detector=dataclasses.replace(manifest.detector, input_size=416, max_detections=50),
    )
    configs = configs_of(other)
    assert dims(configs["image_pipeline"].output)["object_embeddings"] == (-1, 768)
    assert dims(configs["clip_image"].input) == {"crops": (256, 256, 3)}
    assert dims(configs["clip_text"].input) == {"tokens": (64,)}
    assert dims(configs["detector"].input) == {"letterboxed": (416, 416, 3)}
    assert dims(configs["detector"].output)["det_boxes"] == (50, 4)
    assert dims(configs["preprocess"].output)["centre"] == (256, 256, 3)


@pytest.mark.parametrize("profile", PROFILES)
def test_each_step_needs_the_one_before_it_so_that_no_two_run_at_once(
    manifest: ModelManifest, profile: Profile
) -> None:
    # With parallel branches a cancelled request kills Triton 2.51.
    ensemble = next(m for m in pipeline_models(manifest, ServingSettings(), profile) if isinstance(m, Ensemble))
    known, before = {contract.IMAGE}, {contract.IMAGE}
    for step in ensemble.steps:
        consumed, produced = set(step.inputs.values()), set(step.outputs.values())
        assert consumed <= known
        assert consumed & before, f"{step.model} could run beside the step before it"
        assert not produced & known
        known, before = known | produced, produced
    assert {t.name for t in ensemble.outputs} <= known


@pytest.mark.parametrize("profile", PROFILES)
def test_steps_agree_with_the_models_they_run(manifest: ModelManifest, profile: Profile) -> None:
    configs = configs_of(manifest, profile=profile)
    flowing = {tensor.name: (tensor.data_type, tensor.dims) for tensor in configs["image_pipeline"].input}
    for step in configs["image_pipeline"].ensemble_scheduling.step:
        model = configs[step.model_name]
        assert {t.name: (t.data_type, t.dims) for t in model.input} == {
            name: flowing[outer] for name, outer in step.input_map.items()
        }
        assert set(step.output_map) == set(dims(model.output))
        flowing |= {step.output_map[t.name]: (t.data_type, t.dims) for t in model.output}
    for tensor in configs["image_pipeline"].output:
        assert flowing[tensor.name] == (tensor.data_type, tensor.dims)


def test_the_version_is_the_start_of_the_digest_and_never_the_zero_that_triton_does_not_serve() -> None:
    assert contract.serving_version("00000000002a" + "f" * 52) == 42
    assert contract.serving_version("0" * 64) == 1
    assert contract.serving_version("f" * 64) == 2**48 - 1


def test_the_ensemble_runs_no_models_but_those_of_its_manifest(manifest: ModelManifest) -> None:
    other = dataclasses.replace(manifest, digest="00000000002a" + "0" * 52)
    steps = configs_of(other)["image_pipeline"].ensemble_scheduling.step
    assert [step.model_version for step in steps] == [42, 42, 42]


def test_pixels_travel_as_bytes_and_originals_may_differ_in_size(manifest: ModelManifest) -> None:
    inputs = {t.name: t for t in configs_of(manifest)["box_embedder"].input}
    assert inputs["original"].allow_ragged_batch
    assert {inputs[name].data_type for name in ("original", "centre")} == {pb.TYPE_UINT8}


@pytest.mark.parametrize("profile", PROFILES)
def test_only_the_entrances_limit_their_queue(manifest: ModelManifest, profile: Profile) -> None:
    limited = {
        name
        for name, config in configs_of(manifest, ServingSettings(max_queue_size=7), profile).items()
        if config.dynamic_batching.default_queue_policy.max_queue_size == 7
    }
    assert limited == {"preprocess" if profile == "cpu" else "dali_ready", "clip_text"}


def test_no_call_carries_more_crops_than_the_tower_takes(manifest: ModelManifest) -> None:
    configs = configs_of(manifest, ServingSettings(max_crops=40))
    assert json.loads(configs["box_embedder"].parameters["sightlog"].string_value) == {"max_crops": 40}
    assert configs["clip_image"].max_batch_size == 40


def test_settings_reach_the_configs(manifest: ModelManifest) -> None:
    settings = ServingSettings(
        preprocess_instances=3, model_threads=2, max_pixels=1000, queue_delay_us=100, queue_timeout_ms=5
    )
    configs = configs_of(manifest, settings)
    assert configs["preprocess"].instance_group[0].count == 3
    assert json.loads(configs["preprocess"].parameters["sightlog"].string_value) == {"max_pixels": 1000}
    assert json.loads(configs["detector"].parameters["sightlog"].string_value) == {"model_threads": 2}
    batching = configs["preprocess"].dynamic_batching
    assert batching.max_queue_delay_microseconds == 100
    assert batching.default_queue_policy.default_timeout_microseconds == 5000


@pytest.mark.parametrize("wrong", [{"model_threads": 0}, {"preprocess_instances": 0}, {"queue_delay_us": -1}])
def test_a_wrong_setting_is_refused_by_name(wrong: dict[str, int]) -> None:
    with pytest.raises(ConfigurationError, match=next(iter(wrong))):
        ServingSettings(**wrong)


def test_a_repository_is_complete_in_itself_and_can_be_built_again(manifest: ModelManifest, tmp_path: Path) -> None:
    for _ in range(2):
        build_repository(manifest, tmp_path / "repository")
    found = {str(p.relative_to(tmp_path / "repository")) for p in (tmp_path / "repository").rglob("*") if p.is_file()}
    models = {"preprocess", "detector", "box_embedder", "clip_image", "clip_text"}
    version = contract.serving_version(manifest.digest)
    weights = {f"{name}/{version}/{name}.onnx" for name in ("detector", "clip_image", "clip_text")}
    expected = {
        f"{name}/{file}" for name in models | {"image_pipeline"} for file in ("config.pbtxt", "configs/cpu.pbtxt")
    }
    expected |= weights | {"preprocess/warmup/picture.jpg"}
    expected |= {f"{name}/{version}/{file}" for name in models for file in ("model.py", "manifest.json")}
    assert found == expected
    assert (tmp_path / f"repository/image_pipeline/{version}").is_dir()
    assert load_manifest(tmp_path / f"repository/detector/{version}").digest == manifest.digest


def test_weights_that_are_not_the_manifests_are_not_served(manifest: ModelManifest, tmp_path: Path) -> None:
    for file in (*manifest.files, "manifest.json"):
        (tmp_path / file).write_bytes((manifest.folder / file).read_bytes())
    (tmp_path / manifest.detector.onnx).write_bytes(b"other weights")
    with pytest.raises(ModelFileError, match=manifest.detector.onnx):
        build_repository(load_manifest(tmp_path), tmp_path / "repository")


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("empty: there are no bytes", ("empty", "there are no bytes")),
        ("in ensemble 'image_pipeline', undecodable: broken: at 7", ("undecodable", "broken: at 7")),
        ("in ensemble 'image_pipeline', [request id: 9] empty: x", ("empty", "x")),
        ("[request id: <id_unknown>] unexpected shape for input 'image'", None),
        ("model says undecodable: no", None),
        ("", None),
    ],
)
def test_only_a_picture_that_a_model_refused_counts_as_a_broken_item(
    message: str, expected: tuple[str, str] | None
) -> None:
    assert refused_item_code(message) == expected


def test_what_ends_the_decoder_in_fault_tests_is_in_no_ordinary_repository() -> None:
    manifest = load_manifest()

    def parameters(settings: ServingSettings) -> str:
        (model,) = (one for one in pipeline_models(manifest, settings) if one.name == "preprocess")
        return str(model.to_protobuf().parameters["sightlog"].string_value)

    assert "crash_on" not in parameters(ServingSettings())
    assert json.loads(parameters(ServingSettings(crash_on=("ab",))))["crash_on"] == ["ab"]
