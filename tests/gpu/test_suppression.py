"""Suppression with results of fixed shape keeps what the reference in NumPy keeps."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("torch", reason="needs PyTorch: pip install 'sightlog[stack,gpu]'")

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models.detectors.end2end import Suppression
from models.detectors.nms import suppress as reference
from triton_repo.gpu import suppression

Array = Any


def kept_rows(boxes: Array, scores: Array, classes: Array, iou: float, least: float) -> Array:
    tensors = (torch.from_numpy(boxes), torch.from_numpy(scores), torch.from_numpy(classes))
    return np.asarray(suppression.suppress(*tensors, iou, least).numpy())


def candidates(rng: np.random.Generator, images: int, count: int, classes: int) -> tuple[Array, Array, Array]:
    """Boxes that overlap often, no two scores equal, best first."""
    start = rng.uniform(-20, 60, (images, count, 2))
    boxes = np.concatenate([start, start + rng.uniform(5, 60, (images, count, 2))], -1).astype(np.float32)
    order = np.linspace(1, 0, images * count, dtype=np.float32)
    scores = np.sort(rng.permutation(order).reshape(images, count))[:, ::-1].copy()
    return boxes, scores, rng.integers(0, classes, (images, count))


def assert_as_the_reference(
    boxes: Array, scores: Array, classes: Array, iou: float, least: float, many: int
) -> list[int]:
    kept = kept_rows(boxes, scores, classes, iou, least)
    told = Suppression(
        max_detections=scores.shape[1], iou_threshold=iou, score_threshold=least, candidates=scores.shape[1]
    )
    numbers = []
    for picture in range(len(boxes)):
        by_class = np.zeros((scores.shape[1], many), np.float32)
        by_class[np.arange(scores.shape[1]), classes[picture]] = scores[picture]
        wanted = reference(boxes[picture], by_class, told)
        rows = np.flatnonzero(kept[picture])
        np.testing.assert_array_equal(boxes[picture, rows], wanted.boxes)
        np.testing.assert_array_equal(kept[picture, rows], wanted.scores)
        np.testing.assert_array_equal(classes[picture, rows], wanted.classes)
        numbers.append(len(rows))
    return numbers


@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    images=st.integers(1, 3),
    count=st.integers(1, 20),
    classes=st.integers(1, 4),
    iou=st.floats(0.05, 0.95),
    least=st.floats(0, 1),
)
def test_random_boxes(seed: int, images: int, count: int, classes: int, iou: float, least: float) -> None:
    boxes, scores, kinds = candidates(np.random.default_rng(seed), images, count, classes)
    assert_as_the_reference(boxes, scores, kinds, iou, least, classes)


@pytest.mark.parametrize("classes", [80, 1200])
def test_many_classes_do_not_disturb_each_other(classes: int) -> None:
    boxes, scores, kinds = candidates(np.random.default_rng(classes), 2, 150, classes)
    many = assert_as_the_reference(boxes, scores, kinds, 0.5, 0.1, classes)
    boxes[:] = [0, 0, 50, 50]
    of_classes = assert_as_the_reference(boxes, scores, kinds, 0.5, 0.1, classes)
    assert min(many) > min(of_classes) > 20


def test_no_candidate_above_the_threshold_gives_zeros() -> None:
    boxes, scores, kinds = candidates(np.random.default_rng(0), 3, 30, 2)
    assert not kept_rows(boxes, scores * 0.2, kinds, 0.5, 0.25).any()


def test_boxes_without_area_neither_win_nor_lose() -> None:
    boxes = np.array([[[5, 5, 5, 5], [5, 5, 5, 5], [0, 0, 10, 10], [5, 0, 5, 10]]], np.float32)
    scores = np.array([[0.9, 0.8, 0.7, 0.6]], np.float32)
    assert assert_as_the_reference(boxes, scores, np.zeros((1, 4), np.int64), 0.0, 0.1, 1) == [4]


def test_an_overlap_of_exactly_the_threshold_stays() -> None:
    boxes = np.array([[[0, 0, 10, 10], [0, 0, 10, 20], [0, 0, 10, 19]]], np.float32)
    scores = np.array([[0.9, 0.8, 0.7]], np.float32)
    assert kept_rows(boxes, scores, np.zeros((1, 3), np.int64), 0.5, 0.1)[0].tolist() == [*scores[0, :2].tolist(), 0]


def test_who_was_beaten_beats_nobody() -> None:
    boxes = np.array([[[0, 0, 10, 10], [4, 0, 14, 10], [8, 0, 18, 10]]], np.float32)
    scores = np.array([[0.9, 0.8, 0.7]], np.float32)
    kept = kept_rows(boxes, scores, np.zeros((1, 3), np.int64), 0.4, 0.1)
    assert (kept[0] > 0).tolist() == [True, False, True]
