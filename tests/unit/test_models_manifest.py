"""The manifest describes the committed models, names their vectors, and notices when a file is not the right one."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from models.manifest import (
    TINY_FOLDER,
    ManifestError,
    ModelFileError,
    digest_of,
    load_manifest,
    write_manifest,
)
from models.scenes import SHAPES
from sightlog.errors import SightlogError

MAX_BYTES = 6_000_000


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for file in [*load_manifest().files, "manifest.json"]:
        shutil.copy(TINY_FOLDER / file, tmp_path / file)
    return tmp_path


def test_the_committed_models_are_those_of_their_manifest() -> None:
    manifest = load_manifest()
    manifest.verify()
    assert manifest.clip.dim == 512
    assert manifest.clip.context_length == 77
    assert manifest.detector.classes == SHAPES


def test_all_committed_weights_stay_below_six_megabytes() -> None:
    manifest = load_manifest()
    assert sum(manifest.path(file).stat().st_size for file in manifest.files) <= MAX_BYTES


def test_a_changed_file_is_noticed(folder: Path) -> None:
    path = folder / "clip_text.onnx"
    path.write_bytes(path.read_bytes()[:-1] + b"\x00")
    with pytest.raises(ModelFileError, match=r"clip_text\.onnx has sha256"):
        load_manifest(folder).verify()


def test_a_missing_file_is_noticed(folder: Path) -> None:
    (folder / "detector.onnx").unlink()
    with pytest.raises(ModelFileError, match=r"detector\.onnx is missing"):
        load_manifest(folder).verify()


def test_a_file_that_is_not_listed_has_no_path() -> None:
    with pytest.raises(ModelFileError, match=r"clip_image\.onnx"):
        load_manifest().path("other.onnx")


def test_a_field_edited_by_hand_is_refused(folder: Path) -> None:
    path = folder / "manifest.json"
    document = json.loads(path.read_text())
    document["preprocessing"]["crop_margin"] = 0.3
    path.write_text(json.dumps(document))
    with pytest.raises(ManifestError, match="do not edit it by hand"):
        load_manifest(folder)


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "{}", '{"clip": {}}', '{"clip": null}'],
    ids=["empty", "broken", "list", "no fields", "no clip fields", "null"],
)
def test_a_manifest_that_describes_nothing_is_one_typed_error(folder: Path, text: str) -> None:
    (folder / "manifest.json").write_text(text)
    with pytest.raises(ManifestError, match=r"manifest\.json"):
        load_manifest(folder)


def test_an_unknown_field_is_refused(folder: Path) -> None:
    path = folder / "manifest.json"
    document = json.loads(path.read_text())
    document["clip"]["colour"] = "red"
    path.write_text(json.dumps(document))
    with pytest.raises(ManifestError, match="colour"):
        load_manifest(folder)


def test_a_folder_without_a_manifest_is_a_sightlog_error(tmp_path: Path) -> None:
    with pytest.raises(SightlogError, match=r"manifest\.json"):
        load_manifest(tmp_path)


def test_the_digest_follows_weights_and_preprocessing_but_not_names() -> None:
    manifest = load_manifest()
    clip, detector, preprocessing = manifest.clip, manifest.detector, manifest.preprocessing
    files = dict(manifest.files)
    assert digest_of(clip, detector, preprocessing, files) == manifest.digest
    assert digest_of(replace(clip, name="other"), detector, preprocessing, files) == manifest.digest
    changed = [
        digest_of(replace(clip, mean=(0.5, 0.5, 0.5)), detector, preprocessing, files),
        digest_of(clip, replace(detector, letterbox="top-left"), preprocessing, files),
        digest_of(clip, detector, replace(preprocessing, crop_margin=0.2), files),
        digest_of(clip, detector, preprocessing, {**files, clip.text_onnx: "0" * 64}),
    ]
    assert manifest.digest not in changed
    assert len(set(changed)) == len(changed)


def test_a_written_manifest_reads_back_the_same(folder: Path) -> None:
    before = load_manifest(folder)
    written = write_manifest(folder, before.name, before.clip, before.detector, before.preprocessing)
    assert written == before
