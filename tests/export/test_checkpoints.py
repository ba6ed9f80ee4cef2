"""Checkpoints in all usual forms are loaded; damaged and foreign ones are one clear error."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import load_file

from models.export.checkpoints import hub_checkpoint, load_model, local_checkpoint
from models.export.clip import ClipRequest, export
from models.export.errors import CheckpointError, ExportError, HubError
from models.export.random_weights import calibrated_model, save_checkpoint
from models.store import ModelStore
from tests.export.formats import save_as_apple, save_folder, save_training_checkpoint

NAME = "MobileCLIP2-S0"
PLAIN = {"mean": [0.0, 0.0, 0.0], "std": [1.0, 1.0, 1.0], "interpolation": "bilinear"}

Checkpoints = Callable[[str], Path]


@pytest.fixture(scope="module")
def model() -> torch.nn.Module:
    return calibrated_model(NAME)


@pytest.fixture
def small_file(tmp_path: Path) -> Path:
    """A readable checkpoint that fits no architecture."""
    path = tmp_path / "small.pt"
    torch.save({"weight": torch.zeros(64, 64), "bias": torch.zeros(64)}, path)
    return path


def assert_same_weights(found: torch.nn.Module, expected: torch.nn.Module) -> None:
    ours, theirs = found.state_dict(), expected.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


@pytest.mark.parametrize("file", ["weights.safetensors", "open_clip_pytorch_model.bin"])
def test_plain_weights_are_loaded(model: torch.nn.Module, tmp_path: Path, file: str) -> None:
    save_checkpoint(model, tmp_path / file)
    loaded = load_model(NAME, local_checkpoint(NAME, tmp_path / file))
    assert not loaded.training
    assert_same_weights(loaded, model)


def test_a_checkpoint_of_a_training_run_is_loaded(model: torch.nn.Module, tmp_path: Path) -> None:
    save_training_checkpoint(model, tmp_path / "epoch_3.pt")
    assert_same_weights(load_model(NAME, local_checkpoint(NAME, tmp_path / "epoch_3.pt")), model)


def test_a_checkpoint_of_apples_own_code_is_loaded(tmp_path: Path) -> None:
    name = "MobileCLIP-S1"
    model = open_clip.create_model(name)
    torch.nn.init.zeros_(model.visual.trunk.head.fc.bias)
    save_as_apple(model, tmp_path / "mobileclip_s1.pt")
    assert_same_weights(load_model(name, local_checkpoint(name, tmp_path / "mobileclip_s1.pt")), model)


def test_a_folder_is_loaded_and_says_how_pictures_are_prepared(model: torch.nn.Module, tmp_path: Path) -> None:
    said = {"mean": [0.1, 0.2, 0.3], "std": [0.5, 0.5, 0.5], "interpolation": "bicubic", "resize_mode": "shortest"}
    save_folder(model, NAME, tmp_path / "pushed", **said)
    checkpoint = local_checkpoint(NAME, tmp_path / "pushed")
    assert checkpoint.preprocess == said
    assert_same_weights(load_model(NAME, checkpoint), model)


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
@pytest.mark.parametrize("kept", [0.0, 0.3, 0.999])
def test_a_truncated_file_is_one_error(tmp_path: Path, suffix: str, kept: float) -> None:
    path = tmp_path / f"cut{suffix}"
    save_checkpoint(torch.nn.Linear(256, 256), path)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * kept)])
    with pytest.raises(CheckpointError, match="cannot be read as a checkpoint"):
        load_model(NAME, local_checkpoint(NAME, path))


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("notes.pt", b"these are no weights"),
        ("page.safetensors", b"<!doctype html><title>Sign in</title>"),
        ("list.pt", [torch.zeros(2)]),
        ("empty.pt", {}),
        ("tensor.pt", torch.zeros(2)),
    ],
)
def test_a_file_that_is_no_checkpoint_is_one_error(tmp_path: Path, file: str, content: Any) -> None:
    path = tmp_path / file
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
    with pytest.raises(CheckpointError, match="cannot be read as a checkpoint"):
        load_model(NAME, local_checkpoint(NAME, path))


class Harmful:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return Path.touch, (self.mark,)


def test_code_in_a_checkpoint_is_refused_and_never_run(tmp_path: Path) -> None:
    mark, path = tmp_path / "it-ran", tmp_path / "weights.pt"
    torch.save({"state_dict": Harmful(mark)}, path)
    with pytest.raises(CheckpointError, match=r"save the model's state_dict\(\) alone"):
        load_model(NAME, local_checkpoint(NAME, path))
    assert not mark.exists()
    path.write_bytes(pickle.dumps(Harmful(mark)))
    with pytest.raises(CheckpointError):
        load_model(NAME, local_checkpoint(NAME, path))
    assert not mark.exists()


@pytest.mark.parametrize("other", ["MobileCLIP2-S2", "MobileCLIP2-S3"])
def test_weights_of_another_architecture_are_one_short_error(checkpoint_of: Checkpoints, other: str) -> None:
    with pytest.raises(CheckpointError, match=f"are not those of {other}") as raised:
        load_model(other, local_checkpoint(other, checkpoint_of(NAME)))
    assert len(str(raised.value)) < 600


def test_weights_that_are_no_clip_are_one_error(small_file: Path) -> None:
    with pytest.raises(CheckpointError, match=f"the 2 tensors of .* are not those of {NAME}"):
        load_model(NAME, local_checkpoint(NAME, small_file))


def test_a_missing_tensor_is_never_left_random(checkpoint_of: Checkpoints, tmp_path: Path) -> None:
    weights = load_file(checkpoint_of(NAME))
    del weights["visual.trunk.head.fc.weight"]
    torch.save(weights, tmp_path / "partial.pt")
    with pytest.raises(CheckpointError, match=r"head\.fc\.weight"):
        load_model(NAME, local_checkpoint(NAME, tmp_path / "partial.pt"))


def folder_with(folder: Path, config: object, weights: str = "open_clip_model.safetensors") -> Path:
    folder.mkdir()
    (folder / weights).touch()
    (folder / "open_clip_config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


def model_config(name: str, **text: Any) -> dict[str, Any]:
    config: dict[str, Any] = open_clip.get_model_config(name)
    config["text_cfg"].update(text)
    return {"model_cfg": config, "preprocess_cfg": PLAIN}


def test_a_folder_without_weights_or_description_is_one_error(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no open_clip_model\.safetensors or"):
        local_checkpoint(NAME, folder_with(tmp_path / "a", model_config(NAME), weights="other.txt"))
    for number, config in enumerate(({}, [], {"model_cfg": {"embed_dim": 512}}, {"model_cfg": None})):
        with pytest.raises(CheckpointError, match="does not describe a model"):
            local_checkpoint(NAME, folder_with(tmp_path / f"b{number}", config))
    (tmp_path / "a" / "open_clip_config.json").write_text("{", encoding="utf-8")
    (tmp_path / "a" / "open_clip_model.safetensors").touch()
    with pytest.raises(CheckpointError, match="does not describe a model"):
        local_checkpoint(NAME, tmp_path / "a")
    with pytest.raises(CheckpointError, match="does not exist"):
        local_checkpoint(NAME, tmp_path / "nothing.pt")


def test_a_folder_of_another_architecture_is_one_error(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=f"describes fastvit_mci2 with .* but {NAME} is fastvit_mci0"):
        local_checkpoint(NAME, folder_with(tmp_path / "s2", model_config("MobileCLIP2-S2")))


def test_a_folder_with_another_tokenizer_is_refused(tmp_path: Path) -> None:
    config = model_config(NAME, hf_tokenizer_name="google/gemma-2b")
    folder = folder_with(tmp_path / "gemma", config)
    with pytest.raises(ExportError, match="another tokenizer than CLIP"):
        export(ClipRequest(NAME, checkpoint=folder), ModelStore(tmp_path / "store"))


def test_a_folder_whose_pictures_are_prepared_otherwise_is_refused(tmp_path: Path) -> None:
    config = model_config(NAME)
    config["preprocess_cfg"] = {**PLAIN, "resize_mode": "squash"}
    folder = folder_with(tmp_path / "squashed", config)
    with pytest.raises(ExportError, match="only 'shortest' is supported"):
        export(ClipRequest(NAME, checkpoint=folder), ModelStore(tmp_path / "store"))


def test_a_bad_checkpoint_leaves_the_store_as_it_was(small_file: Path, tmp_path: Path) -> None:
    store = ModelStore(tmp_path / "store")
    with pytest.raises(CheckpointError):
        export(ClipRequest(NAME, checkpoint=small_file), store)
    assert [part.name for part in store.parts("clip")] == ["tiny"]


@pytest.fixture
def no_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The hub's client sees an empty cache, and a port where nobody listens."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    return tmp_path


def test_an_unreachable_hub_is_one_error_that_says_the_offline_way(
    no_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def retries(*_: Any, **__: Any) -> None:
        raise AssertionError("a download is tried, with retries for a minute")

    monkeypatch.setattr(open_clip, "download_pretrained", retries)
    with pytest.raises(HubError) as raised:
        hub_checkpoint(NAME, "dfndr2b")
    said = str(raised.value)
    assert "refused" in said
    assert "open_clip_model.safetensors of http://127.0.0.1:9/timm/MobileCLIP2-S0-OpenCLIP" in said
    assert f"sightlog models export-clip {NAME} --checkpoint open_clip_model.safetensors" in said


def test_weights_in_the_cache_need_no_hub(no_cache: Path) -> None:
    repository = no_cache / "models--timm--MobileCLIP2-S0-OpenCLIP"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("1" * 40)
    snapshot = repository / "snapshots" / ("1" * 40)
    snapshot.mkdir(parents=True)
    (snapshot / "open_clip_model.safetensors").touch()
    assert hub_checkpoint(NAME, "dfndr2b").file == snapshot / "open_clip_model.safetensors"
