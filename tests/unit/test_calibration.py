"""A calibration is part of a manifest without being part of the digest, and goes wherever its models go."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest
from click.testing import CliRunner

from agents.index.question import VectorQuestion
from models.calibration import QUERY_KINDS, TARGETS, Calibration, Curve
from models.cli import models
from models.manifest import TINY_FOLDER, ManifestError, ModelManifest, load_manifest, write_calibration, write_manifest
from models.settings import ModelSettings
from models.store import ModelStore, StoreError

TINY = load_manifest()
CURVE = Curve(slope=90.0, per_level=-20.0, intercept=-10.0, mean=0.1, deviation=0.05, positives=500, backgrounds=9000)


def a_calibration(source: str = "a test", dim: int = 512) -> Calibration:
    centre = np.random.default_rng(0).normal(size=dim).astype(np.float32)
    return Calibration(source, {"text": {"images": CURVE}}, {"images": centre})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for file in [*TINY.files, "manifest.json"]:
        shutil.copy(TINY_FOLDER / file, tmp_path / file)
    change(tmp_path, calibration=None)
    return tmp_path


def change(folder: Path, **changes: Any) -> None:
    document = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(document | changes))


def test_a_calibration_reads_back_as_it_was_written() -> None:
    written = a_calibration()
    read = Calibration.from_document(json.loads(json.dumps(written.to_document())))
    assert read == written
    assert np.array_equal(read.centres["images"], written.centres["images"])
    assert read.curve("text", "images") == CURVE
    assert read.curve("text", "objects") is None
    assert read.curve("object", "images") is None


def test_the_level_of_a_question_is_its_mean_cosine_with_documents() -> None:
    rng = np.random.default_rng(1)
    documents = rng.normal(size=(200, 16)).astype(np.float32)
    documents /= np.linalg.norm(documents, axis=1, keepdims=True)
    calibration = Calibration("a test", {}, {"objects": documents.mean(0)})
    question = documents[0]
    assert calibration.level(question, "objects") == pytest.approx(float((documents @ question).mean()), abs=1e-6)
    assert CURVE.offset(0.1) == pytest.approx(-12.0)


@pytest.mark.parametrize(
    "wrong", [{"slope": 0.0}, {"slope": -1.0}, {"intercept": float("nan")}, {"per_level": float("inf")}, {"mean": None}]
)
def test_a_curve_that_tells_nothing_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        replace(CURVE, **wrong)


def test_far_documents_keep_their_order_however_steep_the_curve() -> None:
    question = VectorQuestion(np.ones(1, np.float32), slope=300.0, intercept=-25.0)
    cosines = np.linspace(-1, 0.15, 50)
    told = [question.relevance(float(cosine)) or 0.0 for cosine in cosines]
    assert told == sorted(set(told))
    assert VectorQuestion(np.ones(1, np.float32), slope=5e3, intercept=0.0).relevance(1.0) == 1.0
    assert VectorQuestion(np.ones(1, np.float32), slope=5e3, intercept=0.0).relevance(-1.0) == 0.0


def test_the_committed_models_are_calibrated_for_every_question() -> None:
    assert TINY.calibration is not None
    assert all(TINY.calibration.curve(kind, target) for kind in QUERY_KINDS for target in TARGETS)


def test_a_manifest_without_calibration_still_loads(folder: Path) -> None:
    document = json.loads((folder / "manifest.json").read_text())
    del document["calibration"]
    (folder / "manifest.json").write_text(json.dumps(document))
    assert load_manifest(folder).calibration is None


def test_a_calibration_changes_neither_the_digest_nor_anything_else(folder: Path) -> None:
    before = load_manifest(folder)
    after = write_calibration(folder, a_calibration())
    assert after == replace(before, calibration=a_calibration())
    assert after.digest == before.digest == TINY.digest
    assert write_calibration(folder, a_calibration("another")).calibration == a_calibration("another")
    assert sorted(path.name for path in folder.iterdir()) == sorted([*TINY.files, "manifest.json"])


def test_a_manifest_that_is_written_again_keeps_the_calibration_of_the_same_digest_alone(folder: Path) -> None:
    write_calibration(folder, a_calibration())
    same = write_manifest(folder, "renamed", TINY.clip, TINY.detector, TINY.preprocessing)
    assert same.calibration == a_calibration()
    other = write_manifest(folder, "tiny", TINY.clip, TINY.detector, replace(TINY.preprocessing, crop_margin=0.3))
    assert other.calibration is None
    (folder / "manifest.json").write_text("{")
    assert write_manifest(folder, "tiny", TINY.clip, TINY.detector, TINY.preprocessing).calibration is None


@pytest.mark.parametrize(
    "wrong",
    [
        [],
        {},
        {"source": "x", "curves": {"smell": {}}, "centres": {}},
        {"source": "x", "curves": {"text": {"images": {"slope": 1}}}, "centres": {}},
        a_calibration().to_document() | {"centres": {}},
        a_calibration().to_document() | {"centres": {"images": "??"}},
        a_calibration().to_document() | {"centres": {"images": None}},
        a_calibration(dim=256).to_document(),
    ],
    ids=["list", "empty", "kind", "curve", "no centre", "not base64", "null", "dim"],
)
def test_a_calibration_that_does_not_belong_to_the_model_is_one_typed_error(folder: Path, wrong: Any) -> None:
    change(folder, calibration=wrong)
    with pytest.raises(ManifestError, match="sightlog models calibrate"):
        load_manifest(folder)


def test_a_manifest_that_cannot_be_written_stays_and_says_what_to_do(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(ManifestError, match="No space left"):
        write_calibration(folder, a_calibration())
    assert load_manifest(folder).calibration is None
    assert sorted(path.name for path in folder.iterdir()) == sorted([*TINY.files, "manifest.json"])


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModelStore:
    """With one more detector, and a data folder of its own."""
    monkeypatch.setenv("SIGHTLOG_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setenv("SIGHTLOG_MODELS_DIR", str(tmp_path / "store"))
    store = ModelStore(tmp_path / "store")
    with store.adding("detector", "letters") as folder:
        shutil.copyfile(TINY_FOLDER / "detector.onnx", folder / "detector.onnx")
        store.write_part(folder, replace(TINY.detector, name="letters", classes=tuple("abcdef")), {})
    return store


def run(*arguments: str) -> str:
    result = CliRunner().invoke(models, arguments, catch_exceptions=False)
    assert result.exit_code == 0
    return result.output


def in_use() -> ModelManifest:
    return load_manifest(ModelSettings.load().model_folder)


def test_the_store_knows_calibrations_by_digest(store: ModelStore) -> None:
    assert store.calibration(TINY.digest) == TINY.calibration
    assert store.calibration("0" * 64) is None
    store.keep_calibration("0" * 64, a_calibration())
    assert store.calibration("0" * 64) == a_calibration()
    store.keep_calibration(TINY.digest, a_calibration())
    assert store.calibration(TINY.digest) == a_calibration()


def test_a_stored_calibration_that_is_damaged_says_what_to_do(store: ModelStore) -> None:
    store.keep_calibration("0" * 64, a_calibration())
    (store.folder / "calibrations" / f"{'0' * 64}.json").write_text('{"curves": 1}')
    with pytest.raises(StoreError, match="sightlog models calibrate"):
        store.calibration("0" * 64)


def test_a_store_that_cannot_be_written_says_what_to_do(store: ModelStore) -> None:
    (store.folder / "calibrations").write_text("a file where a folder belongs")
    with pytest.raises(StoreError, match="SIGHTLOG_MODELS_DIR"):
        store.keep_calibration("0" * 64, a_calibration())


def test_models_that_are_used_bring_their_calibration(store: ModelStore) -> None:
    assert "not calibrated" in run("use", "tiny", "--detector", "letters")
    assert in_use().calibration is None
    store.keep_calibration(in_use().digest, a_calibration())
    assert "not calibrated" not in run("use", "tiny", "--detector", "letters")
    assert in_use().calibration == a_calibration()
    run("use", "tiny", "--detector", "tiny")
    assert in_use().calibration == TINY.calibration


def test_the_same_model_exported_again_keeps_its_calibration(store: ModelStore) -> None:
    run("use", "tiny", "--detector", "letters")
    store.keep_calibration(in_use().digest, a_calibration())
    with store.adding("detector", "letters", replace=True) as folder:
        shutil.copyfile(TINY_FOLDER / "detector.onnx", folder / "detector.onnx")
        store.write_part(folder, replace(TINY.detector, name="letters", classes=tuple("abcdef")), {"again": "yes"})
    run("use", "tiny", "--detector", "letters")
    assert in_use().calibration == a_calibration()
    run("use", "tiny", "--detector", "letters", "--original-cap", "800")
    assert in_use().calibration is None


def test_list_and_show_say_whether_the_models_in_use_are_calibrated(store: ModelStore) -> None:
    assert TINY.calibration is not None
    assert f"calibrated with {TINY.calibration.source}" in run("list")
    assert f"calibrated with {TINY.calibration.source}" in run("show")
    assert orjson.loads(run("list", "--json"))["calibrated"] is True
    shown = orjson.loads(run("show", "--json"))["calibration"]
    assert shown["curves"]["text"]["objects"]["slope"] > 0
    assert "centres" not in shown
    run("use", "tiny", "--detector", "letters")
    assert "not calibrated" in run("list")
    assert "not calibrated" in run("show")
    assert orjson.loads(run("list", "--json"))["calibrated"] is False
    assert orjson.loads(run("show", "--json"))["calibration"] is None
