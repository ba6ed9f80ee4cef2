"""Pictures of the GPU benchmark are what its figures are told for: their weight, their objects, always the same."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from load_tests.detector_samples import INPUT_SIDE, SharedSamples, draw_sample
from load_tests.gpu_pictures import FILE_BYTES, FULL_HD, SMALL, make_pictures, object_counts


def test_counts_of_objects_are_ragged_from_0_to_30_with_mean_10() -> None:
    counts = object_counts(96, np.random.default_rng(0))

    assert (counts.min(), counts.max()) == (0, 30)
    assert counts.mean() == pytest.approx(10, abs=0.1)
    assert len(set(counts.tolist())) > 20


def test_pictures_weigh_what_a_photograph_weighs_and_tell_their_objects() -> None:
    for size in (FULL_HD, SMALL):
        for photo in make_pictures(3, size, processes=1):
            assert 0.9 * FILE_BYTES[size] < len(photo.jpeg) <= FILE_BYTES[size]
            assert Image.open(io.BytesIO(photo.jpeg)).size == size
            for thing in photo.objects:
                assert 0 <= thing.box[0] < thing.box[2] <= size[0]
                assert 0 <= thing.box[1] < thing.box[3] <= size[1]


def test_the_same_arguments_make_the_same_pictures_in_any_number_of_processes() -> None:
    alone = make_pictures(3, SMALL, processes=1)
    shared = make_pictures(3, SMALL, processes=2)
    others = make_pictures(3, SMALL, seed=1, processes=1)

    assert [photo.jpeg for photo in alone] == [photo.jpeg for photo in shared]
    assert {photo.jpeg for photo in alone}.isdisjoint(photo.jpeg for photo in others)
    assert len({photo.jpeg for photo in alone}) == 3


def test_every_picture_has_the_objects_that_it_was_to_have() -> None:
    counts = sorted(object_counts(5, np.random.default_rng(0)).tolist())

    assert sorted(len(photo.objects) for photo in make_pictures(5, SMALL, processes=1)) == counts


def test_boxes_of_training_samples_lie_where_the_objects_are_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("load_tests.detector_samples._MOST_GRAIN", 0.0)
    for seed in range(12):
        sample = draw_sample(np.random.default_rng(seed))
        image = sample.image.astype(float)
        for box in sample.boxes[sample.classes >= 0]:
            left, top, right, bottom = box.round().astype(int)
            assert max(right, bottom) <= INPUT_SIDE
            around = image[max(0, top - 3) : bottom + 3, max(0, left - 3) : right + 3]
            rim = np.concatenate([around[0], around[-1], around[:, 0], around[:, -1]])
            apart = np.abs(image[top:bottom, left:right] - np.median(rim, axis=0)).max(axis=-1)
            assert (apart > 20).mean() > 0.15
        assert not sample.boxes[sample.classes < 0].any()


def test_samples_drawn_by_several_processes_are_those_of_their_rows() -> None:
    with SharedSamples(5, 2, seed=3, side=320) as samples:
        samples.wait(5)
        for row in range(5):
            alone = draw_sample(np.random.default_rng([3, row]), 320)
            assert (samples.all.image[row] == alone.image).all()
            assert (samples.all.classes[row] == alone.classes).all()


def test_a_failing_process_is_told_and_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise ValueError("no scene")

    monkeypatch.setattr("load_tests.detector_samples.draw_sample", fail)
    with SharedSamples(4, 2, seed=3, side=320) as samples, pytest.raises(RuntimeError, match="no samples come"):
        samples.wait(4)
