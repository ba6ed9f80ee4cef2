"""Embeddings of many scenes: the same every time, kept on disk, and documents of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from load_tests import scene_vectors as made
from load_tests.scene_vectors import scene_documents, scene_vectors
from models.manifest import load_manifest

QUIET = Console(quiet=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where 120 objects are kept."""
    folder = tmp_path_factory.mktemp("scenes")
    scene_vectors(120, folder=folder, console=QUIET)
    return folder


def test_vectors_show_what_the_facts_say(folder: Path) -> None:
    vectors, facts = scene_vectors(120, folder=folder, console=QUIET)
    assert vectors.shape == (120, load_manifest().clip.dim)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    assert len(facts) == 120
    # An object is nearer to those of its own colour than to the others.
    colours = np.array([fact.objects[0].colour for fact in facts])
    cosines = vectors @ vectors.T
    same = colours[:, None] == colours[None, :]
    assert cosines[same & ~np.eye(120, dtype=bool)].mean() > cosines[~same].mean() + 0.1


def test_what_is_kept_is_not_drawn_again_and_fewer_are_its_first(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(made, "_draw", lambda *_: pytest.fail("drawn again"))
    vectors, facts = scene_vectors(120, folder=folder, console=QUIET)
    fewer, their_facts = scene_vectors(15, folder=folder, console=QUIET)
    np.testing.assert_array_equal(fewer, vectors[:15])
    assert their_facts == facts[:15]


def test_other_seeds_are_other_scenes(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(made, "_draw", lambda *_: (np.zeros((5, 2), np.float32), np.zeros((5, 9), np.float32)))
    vectors, _ = scene_vectors(5, folder=folder, console=QUIET, seed=1)
    assert not vectors.any()


def test_documents_hold_every_object_of_a_scene(folder: Path) -> None:
    vectors, facts = scene_vectors(120, folder=folder, console=QUIET)
    documents = list(scene_documents(vectors, facts, load_manifest()))
    assert len({document.image_id for document in documents}) == len(documents) == len({fact.scene for fact in facts})
    detections = [detection for document in documents for detection in document.detections]
    np.testing.assert_array_equal(np.stack([detection.vector for detection in detections]), vectors)
    assert [d.class_name for d in detections] == [fact.objects[0].shape for fact in facts]
    assert all(d.box == fact.objects[0].box for d, fact in zip(detections, facts, strict=True))


def test_documents_of_images_are_one_each(folder: Path) -> None:
    vectors, facts = scene_vectors(6, kind="images", folder=folder, console=QUIET)
    documents = list(scene_documents(vectors, facts, load_manifest(), kind="images"))
    assert [document.detections for document in documents] == [()] * 6
    np.testing.assert_allclose(np.stack([document.vector for document in documents]), vectors, atol=1e-6)
    assert min(len(fact.objects) for fact in facts) >= 1
