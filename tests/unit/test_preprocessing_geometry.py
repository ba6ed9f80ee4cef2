"""Where pixels and boxes go: letterbox, centre square, object crops, and the way back to the original."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from models.decoding import capped_size
from models.preprocessing import (
    centre_crop,
    letterbox,
    map_boxes,
    normalise,
    plan_letterbox,
    square_crop,
    square_region,
)
from tests.pictures import photo

sides = st.integers(1, 6000)
fractions = st.floats(0, 1, width=32)


@given(sides, sides, st.integers(1, 2000), st.lists(st.tuples(*[fractions] * 4), max_size=5), st.booleans())
def test_boxes_come_back_from_the_canvas_to_where_they_were(
    width: int, height: int, canvas: int, corners: list[tuple[float, ...]], centred: bool
) -> None:
    plan = plan_letterbox(width, height, canvas, centred=centred)
    boxes = np.array(corners, np.float32).reshape(-1, 4) * np.array([width, height] * 2, np.float32)
    back = plan.to_source(plan.to_canvas(boxes))
    assert back.shape == boxes.shape
    assert np.abs(back - boxes).max(initial=0) < 0.5


@given(sides, sides, st.sampled_from([0, 500, 1920]), st.lists(st.tuples(*[fractions] * 4), max_size=5))
def test_boxes_found_on_the_letterbox_of_a_capped_picture_are_mapped_to_original_pixels(
    width: int, height: int, cap: int, corners: list[tuple[float, ...]]
) -> None:
    capped = capped_size(width, height, cap)
    plan = plan_letterbox(*capped, 640)
    original = np.array(corners, np.float32).reshape(-1, 4) * np.array([width, height] * 2, np.float32)
    shrink = np.array([capped[0] / width, capped[1] / height] * 2, np.float32)
    found = map_boxes(plan.to_canvas(original * shrink), plan, (width, height))
    assert np.abs(found - original).max(initial=0) < 0.5


@given(sides, sides, st.lists(st.tuples(*[st.floats(-1000, 2000, width=32)] * 4), min_size=1, max_size=5))
def test_mapped_boxes_never_leave_the_picture(width: int, height: int, boxes: list[tuple[float, ...]]) -> None:
    found = map_boxes(np.array(boxes, np.float32), plan_letterbox(width, height, 640), (width, height))
    assert (found >= 0).all()
    assert (found <= np.array([width, height] * 2)).all()


@given(sides, sides, st.integers(1, 1000))
def test_a_letterboxed_picture_fills_the_canvas_along_its_longer_side(width: int, height: int, canvas: int) -> None:
    plan = plan_letterbox(width, height, canvas)
    assert max(plan.placed) == canvas
    assert min(plan.placed) >= 1
    for placed, offset in zip(plan.placed, plan.offset, strict=True):
        assert abs((canvas - placed) / 2 - offset) <= 0.5


def test_the_picture_lies_where_the_plan_says_and_bars_are_around_it() -> None:
    board = letterbox(Image.new("RGB", (300, 100), (255, 0, 0)), 90, 114)
    assert (board[30:60] == [255, 0, 0]).all()
    assert (board[:30] == 114).all()
    assert (board[60:] == 114).all()
    corner = letterbox(Image.new("RGB", (100, 300), (255, 0, 0)), 90, 114, centred=False)
    assert (corner[:, :30] == [255, 0, 0]).all()
    assert (corner[:, 30:] == 114).all()


def test_letterboxing_antialiases() -> None:
    stripes = np.zeros((64, 1280, 3), np.uint8)
    stripes[:, ::2] = 255
    board = letterbox(Image.fromarray(stripes), 320, 0)
    inside = board[160, 20:-20]
    assert abs(int(inside.mean()) - 128) < 3
    assert inside.std() < 3


def test_the_centre_square_leaves_out_both_ends_of_the_longer_side() -> None:
    picture = np.zeros((10, 40, 3), np.uint8)
    picture[:, :15], picture[:, 15:25], picture[:, 25:] = 10, 200, 90
    assert (centre_crop(Image.fromarray(picture), 8)[:, 1:7] == 200).all()
    assert (centre_crop(Image.fromarray(picture.transpose(1, 0, 2)), 8)[1:7] == 200).all()


@pytest.mark.parametrize("size", [(1, 1), (3, 2000), (2000, 3), (2, 2)])
def test_tiny_and_thin_pictures_go_through_every_branch(size: tuple[int, int]) -> None:
    picture = Image.new("RGB", size, (70, 80, 90))
    assert letterbox(picture, 640, 114).shape == (640, 640, 3)
    assert (centre_crop(picture, 128) == [70, 80, 90]).all()
    crop = square_crop(np.asarray(picture), (0, 0, *size), 128, margin=0.12, pad_value=114)
    assert crop.shape == (128, 128, 3)


boxes = st.tuples(fractions, fractions, fractions, fractions)


@given(sides, sides, boxes, st.floats(0, 1))
def test_the_crop_is_a_square_with_the_margin_around_the_longer_side(
    width: int, height: int, corners: tuple[float, ...], margin: float
) -> None:
    box = _box(width, height, corners)
    left, top, right, bottom = square_region(box, width, height, margin)
    side = max(box[2] - box[0], box[3] - box[1], 1.0) * (1 + 2 * margin)
    assert right - left == pytest.approx(side, rel=1e-6, abs=1e-6)
    assert bottom - top == pytest.approx(side, rel=1e-6, abs=1e-6)


@given(sides, sides, boxes, st.floats(0, 1))
def test_the_crop_shows_the_whole_box_and_stays_inside_where_it_fits(
    width: int, height: int, corners: tuple[float, ...], margin: float
) -> None:
    box = _box(width, height, corners)
    left, top, right, bottom = square_region(box, width, height, margin)
    assert left <= box[0] + 1e-3
    assert top <= box[1] + 1e-3
    assert right >= box[2] - 1e-3
    assert bottom >= box[3] - 1e-3
    for start, stop, length in ((left, right, width), (top, bottom, height)):
        if stop - start <= length:
            assert start >= -1e-6
            assert stop <= length + 1e-6
        else:
            assert start <= 1e-6
            assert stop >= length - 1e-6


@given(boxes)
def test_a_crop_equals_one_resize_of_the_whole_picture(corners: tuple[float, ...]) -> None:
    picture = photo("coffee.png").convert("RGB")
    box = _box(*picture.size, corners)
    region = square_region(box, *picture.size, 0.12)
    if max(region[2] - region[0], region[3] - region[1]) > min(picture.size):
        return
    expected = picture.resize((64, 64), Image.Resampling.BILINEAR, box=region)
    crop = square_crop(np.asarray(picture), box, 64, margin=0.12, pad_value=114)
    assert np.abs(crop.astype(int) - np.asarray(expected)).max() <= 1


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_crops_read_as_far_around_as_their_filter_does(interpolation: str) -> None:
    # Each pixel of the crop stands for 100, and only what lies 1 to 2 of these away from the box is dark.
    picture = np.zeros((900, 900, 3), np.uint8)
    picture[145:755, 145:755] = 200
    kind = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}[interpolation]
    box = (250, 250, 650, 650)
    expected = Image.fromarray(picture).resize((4, 4), kind, box=box)
    crop = square_crop(picture, box, 4, margin=0.0, pad_value=0, interpolation=interpolation)
    assert np.abs(crop.astype(int) - np.asarray(expected)).max() <= 1


def test_what_lies_outside_the_picture_is_padding() -> None:
    bar = np.full((10, 100, 3), 255, np.uint8)
    crop = square_crop(bar, (0, 0, 100, 10), 100, margin=0.0, pad_value=114)
    assert (crop[:44] == 114).all()
    assert (crop[56:] == 114).all()
    assert (crop[46:54] == 255).all()


def test_padding_does_not_bleed_into_a_crop_that_fits() -> None:
    white = np.full((50, 50, 3), 255, np.uint8)
    for box in ((0, 0, 20, 20), (30, 30, 50, 50), (0, 0, 50, 50)):
        assert (square_crop(white, box, 16, margin=0.0, pad_value=0) == 255).all()


def test_a_crop_keeps_detail_that_a_smaller_copy_of_the_picture_has_lost() -> None:
    stripes = np.zeros((1024, 1024, 3), np.uint8)
    stripes[:, ::8] = stripes[:, 1::8] = stripes[:, 2::8] = stripes[:, 3::8] = 255
    crop = square_crop(stripes, (400, 400, 500, 500), 128, margin=0.12, pad_value=114)
    assert crop.std() > 90


def test_normalising_gives_planes_in_the_models_order_and_range() -> None:
    pixel = np.array([[[[0, 51, 255]]]], np.uint8)
    assert normalise(pixel).ravel() == pytest.approx([0, 0.2, 1])
    assert normalise(pixel, bgr=True, value_range=(0, 255)).ravel() == pytest.approx([255, 51, 0])
    mean, std = (0.5, 0.1, 0.25), (0.5, 0.1, 0.25)
    assert normalise(pixel, mean, std).ravel() == pytest.approx([-1, 1, 3], abs=1e-6)
    assert normalise(pixel, value_range=(-1, 1)).ravel() == pytest.approx([-1, -0.6, 1], abs=1e-6)


def test_normalising_writes_into_the_array_it_is_given() -> None:
    images = np.arange(2 * 4 * 5 * 3, dtype=np.uint8).reshape(2, 4, 5, 3)
    out = np.empty((2, 3, 4, 5), np.float32)
    assert normalise(images, out=out) is out
    assert out == pytest.approx(images.transpose(0, 3, 1, 2) / 255)


def _box(width: int, height: int, corners: tuple[float, ...]) -> tuple[float, float, float, float]:
    x1, x2 = sorted((corners[0] * width, corners[2] * width))
    y1, y2 = sorted((corners[1] * height, corners[3] * height))
    return x1, y1, x2, y2
