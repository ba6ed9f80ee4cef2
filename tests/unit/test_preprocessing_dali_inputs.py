"""What DALI is given: the pixels of the upload, none of its metadata, and nothing that DALI reads in another way."""

from __future__ import annotations

import io
import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from models.decoding import ImageError, decode_upright
from tests.pictures import encoded, photo
from triton_repo.dali_inputs import dali_picture, dali_ready

JPEG = b"\xff\xd8\xff"


@pytest.fixture(scope="module")
def astronaut() -> Image.Image:
    return photo("astronaut.png").convert("RGB").crop((100, 0, 341, 161))


def pixels(data: bytes) -> np.ndarray:
    return np.asarray(decode_upright(data, cap=0).pixels)


def read_by_dali(data: bytes) -> np.ndarray:
    """Portable pixmaps are no upload, so `decode_upright` refuses them."""
    return np.asarray(Image.open(io.BytesIO(data))) if data[:2] == b"P6" else pixels(data)


def segment(marker: int, content: bytes) -> bytes:
    return bytes([0xFF, marker]) + struct.pack(">H", len(content) + 2) + content


def exif_segment(orientation: int) -> bytes:
    entry = struct.pack(">HHIHH", 0x0112, 3, 1, orientation, 0)
    return segment(0xE1, b"Exif\0\0MM\0*" + struct.pack(">IH", 8, 1) + entry + bytes(4))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_jpeg_keeps_its_coded_pixels_and_its_orientation(astronaut: Image.Image, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    exif[0x010F] = "a maker's name"
    data = encoded(astronaut, "JPEG", exif=exif.tobytes(), comment=b"a comment")
    ready = dali_ready(data)
    assert ready.startswith(JPEG)
    assert (pixels(ready) == pixels(data)).all()
    assert b"maker" not in ready
    assert b"comment" not in ready


@pytest.mark.parametrize(
    "options",
    [{"progressive": True}, {"subsampling": 0}, {"subsampling": 2}, {"restart_marker_rows": 1}, {"optimize": True}],
    ids=str,
)
def test_every_ordinary_coding_is_kept(astronaut: Image.Image, options: dict[str, object]) -> None:
    for picture in (astronaut, astronaut.convert("L")):
        data = encoded(picture, "JPEG", **options)
        assert dali_ready(data).startswith(JPEG)
        assert (pixels(dali_ready(data)) == pixels(data)).all()


def test_one_exif_block_is_left_of_several(astronaut: Image.Image) -> None:
    data = encoded(astronaut, "JPEG")
    twice = data[:2] + exif_segment(6) + exif_segment(3) + data[2:]
    ready = dali_ready(twice)
    assert ready.count(b"Exif\0\0") == 1
    assert (pixels(ready) == pixels(twice)).all()


def test_orientation_is_the_one_that_pillow_reads_whatever_says_it(astronaut: Image.Image) -> None:
    data = encoded(astronaut, "JPEG")
    as_byte = segment(0xE1, b"Exif\0\0II*\0" + struct.pack("<IHHHIBBBBI", 8, 1, 0x0112, 1, 1, 6, 0, 0, 0, 0))
    as_xmp = segment(0xE1, b'http://ns.adobe.com/xap/1.0/\0<x:xmpmeta><r tiff:Orientation="6"/></x:xmpmeta>')
    damaged = segment(0xE1, b"Exif\0\0II*\0\xff\xff\xff\xff garbage")
    empty = segment(0xE1, b"Exif\0\0")
    for metadata in (as_byte, as_xmp, damaged, empty):
        changed = data[:2] + metadata + data[2:]
        assert (pixels(dali_ready(changed)) == pixels(changed)).all()
        assert metadata not in dali_ready(changed)


def test_what_follows_the_end_of_the_picture_is_cut_off(astronaut: Image.Image) -> None:
    data = encoded(astronaut, "JPEG")
    assert dali_ready(data + b"a second picture") == dali_ready(data)


def test_other_formats_and_other_colours_become_plain_pixels(astronaut: Image.Image) -> None:
    alpha = astronaut.copy()
    alpha.putalpha(Image.linear_gradient("L").resize(astronaut.size))
    cmyk = astronaut.convert("CMYK")
    for data in (
        encoded(alpha, "PNG"),
        encoded(astronaut, "WEBP", save_all=True, append_images=[astronaut.rotate(180)]),
        encoded(cmyk, "JPEG"),
        encoded(astronaut, "JPEG", keep_rgb=True),
    ):
        ready = dali_ready(data)
        assert ready.startswith(b"P6")
        assert (read_by_dali(ready) == pixels(data)).all()


def test_a_stray_marker_in_coded_data_is_an_error_as_it_is_for_pillow(astronaut: Image.Image) -> None:
    data = bytearray(encoded(astronaut, "JPEG"))
    coded = data.index(b"\xff\xda") + 14
    data[coded + 2000 : coded + 2004] = b"\xff\xdb\0\4"
    with pytest.raises(ImageError):
        decode_upright(bytes(data))
    with pytest.raises(ImageError) as caught:
        dali_ready(bytes(data))
    assert caught.value.code == "undecodable"


@pytest.mark.parametrize(
    ("data", "code"),
    [(b"", "empty"), (b"hello", "unsupported_format"), (b"\xff\xd8\xff", "undecodable"), (b"BM", "unsupported_format")],
)
def test_what_is_no_picture_is_refused_before_dali_sees_it(data: bytes, code: str) -> None:
    with pytest.raises(ImageError) as caught:
        dali_ready(data)
    assert caught.value.code == code


def test_the_pixel_limit_holds_before_anything_is_decoded(astronaut: Image.Image) -> None:
    for kind in ("JPEG", "PNG"):
        with pytest.raises(ImageError) as caught:
            dali_ready(encoded(astronaut, kind), max_pixels=100)
        assert caught.value.code == "too_many_pixels"


@given(st.data())
def test_damage_anywhere_gives_an_image_error_or_the_pixels_that_pillow_sees(data: st.DataObject) -> None:
    damaged = bytearray(data.draw(st.sampled_from(SMALL)))
    for _ in range(data.draw(st.integers(1, 6))):
        damaged[data.draw(st.integers(2, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    try:
        expected = pixels(bytes(damaged))
    except ImageError:
        expected = None
    try:
        found = read_by_dali(dali_ready(bytes(damaged)))
    except ImageError:
        found = None
    # Damage inside coded data is for the decoder to find: it may be the same file, refused in both places.
    assert (found is None) == (expected is None)
    assert found is None or expected is None or (found == expected).all()


def small_jpegs() -> list[bytes]:
    small = photo("astronaut.png").convert("RGB").resize((40, 24))
    exif = Image.Exif()
    exif[0x0112] = 6
    return [
        encoded(small, "JPEG", exif=exif.tobytes()),
        encoded(small, "JPEG", progressive=True),
        encoded(small.convert("L"), "JPEG", restart_marker_rows=1),
        encoded(small.convert("CMYK"), "JPEG"),
    ]


SMALL = small_jpegs()


def test_a_progressive_jpeg_without_its_end_is_refused() -> None:
    whole = encoded(photo("coffee.png").convert("RGB"), "JPEG", progressive=True)
    assert dali_ready(whole)
    with pytest.raises(ImageError, match="undecodable"):
        dali_ready(whole[: len(whole) // 2])


@pytest.mark.parametrize("size", [(15, 16), (16, 15), (3, 700), (1, 1), (2, 3)])
def test_jpegs_too_small_for_a_gpu_are_decoded_before(astronaut: Image.Image, size: tuple[int, int]) -> None:
    data = encoded(astronaut.resize(size), "JPEG")
    ready = dali_ready(data)
    assert ready.startswith(b"P6")
    assert (read_by_dali(ready) == pixels(data)).all()


def test_the_smallest_jpeg_that_a_gpu_decodes_keeps_its_coded_pixels(astronaut: Image.Image) -> None:
    assert dali_ready(encoded(astronaut.resize((16, 16)), "JPEG")).startswith(JPEG)


@pytest.mark.parametrize("orientation", [1, 6])
@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_the_number_of_pixels_comes_with_the_file(astronaut: Image.Image, kind: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(astronaut, kind, exif=exif.tobytes())
    ready, count = dali_picture(data)
    assert count == 241 * 161
    assert ready == dali_ready(data)


def coded(body: bytes) -> bytes:
    """A baseline JPEG of 16 x 16 whose coded data is `body`."""
    picture = encoded(Image.new("L", (16, 16)), "JPEG")
    start = picture.index(b"\xff\xda")
    return picture[: start + 2 + int.from_bytes(picture[start + 2 : start + 4], "big")] + body


@pytest.mark.parametrize(
    ("kept", "tail"),
    [
        (b"\x01\xff\xd9", b""),
        (b"\x01\xff\xd9", b"tail\xff\xdb\xff\xd9"),
        (b"\xff\xd9", b"\xff"),
        (b"\x01\xff\x00\x02\xff\xd9", b""),  # a coded FF
        (b"\x01\xff\xff\xd9", b"\xff\xd9"),  # FF may fill before a marker
        (b"\xff\xd0\x01\xff\xd7\x02\xff\xd9", b"\xff\xd0"),  # restarts
    ],
)
def test_coded_data_is_kept_up_to_the_end_of_the_picture(kept: bytes, tail: bytes) -> None:
    assert dali_ready(coded(kept + tail)) == coded(kept)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\xff",
        b"\x01",
        b"\x01\xff",
        b"\xff\xd0",
        b"\xff\xd0\xff",
        b"\x01\xff\xdb\0\2\xff\xd9",
        b"\xff\xd0\xff\xc4\0\2\xff\xd9",
    ],
)
def test_coded_data_without_its_end_or_with_a_marker_in_its_midst_is_never_given_to_dali(body: bytes) -> None:
    try:
        ready = dali_ready(coded(body))
    except ImageError:
        return
    assert ready.startswith(b"P6")
