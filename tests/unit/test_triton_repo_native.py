"""Repositories for NVIDIA's container: what runs each model, what lies where, and the conversion to TensorRT.

Here is neither DALI, TensorRT nor a GPU: configs are checked against Triton's protobuf, files against the configs.
"""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import onnx
import pytest
from click.testing import CliRunner
from google.protobuf import text_format
from PIL import Image
from tritonclient.grpc import model_config_pb2 as pb

from models.manifest import ModelManifest, load_manifest
from sightlog.errors import ConfigurationError
from tests.stand_in_dali import stand_in_dali
from triton_repo.build import build_repository
from triton_repo.cli import repository as command
from triton_repo.configs import Profile, pipeline_models
from triton_repo.contract import serving_version
from triton_repo.serving_settings import ServingSettings
from triton_repo.tensorrt import plan_commands

ROOT = Path(__file__).parents[2]
NATIVE: tuple[Profile, ...] = ("onnxruntime", "tensorrt")
NETWORKS = {"detector", "clip_image", "clip_text"}


@pytest.fixture(scope="module")
def manifest() -> ModelManifest:
    return load_manifest()


@pytest.fixture
def dali() -> Iterator[None]:
    with stand_in_dali():
        yield


def parsed(path: Path) -> pb.ModelConfig:
    return text_format.Parse(path.read_text(), pb.ModelConfig())


def configs_of(manifest: ModelManifest, profile: Profile) -> dict[str, pb.ModelConfig]:
    return {model.name: model.to_protobuf() for model in pipeline_models(manifest, ServingSettings(), profile)}


@pytest.mark.parametrize("profile", NATIVE)
def test_names_types_and_dimensions_do_not_depend_on_what_runs_a_model(
    manifest: ModelManifest, profile: Profile
) -> None:
    native, python = configs_of(manifest, profile), configs_of(manifest, "cpu")
    assert set(native) == set(python) | {"dali_ready"}
    for name, config in python.items():
        assert (native[name].input, native[name].output) == (config.input, config.output), name
        assert native[name].max_batch_size == config.max_batch_size


@pytest.mark.parametrize("profile", NATIVE)
def test_dali_decodes_and_the_networks_run_on_gpu(manifest: ModelManifest, profile: Profile) -> None:
    platform = {"onnxruntime": "onnxruntime_onnx", "tensorrt": "tensorrt_plan"}[profile]
    found = {
        name: (config.backend or config.platform, config.instance_group[0].kind)
        for name, config in configs_of(manifest, profile).items()
        if name != "image_pipeline"
    }
    gpu, cpu = pb.ModelInstanceGroup.KIND_GPU, pb.ModelInstanceGroup.KIND_CPU
    assert found == dict.fromkeys(NETWORKS, (platform, gpu)) | {
        "preprocess": ("dali", gpu),
        "dali_ready": ("python", cpu),
        "box_embedder": ("python", cpu),
    }


@pytest.mark.parametrize("profile", NATIVE)
def test_dali_is_given_only_what_was_made_ready_for_it(manifest: ModelManifest, profile: Profile) -> None:
    steps = configs_of(manifest, profile)["image_pipeline"].ensemble_scheduling.step
    assert [step.model_name for step in steps] == ["dali_ready", "preprocess", "detector", "box_embedder"]
    assert dict(steps[0].output_map) == {"dali_image": "dali_image"}
    assert dict(steps[1].input_map) == {"image": "dali_image"}


@pytest.mark.parametrize("profile", ["cpu", *NATIVE])
def test_only_repeated_queries_are_answered_from_the_cache(manifest: ModelManifest, profile: Profile) -> None:
    cached = {name for name, config in configs_of(manifest, profile).items() if config.response_cache.enable}
    assert cached == {"clip_text"}


def test_a_gpu_warms_up_with_one_and_with_a_full_batch(manifest: ModelManifest) -> None:
    sizes = {
        name: [sample.batch_size for sample in config.model_warmup]
        for name, config in configs_of(manifest, "tensorrt").items()
    }
    assert sizes == {
        "dali_ready": [1],
        "preprocess": [1, 8],
        "detector": [1, 8],
        "box_embedder": [],
        "clip_image": [1, 128],
        "clip_text": [1, 8],
        "image_pipeline": [],
    }


