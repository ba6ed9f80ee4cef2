"""Boxes of a whole batch become what they become one by one."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.manifest import ModelManifest
from models.preprocessing import capped_size, square_region
from tests.parity_cases import RELATIVE_BOXES, manifest_with
from triton_repo.gpu.boxes import detections_of, squares_of
from triton_repo.steps import Detections, ImageSteps

Array = Any
ROWS = 6
CANVAS = 640
MANIFESTS = {
    "centred": manifest_with(),
    "top-left": manifest_with(letterbox="top-left", cap=500),
    "uncapped": manifest_with(cap=0),
}
often = settings(max_examples=150, deadline=None, derandomize=True, database=None)
sizes = st.tuples(st.integers(1, 4000), st.integers(1, 4000))
#: Left, top, width, height: also on the bars, over the border, without area, the wrong way round.
places = st.floats(-200, CANVAS, width=32)
lengths = st.one_of(st.floats(1, 400, width=32), st.floats(1, 400, width=32), st.floats(-20, 0, width=32))
pictures = st.tuples(
    sizes,
    st.lists(st.tuples(places, places, lengths, lengths), min_size=ROWS, max_size=ROWS),
    st.lists(st.sampled_from([0.3, 0.5, 0.5, 0.9]), min_size=ROWS, max_size=ROWS),
    st.integers(0, ROWS),
)


def capped_sizes(manifest: ModelManifest, sizes: list[tuple[int, int]]) -> Array:
    return np.array([capped_size(*size, manifest.preprocessing.original_cap) for size in sizes])


@often
@given(kind=st.sampled_from(sorted(MANIFESTS)), batch=st.lists(pictures, min_size=1, max_size=4))
def test_detections_of_a_batch_are_those_of_each_picture(kind: str, batch: list[Any]) -> None:
    manifest = MANIFESTS[kind]
    steps = ImageSteps(manifest)
    sizes = np.array([size for size, _, _, _ in batch], np.int32)
    capped = capped_sizes(manifest, sizes.tolist())
    boxes = np.array([rows for _, rows, _, _ in batch], np.float32)
    boxes[..., 2:] += boxes[..., :2]
    scores = np.array([row for _, _, row, _ in batch], np.float32)
    classes = np.arange(boxes.shape[0] * ROWS, dtype=np.float32).reshape(-1, ROWS)
    counts = np.array([count for _, _, _, count in batch], np.float32)
    found = detections_of(manifest, (counts, boxes, scores, classes), capped, sizes)
    for row, one in enumerate(found):
        prepared = np.empty((*capped[row][::-1], 3), np.uint8)
        wanted = steps.detections(
            int(counts[row]), boxes[row], scores[row], classes[row].astype(np.int32), prepared, sizes[row]
        )
        np.testing.assert_allclose(one.boxes, wanted.boxes, rtol=1e-5, atol=1e-3)
        np.testing.assert_array_equal(one.scores, wanted.scores)
        np.testing.assert_array_equal(one.class_ids, wanted.class_ids)
        assert one.class_ids.dtype == np.int32


def test_later_batches_do_not_change_what_was_found() -> None:
    """The rows lie in a buffer that is filled again."""
    manifest = MANIFESTS["centred"]
    rows = tuple(np.full(shape, 0.5, np.float32) for shape in ((1,), (1, ROWS, 4), (1, ROWS), (1, ROWS)))
    rows[0][:] = 1
    rows[1][:] = [10, 20, 300, 400]
    found = detections_of(manifest, rows, np.array([[640, 640]]), np.array([[640, 640]], np.int32))
    for buffer in rows:
        buffer[:] = -1
    np.testing.assert_array_equal(found[0].boxes, [[10, 20, 300, 400]])
    np.testing.assert_array_equal(found[0].scores, [0.5])


@st.composite
def boxes_in(draw: st.DrawFn, size: tuple[int, int]) -> Array:
    """Within a picture, in pixels of its original."""
    count = draw(st.integers(0, 4))
    parts = draw(st.lists(st.tuples(*[st.floats(0, 1, width=32)] * 4), min_size=count, max_size=count))
    corners = np.array(parts, np.float32).reshape(-1, 2, 2)
    return (np.sort(corners, axis=1) * np.array(size, np.float32)).reshape(-1, 4)


@often
@given(kind=st.sampled_from(sorted(MANIFESTS)), data=st.data(), batch=st.lists(sizes, min_size=1, max_size=4))
def test_squares_of_a_batch_are_those_of_each_box(kind: str, data: st.DataObject, batch: list[tuple[int, int]]) -> None:
    manifest = MANIFESTS[kind]
    boxes = [data.draw(boxes_in(size)) for size in batch]
    assert_squares(manifest, batch, boxes)


@pytest.mark.parametrize("margin", [0.0, 0.1, 2.0])
def test_squares_at_every_border(margin: float) -> None:
    manifest = manifest_with()
    manifest = replace(manifest, preprocessing=replace(manifest.preprocessing, crop_margin=margin))
    batch = [(640, 480), (33, 700), (4000, 3000), (1, 1)]
    boxes = [np.array(RELATIVE_BOXES, np.float32) * np.array([*size] * 2, np.float32) for size in batch]
    assert_squares(manifest, batch, boxes)


def assert_squares(manifest: ModelManifest, batch: list[tuple[int, int]], boxes: list[Array]) -> None:
    sizes = np.array(batch, np.int32)
    capped = capped_sizes(manifest, batch)
    found = [Detections(b, np.zeros(len(b), np.float32), np.zeros(len(b), np.int32)) for b in boxes]
    squares = squares_of(manifest, found, capped, sizes)
    assert squares.dtype == np.float32
    assert squares.shape == (sum(map(len, boxes)), 5)
    row = 0
    for (width, height), size, one in zip(capped, sizes, boxes, strict=True):
        shrink = np.array([width / size[0], height / size[1]] * 2, np.float32)
        for box in one * shrink:
            left, top, right, bottom = square_region(box, width, height, manifest.preprocessing.crop_margin)
            np.testing.assert_allclose(squares[row, :3], [left, top, right - left], rtol=1e-6, atol=1e-3)
            ends = [left >= 0 and right <= width, top >= 0 and bottom <= height]
            on_the_edge = min(abs(right - width), abs(bottom - height)) < 1e-3  # where rounding decides
            assert on_the_edge or squares[row, 3:].astype(bool).tolist() == ends
            row += 1
