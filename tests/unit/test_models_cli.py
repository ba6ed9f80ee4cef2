"""`sightlog models list | show | use`: what a data folder runs is chosen by name, and checked before it changes."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson
import pytest
from click.testing import CliRunner, Result

from agents.settings import AgentSettings
from models.cli import models
from models.manifest import TINY_FOLDER, load_manifest
from models.settings import chosen_folder
from models.store import ModelStore
from sightlog.errors import ConfigurationError, SightlogError
from stack.settings import StackSettings

TINY = load_manifest()


@pytest.fixture
def data_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SIGHTLOG_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setenv("SIGHTLOG_MODELS_DIR", str(tmp_path / "store"))
    return tmp_path / "data"


@pytest.fixture
def store(data_dir: Path, tmp_path: Path) -> ModelStore:
    """With one more detector, of other classes."""
    store = ModelStore(tmp_path / "store")
    add_detector(store, "letters", tuple("abcdef"))
    return store


def add_detector(store: ModelStore, name: str, classes: tuple[str, ...], **changed: Any) -> None:
    with store.adding("detector", name) as folder:
        shutil.copyfile(TINY_FOLDER / "detector.onnx", folder / "detector.onnx")
        store.write_part(folder, replace(TINY.detector, name=name, classes=classes, **changed), {"head": "test"})


def run(*arguments: str) -> Result:
    return CliRunner().invoke(models, arguments, catch_exceptions=False)


def in_use() -> Any:
    return orjson.loads(run("show", "--json").output)


def test_without_a_choice_the_tiny_models_run(data_dir: Path) -> None:
    assert in_use()["digest"] == TINY.digest
    assert AgentSettings.load().model_folder is None


def test_a_choice_is_what_agents_and_the_stack_run(store: ModelStore, data_dir: Path) -> None:
    result = run("use", "tiny", "--detector", "letters", "--original-cap", "0")
    assert result.exit_code == 0
    assert "tiny+letters is in use" in result.output
    assert "the next `sightlog up` starts with it" in result.output
    manifest = load_manifest(AgentSettings.load().model_folder)
    manifest.verify()
    assert (manifest.detector.classes, manifest.preprocessing.original_cap) == (tuple("abcdef"), 0)
    assert in_use()["digest"] == manifest.digest != TINY.digest
    settings = StackSettings()
    assert chosen_folder(settings.data_dir, settings.models) == manifest.folder


def test_the_detector_stays_when_none_is_named(store: ModelStore) -> None:
    run("use", "tiny", "--detector", "letters")
    assert "the detector is letters" in run("use", "tiny", "--original-cap", "800").output
    assert in_use()["detector"]["name"] == "letters"


def test_going_back_gives_the_same_digest_again(store: ModelStore) -> None:
    run("use", "tiny", "--detector", "letters")
    digest = in_use()["digest"]
    run("use", "tiny", "--detector", "tiny")
    assert in_use()["digest"] == TINY.digest
    run("use", "tiny", "--detector", "letters")
    assert in_use()["digest"] == digest


def test_the_list_marks_what_is_in_use(store: ModelStore) -> None:
    def marked() -> dict[tuple[str, str], bool]:
        return {(p["kind"], p["name"]): p["in_use"] for p in orjson.loads(run("list", "--json").output)["parts"]}

    add_detector(store, "digits", tuple("123456"))
    run("use", "tiny", "--detector", "letters")
    assert marked() == {
        ("clip", "tiny"): True,
        ("detector", "tiny"): False,
        ("detector", "letters"): True,
        ("detector", "digits"): False,
    }
    assert "letters" in run("list").output


def test_one_part_is_shown_by_name(store: ModelStore) -> None:
    assert orjson.loads(run("show", "letters", "--json").output)["detector"]["spec"]["classes"] == list("abcdef")
    assert "a, b, c, d, e, f" in run("show", "letters").output
    assert set(orjson.loads(run("show", "tiny", "--json").output)) == {"clip", "detector"}


@pytest.mark.parametrize("arguments", [("show", "none"), ("use", "none"), ("use", "tiny", "--detector", "none")])
def test_an_unknown_name_tells_those_that_are_there(store: ModelStore, arguments: tuple[str, ...]) -> None:
    with pytest.raises(SightlogError, match=r"'none'.*there are: tiny"):
        run(*arguments)


def test_models_that_fail_their_check_change_nothing(store: ModelStore, data_dir: Path) -> None:
    run("use", "tiny", "--detector", "letters")
    before = in_use()
    add_detector(store, "wrong", tuple("abcdef"), max_detections=7)
    with pytest.raises(SightlogError, match="its manifest says"):
        run("use", "tiny", "--detector", "wrong")
    assert in_use() == before
    assert len([path for path in (data_dir / "models").iterdir() if path.is_dir()]) == 1


def test_a_folder_named_by_the_environment_wins_and_says_so(store: ModelStore, monkeypatch: pytest.MonkeyPatch) -> None:
    run("use", "tiny", "--detector", "letters")
    monkeypatch.setenv("SIGHTLOG_MODELS", str(TINY_FOLDER))
    assert in_use()["digest"] == TINY.digest
    with pytest.raises(SightlogError, match="SIGHTLOG_MODELS"):
        run("use", "tiny")


def test_a_choice_whose_set_is_gone_says_what_to_do(store: ModelStore, data_dir: Path) -> None:
    run("use", "tiny", "--detector", "letters")
    shutil.rmtree(next(path for path in (data_dir / "models").iterdir() if path.is_dir()))
    with pytest.raises(ConfigurationError, match="sightlog models use"):
        in_use()