@pytest.mark.parametrize("profile", ["cpu", *NATIVE])
def test_warm_up_samples_are_valid_inputs(
    dali: None, manifest: ModelManifest, tmp_path: Path, profile: Profile
) -> None:
    build_repository(manifest, tmp_path, profile=profile)
    for path in tmp_path.glob("*/config.pbtxt"):
        config = parsed(path)
        for sample in config.model_warmup:
            assert set(sample.inputs) == {tensor.name for tensor in config.input}
            for tensor in config.input:
                given = sample.inputs[tensor.name]
                assert given.data_type == tensor.data_type
                assert all(wanted in (-1, found) for wanted, found in zip(tensor.dims, given.dims, strict=True))
                assert min(given.dims) > 0
                if tensor.name == "image":
                    file = (path.parent / "warmup" / given.input_data_file).read_bytes()
                    assert list(given.dims) == [len(file)]
                    assert Image.open(io.BytesIO(file)).convert("RGB").size == (640, 480)


@pytest.mark.parametrize("profile", NATIVE)
def test_one_repository_holds_both_forms(dali: None, manifest: ModelManifest, tmp_path: Path, profile: Profile) -> None:
    native = build_repository(manifest, tmp_path / "native", profile=profile)
    python = build_repository(manifest, tmp_path / "python")
    version = str(serving_version(manifest.digest))
    for name, config in configs_of(manifest, profile).items():
        assert parsed(native / name / "config.pbtxt") == config
        files = {path.name for path in (native / name / version).iterdir()}
        assert ("model.onnx" in files, "model.dali" in files) == (name in NETWORKS, name == "preprocess")
    for path in python.rglob("*"):
        if path.is_file() and path.name != "config.pbtxt":
            assert (native / path.relative_to(python)).read_bytes() == path.read_bytes()
    assert parsed(native / "dali_ready/configs/cpu.pbtxt").backend == "python"
    assert (native / f"preprocess/{version}/model.dali").read_text() == f"gpu graph of {manifest.digest}"


