"""The CPU path against the NumPy reference, from file bytes to model inputs; docs/preprocessing.md says tolerances."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from models import reference
from models.decoding import decode_upright
from models.manifest import ModelManifest, load_manifest
from models.preprocessing import centre_crop, letterbox, map_boxes, plan_letterbox, square_crop
from tests.parity_cases import RELATIVE_BOXES, assert_close, manifest_with, small_pictures
from tests.pictures import encoded, good_pictures, photo
from triton_repo.steps import ImageSteps

EXACT = (0, 0)
#: Grey levels, max and mean. Pillow rounds RGB after each of its two passes, the reference once.
ONE_RESIZE = (1, 0.25)
#: Of a picture that is capped, and one level off, already.
TWO_RESIZES = (2, 0.35)
#: What encoders see is computed in float and rounded once; float32 may fall on the other side of a half.
ENCODER_VIEW = (1, 0.001)
ENCODER_VIEW_OF_CAPPED = (2, 0.2)
BOX = 0.01  # pixels: float32 coordinates up to 6,000 and a scale of two roundings


def assert_views_agree(data: bytes, manifest: ModelManifest) -> None:
    expected = reference.views(reference.decode(data), manifest)
    found = ImageSteps(manifest).prepare(data)
    capped = expected.original.shape != expected.full.shape
    assert found.size.tolist() == list(expected.size)
    assert_close(found.original, expected.original, ONE_RESIZE if capped else EXACT)
    assert_close(found.letterboxed, expected.letterboxed, TWO_RESIZES if capped else ONE_RESIZE)
    assert_close(found.centre, expected.centre, ENCODER_VIEW_OF_CAPPED if capped else ENCODER_VIEW)
    boxes = np.array(RELATIVE_BOXES, np.float32) * np.array([*expected.size] * 2, np.float32)
    crops = reference.object_crops(expected, boxes, manifest)
    out = np.empty_like(crops)
    ImageSteps(manifest).crops(found.original, found.size, boxes, out)
    assert_close(out, crops, ENCODER_VIEW_OF_CAPPED if capped else ENCODER_VIEW)


PICTURES = small_pictures()


@pytest.mark.parametrize("kind", PICTURES)
def test_every_kind_of_picture_is_prepared_as_the_reference_says(kind: str) -> None:
    assert_views_agree(PICTURES[kind], manifest_with())


@pytest.mark.parametrize("kind", ["jpeg", "exif-6", "grey-alpha", "641x479", "700x3", "2x3"])
@pytest.mark.parametrize(
    "manifest",
    [
        manifest_with(cap=113, size=97),
        manifest_with(cap=0, size=256, letterbox="top-left", canvas=416),
        manifest_with(interpolation="bicubic", size=224),
        manifest_with(interpolation="bicubic", size=31, cap=200),
    ],
    ids=["capped", "uncapped-top-left", "bicubic", "bicubic-capped"],
)
def test_other_models_get_what_their_manifest_says(kind: str, manifest: ModelManifest) -> None:
    assert_views_agree(PICTURES[kind], manifest)


def test_a_picture_of_24_million_pixels_is_prepared_as_the_reference_says() -> None:
    assert_views_agree(good_pictures()["6000x4000"], manifest_with())


@pytest.mark.parametrize("name", ["astronaut.png", "coffee.png", "grass.png"])
@pytest.mark.parametrize("ratio", [1.3, 2.0, 4.3])
def test_a_capped_jpeg_is_one_level_off_at_most_however_far_above_the_cap_it_is(name: str, ratio: float) -> None:
    data = encoded(photo(name).convert("RGB"), "JPEG", quality=90)
    full = reference.decode(data)
    cap = int(max(full.shape) / ratio)
    assert_close(np.asarray(decode_upright(data, cap=cap).pixels), reference.cap(full, cap), ONE_RESIZE)


@given(st.integers(1, 300), st.integers(1, 300), st.integers(1, 200), st.booleans(), st.data())
def test_noise_of_any_size_is_one_level_off_at_most(
    width: int, height: int, size: int, centred: bool, data: st.DataObject
) -> None:
    noise = np.random.default_rng(data.draw(st.integers(0, 999))).integers(0, 256, (height, width, 3), np.uint8)
    image = Image.fromarray(noise)
    board = reference.letterbox(noise, size, 114, centred=centred)
    assert_close(letterbox(image, size, 114, centred=centred), board, (1, 1))
    assert_close(centre_crop(image, size), reference.centre_crop(noise, size, "bilinear"), (1, 1))


@given(
    st.integers(1, 300),
    st.integers(1, 300),
    st.integers(1, 120),
    st.tuples(*[st.floats(-0.2, 1.2)] * 4),
    st.sampled_from([0.0, 0.12, 0.7]),
)
def test_any_box_is_cut_as_the_reference_says(
    width: int, height: int, size: int, corners: tuple[float, ...], margin: float
) -> None:
    noise = np.random.default_rng(width * 301 + height).integers(0, 256, (height, width, 3), np.uint8)
    x1, x2 = sorted((corners[0] * width, corners[2] * width))
    y1, y2 = sorted((corners[1] * height, corners[3] * height))
    arguments: dict[str, Any] = {"margin": margin, "pad_value": 114, "interpolation": "bilinear"}
    found = square_crop(noise, (x1, y1, x2, y2), size, **arguments)
    assert_close(found, reference.square_crop(noise, (x1, y1, x2, y2), size, **arguments), (1, 1))


@given(
    st.integers(1, 6000),
    st.integers(1, 6000),
    st.sampled_from([0, 500, 1920]),
    st.booleans(),
    st.lists(st.tuples(*[st.floats(-200, 900, width=32)] * 4), min_size=1, max_size=5),
)
def test_boxes_anywhere_on_the_canvas_are_mapped_as_the_reference_says(
    width: int, height: int, cap: int, centred: bool, boxes: list[tuple[float, ...]]
) -> None:
    shrink = min(1.0, cap / max(width, height)) if cap else 1.0
    capped = max(1, int(width * shrink + 0.5)), max(1, int(height * shrink + 0.5))
    corners = np.array(boxes, np.float32)
    plan = plan_letterbox(*capped, 640, centred=centred)
    expected = reference.to_original(corners, capped, (width, height), 640, centred=centred)
    assert np.abs(map_boxes(corners, plan, (width, height)) - expected).max() < BOX


@pytest.mark.parametrize("bgr", [False, True])
@pytest.mark.parametrize("value_range", [(0.0, 1.0), (0.0, 255.0), (-1.0, 1.0)])
def test_model_inputs_are_normalised_as_the_reference_says(bgr: bool, value_range: tuple[float, float]) -> None:
    images = np.random.default_rng(3).integers(0, 256, (2, 9, 7, 3), np.uint8)
    mean, std = (0.48, 0.46, 0.41), (0.27, 0.26, 0.28)
    tiny = load_manifest()
    steps = ImageSteps(
        replace(
            tiny,
            clip=replace(tiny.clip, mean=mean, std=std),
            detector=replace(tiny.detector, value_range=value_range, colour_order="bgr" if bgr else "rgb"),
        )
    )
    assert steps.clip_input(images) == pytest.approx(reference.normalise(images, mean, std), abs=1e-6)
    expected = reference.normalise(images, value_range=value_range, bgr=bgr)
    assert steps.detector_input(images) == pytest.approx(expected, rel=1e-6, abs=1e-6)
