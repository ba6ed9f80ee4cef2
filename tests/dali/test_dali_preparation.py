"""DALI against the NumPy reference, and one bad picture in a batch; docs/preprocessing.md says why each tolerance."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("nvidia.dali", reason="needs NVIDIA DALI: pip install 'sightlog[dali]'")

from nvidia.dali import Pipeline

from load_tests import parity
from models import reference
from models.decoding import ImageError
from models.manifest import ModelManifest
from tests.parity_cases import RELATIVE_BOXES, assert_close, manifest_with, small_pictures
from tests.pictures import bomb, encoded, good_pictures, photo, truncated_jpeg
from triton_repo.contract import IMAGE
from triton_repo.dali_inputs import dali_ready
from triton_repo.dali_pipeline import DaliPreparation, Device, gpu_present, serialize
from triton_repo.steps import ImageSteps, Prepared

#: Grey levels, max and mean, by device. On CPU DALI rounds once, as the reference does, but computes in float32.
DECODE = {"cpu": (0, 0), "gpu": (8, 1.0)}  # nvJPEG has another inverse DCT than libjpeg
RESIZE = {"cpu": (1, 0.1), "gpu": (8, 1.0)}
CROPS = {"cpu": (1, 0.001), "gpu": (8, 1.0)}
#: Beyond a border DALI repeats the last pixel, where the contract has none: up to 1/8 of a pixel's weight an axis.
BORDER = 32
#: The cubic filter reaches twice as far, and over the border wherever a tiny picture is enlarged.
CUBIC = (8, 1.2)

PICTURES = small_pictures()
DEVICES = [
    "cpu",
    pytest.param("gpu", marks=pytest.mark.skipif(not gpu_present(), reason="there is no NVIDIA GPU here")),
]

device = pytest.mark.parametrize("device", DEVICES)


def prepare(data: bytes, manifest: ModelManifest, device: Device) -> Prepared:
    row = DaliPreparation(manifest, device, batch_size=1).prepare([data])[0]
    assert isinstance(row, Prepared)
    return row


def assert_close_inside(found: np.ndarray, expected: np.ndarray, tolerance: tuple[float, float]) -> None:
    """All but the pixels along the border, which may be off by BORDER."""
    assert_close(found, expected, (BORDER, BORDER))
    if min(found.shape[:2]) > 2:
        assert_close(found[1:-1, 1:-1], expected[1:-1, 1:-1], tolerance)


def assert_views_agree(data: bytes, manifest: ModelManifest, device: Device) -> None:
    expected = reference.views(reference.decode(data), manifest)
    found = prepare(data, manifest, device)
    capped = expected.original.shape != expected.full.shape
    assert found.size.dtype == np.int32
    assert found.size.tolist() == list(expected.size)
    assert_close_inside(found.original, expected.original, (RESIZE if capped else DECODE)[device])
    assert_letterboxes_agree(found, expected, manifest, device)
    if manifest.clip.interpolation == "bicubic":
        assert_close(found.centre, expected.centre, CUBIC)
    else:
        assert_close_inside(found.centre, expected.centre, RESIZE[device])
    boxes = np.array(RELATIVE_BOXES, np.float32) * np.array([*expected.size] * 2, np.float32)
    crops = np.empty((len(boxes), *found.centre.shape), np.uint8)
    ImageSteps(manifest).crops(found.original, found.size, boxes, crops)
    tolerance = (BORDER, BORDER) if capped else CROPS[device]
    assert_close(crops, reference.object_crops(expected, boxes, manifest), tolerance)


def assert_letterboxes_agree(
    found: Prepared, expected: reference.ReferenceViews, manifest: ModelManifest, device: Device
) -> None:
    height, width = expected.original.shape[:2]
    detector = manifest.detector
    left, top, width, height = reference.place(
        width, height, detector.input_size, centred=detector.letterbox == "center"
    )
    placed = (slice(top, top + height), slice(left, left + width))
    assert_close_inside(found.letterboxed[placed], expected.letterboxed[placed], RESIZE[device])
    bars = np.ones(found.letterboxed.shape[:2], bool)
    bars[placed] = False
    assert (found.letterboxed[bars] == detector.pad_value).all()


@device
@pytest.mark.parametrize("kind", PICTURES)
def test_every_kind_of_picture_is_prepared_as_the_reference_says(kind: str, device: Device) -> None:
    assert_views_agree(PICTURES[kind], manifest_with(), device)


@device
@pytest.mark.parametrize("kind", ["jpeg", "exif-6", "grey-alpha", "641x479", "640x640", "2x3"])
@pytest.mark.parametrize(
    "manifest",
    [
        manifest_with(cap=113, size=61, canvas=96),
        manifest_with(cap=0, size=256, letterbox="top-left", canvas=416),
        manifest_with(interpolation="bicubic", size=224),
    ],
    ids=["capped", "uncapped-top-left", "bicubic"],
)
def test_other_models_get_what_their_manifest_says(kind: str, manifest: ModelManifest, device: Device) -> None:
    assert_views_agree(PICTURES[kind], manifest, device)


@device
def test_a_picture_of_24_million_pixels_is_prepared_as_the_reference_says(device: Device) -> None:
    assert_views_agree(good_pictures()["6000x4000"], manifest_with(), device)


@device
@pytest.mark.parametrize("size", [(1919, 1079), (1920, 1080), (1921, 1081), (1, 1)])
def test_no_picture_is_enlarged_up_to_the_cap(size: tuple[int, int], device: Device) -> None:
    found = prepare(encoded(Image.new("RGB", size), "JPEG"), manifest_with(), device)
    assert found.original.shape[1::-1] == (size if max(size) <= 1920 else (1920, 1080))


@device
def test_rows_come_back_in_order_from_more_than_one_batch(device: Device) -> None:
    levels = list(range(0, 250, 25))
    files = [encoded(Image.new("RGB", (8 + level, 9), (level,) * 3), "PNG") for level in levels]
    rows = DaliPreparation(manifest_with(), device, batch_size=3).prepare(files)
    assert [row.original[0, 0, 0] for row in rows if isinstance(row, Prepared)] == levels


@device
def test_refused_pictures_are_refused_alone(device: Device) -> None:
    good = PICTURES["jpeg"]
    preparation = DaliPreparation(manifest_with(), device, batch_size=8)
    alone = preparation.prepare([good])[0]
    rows = preparation.prepare([good, b"", good, b"no picture", bomb(), truncated_jpeg(), good])
    codes = [row.code if isinstance(row, ImageError) else None for row in rows]
    assert codes == [None, "empty", None, "unsupported_format", "too_many_pixels", "undecodable", None]
    assert_same(rows, alone, (0, 2, 6))


@device
def test_damage_that_only_decoding_shows_costs_no_neighbour_and_no_later_batch(
    device: Device, caplog: pytest.LogCaptureFixture
) -> None:
    good = PICTURES["jpeg"]
    whole = encoded(photo("coffee.png").convert("RGB"), "JPEG", progressive=True)
    tables = whole.rindex(b"\xff\xc4") + 5  # of the last scan
    damaged = whole[:tables] + b"\xff" * 16 + whole[tables + 16 :]
    preparation = DaliPreparation(manifest_with(), device, batch_size=8)
    with caplog.at_level(logging.WARNING):
        rows = preparation.prepare([good, damaged, good])
    assert "one by one" in caplog.text
    assert isinstance(rows[1], ImageError)
    assert rows[1].code == "undecodable"
    on_cpu = ImageSteps(manifest_with()).prepare(good)
    assert_same(rows, on_cpu, (0, 2))
    expected = reference.views(reference.decode(good), manifest_with())
    again = preparation.prepare([good])[0]
    assert isinstance(again, Prepared)
    assert_close_inside(again.centre, expected.centre, RESIZE[device])


def assert_same(rows: list[Prepared | ImageError], expected: Prepared | ImageError, where: tuple[int, ...]) -> None:
    assert isinstance(expected, Prepared)
    for number in where:
        row = rows[number]
        assert isinstance(row, Prepared)
        for name in ("letterboxed", "centre", "original", "size"):
            assert (getattr(row, name) == getattr(expected, name)).all()


@device
def test_two_exif_blocks_do_no_harm(device: Device) -> None:
    # Given to DALI as it is, this file ends the process.
    exif = Image.Exif()
    exif[0x0112] = 6
    block = b"Exif\0\0" + exif.tobytes().removeprefix(b"Exif\0\0")
    segment = b"\xff\xe1" + (len(block) + 2).to_bytes(2, "big") + block
    data = PICTURES["jpeg"]
    assert_views_agree(data[:2] + segment + segment + data[2:], manifest_with(), device)


def test_the_graph_that_triton_loads_is_the_one_that_is_tested(tmp_path: Path) -> None:
    manifest = manifest_with()
    serialize(manifest, "cpu", tmp_path / "model.dali")
    # As Triton's backend starts it: another batch size, and the executor without pipelining.
    loaded = Pipeline.deserialize(
        filename=str(tmp_path / "model.dali"),
        batch_size=5,
        num_threads=1,
        prefetch_queue_depth=1,
        exec_pipelined=False,
        exec_async=False,
    )
    for kind in ("jpeg", "exif-6", "alpha", "700x3"):
        loaded.feed_input(IMAGE, [np.frombuffer(dali_ready(PICTURES[kind]), np.uint8)])
        found = [np.asarray(tensors.at(0)) for tensors in loaded.run()]
        expected = prepare(PICTURES[kind], manifest, "cpu")
        for tensor, wanted in zip(
            found, (expected.letterboxed, expected.centre, expected.original, expected.size), strict=True
        ):
            assert tensor.dtype == wanted.dtype
            assert (tensor == wanted).all()


def test_the_graph_for_the_gpu_is_written_without_one(tmp_path: Path) -> None:
    serialize(manifest_with(), "gpu", tmp_path / "model.dali")
    written = (tmp_path / "model.dali").read_bytes()
    assert b"mixed" in written
    assert IMAGE.encode() in written
    # The executor of Triton's backend cannot hand the shape of what the GPU decoded to the CPU.
    assert b"PeekImageShape" in written
    assert b"Shapes" not in written


@device
def test_the_benchmark_finds_the_path_equal(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("load_tests.parity_pictures.SIZES", ((641, 479), (333, 777), (250, 190)))
    monkeypatch.setattr("load_tests.parity_pictures._photographs", lambda: [])
    monkeypatch.setattr(parity, "_random_tower", lambda name, size: None)
    figures = parity.measure(None, 8, devices=[f"dali_{device}"])
    assert figures["pass"] is True
    assert figures[f"dali_{device}_tiny_crop_cosine_min"] >= parity.MUST_COSINE
    assert figures[f"dali_{device}_centre_crop_mean"] <= RESIZE[device][1]