def test_a_repository_of_another_profile_is_replaced_as_a_whole(
    dali: None, manifest: ModelManifest, tmp_path: Path
) -> None:
    build_repository(manifest, tmp_path, profile="tensorrt")
    build_repository(manifest, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == set(configs_of(manifest, "cpu"))
    assert not list(tmp_path.rglob("model.onnx"))


def test_without_dali_nothing_is_touched(
    manifest: ModelManifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "triton_repo.native", raising=False)
    monkeypatch.delitem(sys.modules, "triton_repo.dali_pipeline", raising=False)
    monkeypatch.setitem(sys.modules, "nvidia.dali", None)
    build_repository(manifest, tmp_path)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(
        ConfigurationError, match=r"for onnxruntime .* nvidia.* is missing.*pip install 'sightlog\[stack,dali\]'"
    ):
        build_repository(manifest, tmp_path, profile="onnxruntime")
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(("profile", "expected"), [("onnxruntime", "plain"), ("tensorrt", "special")])
def test_tensorrt_takes_the_detector_with_its_own_suppression(
    dali: None, manifest: ModelManifest, tmp_path: Path, profile: Profile, expected: str
) -> None:
    folder = tmp_path / "models"
    shutil.copytree(manifest.folder, folder, ignore=shutil.ignore_patterns("*.py", "__pycache__"))
    special = onnx.load(str(folder / manifest.detector.onnx))
    special.producer_name = "special"
    onnx.save(special, str(folder / "detector.trt.onnx"))
    build_repository(load_manifest(folder), tmp_path / "repository", profile=profile)
    (found,) = (tmp_path / "repository/detector").glob("*/model.onnx")
    assert (onnx.load(str(found)).producer_name == "special") == (expected == "special")


def test_plans_are_made_for_the_shapes_of_the_configs(dali: None, manifest: ModelManifest, tmp_path: Path) -> None:
    build_repository(manifest, tmp_path, profile="tensorrt")
    where = f"detector/{serving_version(manifest.digest)}"
    image, text, detector = plan_commands(tmp_path)
    assert detector == (
        f"trtexec --onnx={where}/model.onnx --saveEngine={where}/model.plan.new"
        " --minShapes=letterboxed:1x640x640x3 --optShapes=letterboxed:8x640x640x3"
        " --maxShapes=letterboxed:8x640x640x3 --skipInference"
        f" && mv {where}/model.plan.new {where}/model.plan"
    )
    assert "--minShapes=crops:1x128x128x3 " in image
    assert "--maxShapes=crops:128x128x128x3 " in image
    assert "--maxShapes=tokens:8x77 " in text
    assert [line.replace(" --fp16", "") for line in plan_commands(tmp_path, fp16=True)] == [image, text, detector]
    assert all(" --fp16 &&" in line for line in plan_commands(tmp_path, fp16=True))


def test_other_repositories_have_no_plans(dali: None, manifest: ModelManifest, tmp_path: Path) -> None:
    build_repository(manifest, tmp_path, profile="onnxruntime")
    with pytest.raises(ConfigurationError, match="--profile tensorrt"):
        plan_commands(tmp_path)


def test_the_script_makes_every_plan_that_the_configs_ask_for(
    dali: None, manifest: ModelManifest, tmp_path: Path
) -> None:
    repository = build_repository(manifest, tmp_path / "a repository", profile="tensorrt")
    tool = tmp_path / "bin" / "trtexec"
    tool.parent.mkdir()
    tool.write_text(
        "#!/usr/bin/env bash\nset -e\n"
        "for option; do case $option in --onnx=*) from=${option#*=};; --saveEngine=*) to=${option#*=};; esac; done\n"
        'cp "$from" "$to"\n'
    )
    tool.chmod(0o755)
    script(tool.parent, repository.relative_to(tmp_path), cwd=tmp_path)
    plans = {str(path.relative_to(repository).parent.parent) for path in repository.rglob("*.plan*")}
    assert plans == NETWORKS
    assert all(path.name == "model.plan" for path in repository.rglob("*.plan*"))


@pytest.mark.skipif(Path("/usr/src/tensorrt/bin/trtexec").exists(), reason="this machine has trtexec")
def test_the_script_uses_the_container_where_there_is_no_trtexec(
    dali: None, manifest: ModelManifest, tmp_path: Path
) -> None:
    repository = build_repository(manifest, tmp_path / "repository", profile="tensorrt")
    tool = tmp_path / "bin" / "docker"
    tool.parent.mkdir()
    tool.write_text("#!/usr/bin/env bash\nprintf '%s\\n' \"$@\"\n")
    tool.chmod(0o755)
    lines = script(tool.parent, repository, "--fp16").splitlines()
    assert lines[:4] == ["run", "--rm", "--gpus", "all"]
    assert f"{repository}:/repository" in lines
    assert sum(line.startswith("trtexec ") and " --fp16 " in line for line in lines) == len(NETWORKS)


def script(tools: Path, *arguments: str | Path, cwd: Path | None = None) -> str:
    environment = {"PATH": f"{tools}:/usr/bin:/bin", "HOME": os.environ.get("HOME", "/")}
    command = [ROOT / "scripts" / "tensorrt", *arguments]
    return subprocess.run(command, env=environment, cwd=cwd, check=True, capture_output=True, text=True).stdout


def test_the_script_is_clean_bash() -> None:
    subprocess.run(["bash", "-n", ROOT / "scripts" / "tensorrt"], check=True)
    if shellcheck := shutil.which("shellcheck"):
        subprocess.run([shellcheck, ROOT / "scripts" / "tensorrt"], check=True)


def test_the_command_writes_the_repository_of_a_folder_of_models(manifest: ModelManifest, tmp_path: Path) -> None:
    done = CliRunner().invoke(command, [str(tmp_path / "out"), "--models", str(manifest.folder)])
    assert done.exit_code == 0, done.output
    assert manifest.digest[:12] in done.stdout
    assert (tmp_path / "out/image_pipeline/config.pbtxt").is_file()


def test_the_command_does_not_write_into_a_folder_of_something_else(manifest: ModelManifest, tmp_path: Path) -> None:
    (tmp_path / "detector").mkdir()
    (tmp_path / "detector" / "work").write_text("mine")
    done = CliRunner().invoke(command, [str(tmp_path), "--models", str(manifest.folder)])
    assert isinstance(done.exception, ConfigurationError)
    assert (tmp_path / "detector" / "work").read_text() == "mine"
