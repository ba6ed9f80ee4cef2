"""The model store: parts appear whole or not at all, and two of them make a set with a digest of its own."""

from __future__ import annotations

import fcntl
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from models.manifest import TINY_FOLDER, ModelFileError, load_manifest
from models.store import ModelStore, StoreError, compose

TINY = load_manifest()


@pytest.fixture
def store(tmp_path: Path) -> ModelStore:
    return ModelStore(tmp_path / "store")


def add_clip(store: ModelStore, name: str = "other", *, replaced: bool = False, **changed: object) -> None:
    with store.adding("clip", name, replace=replaced) as folder:
        for file in (TINY.clip.image_onnx, TINY.clip.text_onnx):
            shutil.copyfile(TINY_FOLDER / file, folder / file)
        store.write_part(folder, replace(TINY.clip, name=name, **changed), {"architecture": "test"})  # type: ignore[arg-type]


def test_the_built_in_parts_are_in_every_store(store: ModelStore) -> None:
    assert [part.name for part in store.parts("clip")] == ["tiny"]
    assert store.part("detector", "tiny").spec == TINY.detector


def test_an_added_part_reads_back(store: ModelStore) -> None:
    add_clip(store, mean=(0.5, 0.5, 0.5))
    part = store.part("clip", "other")
    assert part in store.parts("clip")
    assert part.spec == replace(TINY.clip, name="other", mean=(0.5, 0.5, 0.5))
    assert dict(part.files) == {file: TINY.files[file] for file in part.weights}
    assert part.source == {"architecture": "test"}


def test_an_error_while_adding_leaves_nothing(store: ModelStore) -> None:
    def fail() -> None:
        with store.adding("clip", "half") as folder:
            (folder / "clip_image.onnx").write_bytes(b"x")
            raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"):
        fail()
    assert [part.name for part in store.parts("clip")] == ["tiny"]
    assert not [path for path in (store.folder / "clip").iterdir() if path.is_dir()]


def test_a_part_is_not_there_before_it_is_complete(store: ModelStore) -> None:
    with store.adding("detector", "slow") as folder:
        (folder / "detector.onnx").write_bytes(b"x")
        store.write_part(folder, replace(TINY.detector, name="slow"), {})
        with pytest.raises(StoreError, match="no detector is called 'slow'"):
            store.part("detector", "slow")
    assert store.part("detector", "slow").size_bytes == 1


def test_leftovers_of_a_killed_export_are_no_parts_and_go_away(store: ModelStore) -> None:
    leftover = store.folder / "clip" / ".other.adding"
    leftover.mkdir(parents=True)
    (leftover / "part.json").write_text("{}")
    assert [part.name for part in store.parts("clip")] == ["tiny"]
    add_clip(store)
    assert not leftover.exists()


def test_a_name_is_overwritten_only_when_asked(store: ModelStore) -> None:
    add_clip(store)
    with pytest.raises(StoreError, match=r"exists already.*--replace"):
        add_clip(store, dim=8)
    assert store.part("clip", "other").spec == replace(TINY.clip, name="other")
    add_clip(store, replaced=True, std=(0.5, 0.5, 0.5))
    assert store.part("clip", "other").spec == replace(TINY.clip, name="other", std=(0.5, 0.5, 0.5))


@pytest.mark.parametrize("name", ["tiny", "", "a/b", "..", ".hidden", "ä", "x" * 200])
def test_names_that_are_no_folders_are_refused(store: ModelStore, name: str) -> None:
    with pytest.raises(StoreError, match="cannot be called"), store.adding("clip", name):
        raise AssertionError("entered")
    if name != "tiny":
        with pytest.raises(StoreError, match="there are: tiny"):
            store.part("clip", name)


def test_two_processes_do_not_add_the_same_part(store: ModelStore) -> None:
    (store.folder / "clip").mkdir(parents=True)
    with (store.folder / "clip" / ".other.lock").open("a") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(StoreError, match="another process"):
            add_clip(store)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"spec": {}, "files": {}, "source": {}}', '{"spec": null}'])
def test_a_damaged_part_is_one_clear_error(store: ModelStore, text: str) -> None:
    add_clip(store)
    (store.folder / "clip" / "other" / "part.json").write_text(text)
    with pytest.raises(StoreError, match=r"part\.json cannot be read .* add 'other' again"):
        store.part("clip", "other")


def test_the_built_in_parts_compose_to_the_built_in_models(store: ModelStore, tmp_path: Path) -> None:
    clip, detector = store.part("clip", "tiny"), store.part("detector", "tiny")
    manifest = compose(clip, detector, TINY.preprocessing, _empty(tmp_path))
    assert (manifest.name, manifest.digest) == ("tiny", TINY.digest)
    assert not manifest.path("detector.onnx").samefile(TINY_FOLDER / "detector.onnx")


def test_a_set_takes_everything_from_its_parts_and_no_space(store: ModelStore, tmp_path: Path) -> None:
    add_clip(store, mean=(0.5, 0.5, 0.5))
    preprocessing = replace(TINY.preprocessing, original_cap=0)
    clip = store.part("clip", "other")
    manifest = compose(clip, store.part("detector", "tiny"), preprocessing, _empty(tmp_path))
    manifest.verify()
    assert manifest.name == "other+tiny"
    assert (manifest.clip, manifest.detector, manifest.preprocessing) == (clip.spec, TINY.detector, preprocessing)
    assert manifest.digest != TINY.digest
    assert manifest.path("clip_image.onnx").samefile(clip.folder / "clip_image.onnx")


def test_weights_that_changed_in_the_store_are_refused(store: ModelStore, tmp_path: Path) -> None:
    add_clip(store)
    clip = store.part("clip", "other")
    with (clip.folder / "clip_text.onnx").open("ab") as file:
        file.write(b"x")
    with pytest.raises(ModelFileError, match="is not the file that was stored"):
        compose(clip, store.part("detector", "tiny"), TINY.preprocessing, _empty(tmp_path))


def test_weights_that_are_gone_are_refused(store: ModelStore, tmp_path: Path) -> None:
    add_clip(store)
    clip = store.part("clip", "other")
    (clip.folder / "clip_text.onnx").unlink()
    with pytest.raises(ModelFileError, match=r"clip_text\.onnx is missing"):
        compose(clip, store.part("detector", "tiny"), TINY.preprocessing, _empty(tmp_path))


def _empty(tmp_path: Path) -> Path:
    folder = tmp_path / "set"
    folder.mkdir()
    return folder
