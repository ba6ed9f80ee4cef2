"""The NumPy reference against what its definitions give by hand: it judges the others, and nothing else judges it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from models import reference
from tests.pictures import encoded

sides = st.integers(1, 6000)
fractions = st.floats(0, 1)


def row(*levels: int) -> reference.UInt8:
    """A grey picture, one pixel high."""
    return np.repeat(np.array(levels, np.uint8)[None, :, None], 3, axis=2)


def levels(pixels: reference.UInt8) -> list[int]:
    return pixels[0, :, 0].tolist()


def test_halving_weighs_four_pixels_1_3_3_1_and_leaves_out_those_that_do_not_exist() -> None:
    source = (0, 80, 160, 240)
    left = (3 * 0 + 3 * 80 + 160) / 7  # one of four lies outside
    right = (80 + 3 * 160 + 3 * 240) / 7
    assert levels(reference.resize(row(*source), (2, 1))) == [round(left), round(right)]


def test_enlarging_interpolates_between_pixel_centres() -> None:
    assert levels(reference.resize(row(0, 100), (4, 1))) == [0, 25, 75, 100]


def test_cubic_interpolation_has_the_weights_of_catmull_and_rom_half_way() -> None:
    # At a quarter of a pixel from the centre: -9/128, 111/128, 29/128, -3/128.
    weights = np.array([-9, 111, 29, -3]) / 128
    source = np.array([100, 60, 200, 120])
    found = levels(reference.resize(row(*source), (8, 1), interpolation="bicubic"))
    assert found[3] == round(float(weights @ source))


def test_a_box_may_begin_and_end_inside_pixels_and_sees_the_pixels_around_it() -> None:
    assert levels(reference.resize(row(0, 100, 200, 50), (1, 1), (1.5, 0, 2.5, 1))) == [150]
    assert levels(reference.resize(row(0, 100, 200), (1, 1), (0, 0, 1, 1))) == [0]


def test_halves_are_rounded_up_once() -> None:
    pixels = np.array([[[1] * 3, [2] * 3], [[2] * 3, [2] * 3]], np.uint8)
    assert levels(reference.resize(row(1, 2), (1, 1))) == [2]  # 1.5
    assert levels(reference.resize(pixels, (1, 1))) == [2]  # 1.75


def test_ringing_of_the_cubic_filter_is_clipped() -> None:
    found = levels(reference.resize(row(0, 0, 255, 255), (16, 1), interpolation="bicubic"))
    assert min(found) == 0
    assert max(found) == 255


@pytest.mark.parametrize(
    ("orientation", "expected"),
    [
        (1, ["abc", "def"]),
        (2, ["cba", "fed"]),
        (3, ["fed", "cba"]),
        (4, ["def", "abc"]),
        (5, ["ad", "be", "cf"]),
        (6, ["da", "eb", "fc"]),
        (7, ["fc", "eb", "da"]),
        (8, ["cf", "be", "ad"]),
        (0, ["abc", "def"]),
        (9, ["abc", "def"]),
    ],
)
def test_orientations_turn_and_mirror_as_exif_says(orientation: int, expected: list[str]) -> None:
    stored = np.repeat(np.array([list(b"abc"), list(b"def")], np.uint8)[..., None], 3, axis=2)
    found = reference.upright(stored, orientation)[..., 0]
    assert [bytes(line).decode() for line in found] == expected


def test_only_the_longer_side_decides_about_the_cap_and_nothing_is_enlarged() -> None:
    picture = np.zeros((30, 101, 3), np.uint8)
    assert reference.cap(picture, 50).shape == (15, 50, 3)  # 14.85
    assert reference.cap(picture.transpose(1, 0, 2), 50).shape == (50, 15, 3)
    assert reference.cap(picture, 101) is picture
    assert reference.cap(picture, 0) is picture
    assert reference.cap(np.zeros((1, 101, 3), np.uint8), 10).shape == (1, 10, 3)


@pytest.mark.parametrize(
    ("size", "centred", "expected"),
    [
        ((300, 100), True, (0, 213, 640, 213)),
        ((100, 300), True, (213, 0, 213, 640)),
        ((300, 100), False, (0, 0, 640, 213)),
        ((640, 481), True, (0, 79, 640, 481)),  # an odd bar: the smaller half lies above
        ((10, 10), True, (0, 0, 640, 640)),
        ((6000, 1), True, (0, 319, 640, 1)),
    ],
)
def test_a_letterboxed_picture_lies_where_the_formula_says(
    size: tuple[int, int], centred: bool, expected: tuple[int, int, int, int]
) -> None:
    assert reference.place(*size, 640, centred=centred) == expected


def test_a_box_is_mapped_through_letterbox_and_cap_and_clipped() -> None:
    # 4000 x 2000, capped to 1920 x 960, on a canvas of 640: scale 0.16, 160 pixels of bar above.
    boxes = np.array([[160, 240, 320, 320], [-5, 0, 700, 640]])
    found = reference.to_original(boxes, (1920, 960), (4000, 2000), 640, centred=True)
    assert found.tolist() == [[1000, 500, 2000, 1000], [0, 0, 4000, 2000]]


@given(sides, sides, st.sampled_from([0, 500, 1920]), st.lists(st.tuples(*[fractions] * 4), max_size=5), st.booleans())
def test_boxes_come_back_through_letterbox_and_cap(
    width: int, height: int, cap: int, corners: list[tuple[float, ...]], centred: bool
) -> None:
    shrink = min(1.0, cap / max(width, height)) if cap else 1.0
    capped = max(1, int(width * shrink + 0.5)), max(1, int(height * shrink + 0.5))
    boxes = np.array(corners).reshape(-1, 4) * ([width, height] * 2)
    there = reference.to_canvas(boxes, (width, height), capped, 640, centred=centred)
    back = reference.to_original(there, capped, (width, height), 640, centred=centred)
    assert np.abs(back - boxes).max(initial=0) < 1e-6


def test_the_centre_square_may_begin_on_half_a_pixel() -> None:
    assert levels(reference.centre_crop(row(0, 100), 1, "bilinear")) == [50]


def test_a_crop_that_fits_is_shifted_inside_and_one_that_does_not_is_padded() -> None:
    picture = row(10, 20, 30, 40).repeat(4, axis=0)
    arguments = {"margin": 0.0, "pad_value": 7, "interpolation": "bilinear"}
    assert levels(reference.square_crop(picture, (0, 0, 1, 4), 4, **arguments)) == [10, 20, 30, 40]
    wide = reference.square_crop(picture[:2], (0, 0, 4, 2), 4, **arguments)
    assert wide[:, 0, 0].tolist() == [7, 10, 10, 7]


def test_margin_is_a_part_of_the_longer_side_on_each_side() -> None:
    picture = np.full((100, 100, 3), 200, np.uint8)
    picture[30:70, 30:70] = 0
    crop = reference.square_crop(
        picture, (40, 45, 60, 55), 40, margin=0.5, pad_value=114, interpolation="bilinear"
    )  # the square 30..70
    assert crop.max() == 0


def test_normalising_is_range_then_mean_and_deviation() -> None:
    pixel = np.array([[[[0, 51, 255]]]], np.uint8)
    assert reference.normalise(pixel, (0.5, 0.1, 0.25), (0.5, 0.1, 0.25)).ravel() == pytest.approx([-1, 1, 3])
    assert reference.normalise(pixel, value_range=(0, 255), bgr=True).ravel().tolist() == [255, 51, 0]
    assert reference.normalise(pixel, value_range=(-1, 1)).ravel() == pytest.approx([-1, -0.6, 1])


def test_colour_modes_mean_what_the_contract_says() -> None:
    inks = Image.new("CMYK", (1, 1), (51, 0, 255, 102))
    assert reference.decode(encoded(inks, "TIFF"))[0, 0].tolist() == [122, 153, 0]
    clear = Image.new("RGBA", (1, 1), (200, 0, 0, 51))
    assert reference.decode(encoded(clear, "PNG"))[0, 0].tolist() == [244, 204, 204]
    grey = Image.fromarray(np.array([[0, 32896, 65535]], np.uint16))
    assert levels(reference.decode(encoded(grey, "PNG"))) == [0, 128, 255]
    with pytest.raises(ValueError, match="mode F"):
        reference.decode(encoded(Image.fromarray(np.ones((2, 2), np.float32)), "TIFF"))
