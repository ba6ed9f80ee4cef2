"""What the GPU says differently is told: vectors, boxes, missing objects, refusals."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from load_tests.gpu_parity import Answer, compare, cpu_answers, write_parity_files
from load_tests.gpu_pictures import SMALL, make_pictures
from models.manifest import ModelManifest, load_manifest
from triton_repo.contract import ImageInference


@pytest.fixture(scope="module")
def manifest() -> ModelManifest:
    return load_manifest()


def seen(boxes: list[list[float]], scores: list[float] | None = None) -> ImageInference:
    count = len(boxes)
    vectors = np.eye(4, dtype=np.float32)[[number % 4 for number in range(count + 1)]]
    return ImageInference(
        width=1280,
        height=640,
        embedding=vectors[0],
        boxes=np.array(boxes, np.float32).reshape(-1, 4),
        scores=np.array(scores or [0.9] * count, np.float32),
        class_ids=np.zeros(count, np.int32),
        object_embeddings=vectors[1:],
    )


BOXES = [[0.0, 0.0, 100.0, 100.0], [200.0, 200.0, 300.0, 400.0]]


def test_the_same_answers_agree_entirely(manifest: ModelManifest) -> None:
    figures = compare(manifest, ["a"], [seen(BOXES)], [seen(BOXES[:])]).figures()

    assert (figures["global_cosine_min"], figures["object_cosine_min"], figures["box_iou_min"]) == (1, 1, 1)
    assert (figures["objects"], figures["unpaired"], figures["boxes_within"], figures["different"]) == (2, 0, 1, [])


def test_a_moved_box_is_told_in_pixels_of_the_picture_and_of_the_canvas(manifest: ModelManifest) -> None:
    moved = [BOXES[0], [204.0, 200.0, 304.0, 400.0]]
    figures = compare(manifest, ["a"], [seen(BOXES)], [seen(moved)]).figures()

    assert figures["box_edge_px_max"] == 4
    assert figures["box_edge_canvas_px_max"] == 4 * manifest.detector.input_size / 1280
    assert figures["boxes_within"] == 0.5


def test_order_of_the_objects_does_not_matter(manifest: ModelManifest) -> None:
    turned = replace(
        seen(BOXES), boxes=np.array(BOXES[::-1], np.float32), object_embeddings=seen(BOXES).object_embeddings[::-1]
    )
    figures = compare(manifest, ["a"], [seen(BOXES)], [turned]).figures()

    assert (figures["object_cosine_min"], figures["box_iou_min"]) == (1, 1)


def test_an_object_that_one_side_lacks_is_told_unless_its_score_is_at_the_threshold(manifest: ModelManifest) -> None:
    threshold = manifest.detector.score_threshold
    figures = compare(manifest, ["a"], [seen(BOXES, [0.9, threshold + 0.1])], [seen(BOXES[:1])]).figures()
    assert (figures["unpaired"], figures["borderline"]) == (1, 0)

    figures = compare(manifest, ["a"], [seen(BOXES, [0.9, threshold + 0.01])], [seen(BOXES[:1])]).figures()
    assert (figures["unpaired"], figures["borderline"]) == (0, 1)


def test_objects_of_another_class_do_not_pair(manifest: ModelManifest) -> None:
    other = replace(seen(BOXES), class_ids=np.array([0, 1], np.int32))

    assert compare(manifest, ["a"], [seen(BOXES)], [other]).figures()["unpaired"] == 2


def test_another_vector_lowers_the_cosine(manifest: ModelManifest) -> None:
    other = replace(seen(BOXES), embedding=np.array([0.6, 0.8, 0, 0], np.float32))

    assert compare(manifest, ["a"], [seen(BOXES)], [other]).figures()["global_cosine_min"] == pytest.approx(0.6)


def test_a_refusal_must_be_shared_and_have_the_same_code(manifest: ModelManifest) -> None:
    truth: list[Answer] = ["undecodable: cut off", "undecodable: cut off", seen(BOXES), "empty: nothing"]
    found: list[Answer] = ["undecodable: other words", seen(BOXES), "too_many_pixels: too large", "undecodable: what"]
    different = compare(manifest, ["a", "b", "c", "d"], truth, found).figures()["different"]

    assert [line.partition(":")[0] for line in different] == ["b", "c", "d"]


def test_another_size_is_told(manifest: ModelManifest) -> None:
    assert compare(manifest, ["a"], [seen([])], [replace(seen([]), width=640)]).figures()["different"]


def test_the_files_are_of_every_kind_and_one_is_refused(
    manifest: ModelManifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = make_pictures(1, SMALL, processes=1)
    monkeypatch.setattr("load_tests.gpu_parity.make_pictures", lambda *_: shown)
    monkeypatch.setattr("load_tests.parity_pictures._photographs", list)
    files = write_parity_files(tmp_path, 1)
    names = " ".join(path.name for path in files)
    for kind in ("progressive", "grey-jpeg", "png", "webp", "exif", "1920x1080", "4000x3000", "1x1", "broken"):
        assert kind in names
    small = [path for path in files if any(kind in path.name for kind in ("png", "1x1", "broken"))]

    assert [isinstance(answer, str) for answer in cpu_answers(manifest, small)] == [
        "broken" in path.name for path in small
    ]
