"""Which pixels come out of an image file, and which files are refused with which code."""

from __future__ import annotations

import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from models.decoding import ERROR_CODES, ImageError, capped_size, decode_upright
from tests.pictures import encoded, good_pictures, photo

RGB = np.ndarray[tuple[int, ...], np.dtype[np.uint8]]


@pytest.fixture(scope="module")
def astronaut() -> Image.Image:
    return photo("astronaut.png").convert("RGB").crop((100, 0, 340, 160))


@pytest.fixture(scope="module")
def jpeg(astronaut: Image.Image) -> bytes:
    return encoded(astronaut, "JPEG", quality=90)


def pixels_of(data: bytes, **options: int) -> RGB:
    return np.asarray(decode_upright(data, **options).pixels)


def code_of(data: bytes, **options: int) -> str:
    with pytest.raises(ImageError) as caught:
        decode_upright(data, **options)
    return caught.value.code


def difference(a: RGB, b: RGB) -> float:
    assert a.shape == b.shape
    return float(np.abs(a.astype(int) - b).mean())


def outcome_of(data: bytes) -> str:
    try:
        decode_upright(data, max_pixels=1_000_000)
    except ImageError as error:
        return error.code
    return "decoded"


def test_every_kind_of_upload_becomes_capped_rgb() -> None:
    for kind, data in good_pictures().items():
        upright = decode_upright(data)
        assert upright.pixels.mode == "RGB", kind
        assert upright.pixels.size == capped_size(upright.width, upright.height, 1920), kind


@pytest.mark.parametrize(
    ("kind", "options"),
    [("PNG", {}), ("WEBP", {"lossless": True})],
)
def test_lossless_formats_give_back_the_same_pixels(
    astronaut: Image.Image, kind: str, options: dict[str, object]
) -> None:
    assert difference(pixels_of(encoded(astronaut, kind, **options)), np.asarray(astronaut)) == 0


_STORED = {
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "JPEG"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_picture_stored_in_any_orientation_comes_out_upright(
    astronaut: Image.Image, kind: str, orientation: int
) -> None:
    turn = _STORED[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = astronaut if turn is None else astronaut.transpose(turn)
    options = {"lossless": True} if kind == "WEBP" else {"quality": 95} if kind == "JPEG" else {}
    upright = decode_upright(encoded(stored, kind, exif=exif.tobytes(), **options))
    assert (upright.width, upright.height) == astronaut.size
    assert difference(np.asarray(upright.pixels), np.asarray(astronaut)) < (4 if kind == "JPEG" else 0.01)


def test_size_of_a_turned_and_capped_picture_is_that_of_the_upright_original() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encoded(Image.new("RGB", (4001, 2999)), "JPEG", exif=exif.tobytes())
    upright = decode_upright(data)
    assert (upright.width, upright.height) == (2999, 4001)
    assert upright.pixels.size == (1439, 1920)


def test_damaged_exif_does_not_cost_the_picture(astronaut: Image.Image) -> None:
    data = encoded(astronaut, "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff garbage")
    assert decode_upright(data).width == astronaut.width


def test_transparent_parts_become_white_and_half_transparent_ones_are_mixed() -> None:
    picture = Image.new("RGBA", (3, 1), (200, 0, 0, 255))
    picture.putpixel((1, 0), (200, 0, 0, 0))
    picture.putpixel((2, 0), (200, 0, 0, 51))
    for kind, options in (("PNG", {}), ("WEBP", {"lossless": True, "exact": True})):
        assert pixels_of(encoded(picture, kind, **options))[0].tolist() == [
            [200, 0, 0],
            [255, 255, 255],
            [244, 204, 204],
        ]


def test_grey_with_alpha_and_a_transparent_palette_are_laid_over_white() -> None:
    grey = Image.new("LA", (1, 1), (100, 0))
    assert pixels_of(encoded(grey, "PNG"))[0, 0].tolist() == [255, 255, 255]
    palette = Image.new("P", (2, 1), 0)
    palette.putpalette([10, 20, 30, 40, 50, 60])
    palette.putpixel((1, 0), 1)
    assert pixels_of(encoded(palette, "PNG", transparency=0))[0].tolist() == [[255, 255, 255], [40, 50, 60]]


def test_cmyk_is_not_inverted(astronaut: Image.Image) -> None:
    cmyk = astronaut.convert("CMYK")
    assert difference(pixels_of(encoded(cmyk, "JPEG", quality=95)), np.asarray(astronaut)) < 4


def test_grey_and_bilevel_pictures_keep_their_brightness(astronaut: Image.Image) -> None:
    grey = astronaut.convert("L")
    expected = np.repeat(np.asarray(grey)[..., None], 3, axis=2)
    assert difference(pixels_of(encoded(grey, "PNG")), expected) == 0
    bilevel = grey.convert("1")
    assert difference(pixels_of(encoded(bilevel, "PNG")), np.asarray(bilevel.convert("RGB"))) == 0


def test_16_bit_grey_is_scaled_and_not_clipped() -> None:
    ramp = np.linspace(0, 65535, 256).astype(np.uint16)[None]
    found = pixels_of(encoded(Image.fromarray(ramp), "PNG"))
    assert found[0, :, 0].tolist() == list(range(256))


def test_16_bit_colour_is_scaled_and_not_clipped() -> None:
    samples = np.linspace(0, 65535, 256 * 3).reshape(1, 256, 3).astype(">u2")
    data = png(256, 1, bit_depth=16, colour_type=2, rows=b"\0" + samples.tobytes())
    assert difference(pixels_of(data), (samples / 257).round().astype(np.uint8)) <= 1


@pytest.mark.parametrize("kind", ["GIF", "BMP", "TIFF", "ICO", "PPM", "TGA", "JPEG2000", "AVIF"])
def test_other_formats_are_unsupported(astronaut: Image.Image, kind: str) -> None:
    if kind not in Image.SAVE:
        Image.init()
    if kind not in Image.SAVE:
        pytest.skip(f"this Pillow writes no {kind}")
    assert code_of(encoded(astronaut, kind)) == "unsupported_format"


def test_only_the_first_frame_of_an_animation_counts() -> None:
    red, blue = Image.new("RGB", (8, 8), (255, 0, 0)), Image.new("RGB", (8, 8), (0, 0, 255))
    for kind in ("PNG", "WEBP"):
        data = encoded(red, kind, save_all=True, append_images=[blue])
        assert pixels_of(data)[4, 4, 0] > 240


def test_a_jpeg_far_above_the_cap_is_scaled_down_from_all_its_pixels() -> None:
    # Reading it at half size, as libjpeg can, is up to 67 levels off.
    photograph = photo("coffee.png").convert("RGB")
    data = encoded(photograph, "JPEG", quality=90)
    capped, full = decode_upright(data, cap=250), decode_upright(data, cap=0)
    assert (capped.width, capped.height) == (full.width, full.height) == photograph.size
    expected = full.pixels.resize((250, 167), Image.Resampling.BILINEAR)
    assert difference(np.asarray(capped.pixels), np.asarray(expected)) == 0


def test_the_cap_antialiases() -> None:
    noise = np.random.default_rng(2).integers(0, 256, (30, 4000, 3), np.uint8)
    expected = Image.fromarray(noise).resize((1920, 14), Image.Resampling.BILINEAR)
    assert difference(pixels_of(encoded(Image.fromarray(noise), "PNG")), np.asarray(expected)) == 0


@given(st.integers(1, 20_000), st.integers(1, 20_000), st.integers(0, 4000))
def test_capped_size_never_enlarges_and_keeps_the_shape(width: int, height: int, cap: int) -> None:
    w, h = capped_size(width, height, cap)
    assert 1 <= w <= width
    assert 1 <= h <= height
    if cap == 0 or max(width, height) <= cap:
        assert (w, h) == (width, height)
    else:
        assert max(w, h) == cap
        scale = cap / max(width, height)
        assert abs(w - max(1, width * scale)) <= 0.5
        assert abs(h - max(1, height * scale)) <= 0.5


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"", "empty"),
        (b"hello, this is text", "unsupported_format"),
        (b"%PDF-1.7\n", "unsupported_format"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "unsupported_format"),
        (b"\0\0\0\x20ftypheic\0\0\0\0", "unsupported_format"),
        (b"\xff\xd8\xff", "undecodable"),
        (b"\x89PNG\r\n\x1a\n", "undecodable"),
        (b"RIFF\0\0\0\0WEBPVP8 ", "undecodable"),
        (b"BM", "unsupported_format"),
        (b"GIF89a", "unsupported_format"),
        (b"II*\0", "unsupported_format"),
    ],
)
def test_what_is_no_picture_is_refused_with_its_code(data: bytes, code: str) -> None:
    assert code_of(data) == code


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("share", [0.2, 0.5, 0.9])
def test_a_truncated_file_is_an_error(astronaut: Image.Image, kind: str, share: float) -> None:
    data = encoded(astronaut, kind)
    assert code_of(data[: int(len(data) * share)]) == "undecodable"


@pytest.mark.parametrize("progressive", [False, True])
def test_no_prefix_of_a_jpeg_gives_a_partly_grey_picture(astronaut: Image.Image, progressive: bool) -> None:
    data = encoded(astronaut, "JPEG", progressive=progressive)
    whole = pixels_of(data)
    for length in range(700, len(data), max(1, len(data) // 60)):
        try:
            found = pixels_of(data[:length])
        except ImageError:
            continue
        assert difference(found, whole) == 0


@given(st.binary(max_size=300), st.sampled_from([b"", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"RIFF\0\0\0\0WEBPVP8 "]))
def test_random_bytes_raise_nothing_but_image_errors(tail: bytes, head: bytes) -> None:
    assert outcome_of(head + tail) in {"decoded", *ERROR_CODES}


@given(st.data())
def test_damage_anywhere_raises_nothing_but_image_errors(data: st.DataObject) -> None:
    whole = bytearray(data.draw(st.sampled_from(_small_files())))
    for _ in range(data.draw(st.integers(1, 8))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    assert outcome_of(bytes(whole)) in {"decoded", *ERROR_CODES}


def _small_files() -> list[bytes]:
    small = photo("astronaut.png").convert("RGB").resize((24, 16))
    return [encoded(small, kind) for kind in ("JPEG", "PNG", "WEBP")]


def png(width: int, height: int, *, bit_depth: int, colour_type: int, rows: bytes) -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, bit_depth, colour_type, 0, 0, 0)
    parts = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + parts


def _png_bomb(side: int) -> bytes:
    return png(side, side, bit_depth=8, colour_type=2, rows=b"\0" * 1000)


def _jpeg_bomb(side: int) -> bytes:
    data = bytearray(encoded(Image.new("RGB", (8, 8)), "JPEG"))
    frame = data.index(b"\xff\xc0")
    data[frame + 5 : frame + 9] = struct.pack(">HH", side, side)
    return bytes(data)


def _webp_bomb(side: int) -> bytes:
    animation = encoded(
        Image.new("RGB", (8, 8)), "WEBP", save_all=True, append_images=[Image.new("RGB", (8, 8), "red")]
    )
    data = bytearray(animation)
    data[24:30] = (side - 1).to_bytes(3, "little") * 2
    return bytes(data)


BOMBS: list[Callable[[int], bytes]] = [_png_bomb, _jpeg_bomb, _webp_bomb]


@pytest.mark.parametrize("bomb", BOMBS)
@pytest.mark.parametrize("side", [7_100, 10_000, 50_000])
def test_a_picture_with_too_many_pixels_is_refused_by_its_header(bomb: Callable[[int], bytes], side: int) -> None:
    assert code_of(bomb(side)) == "too_many_pixels"


def test_refusing_bombs_takes_no_memory(tmp_path: Path) -> None:
    for number, bomb in enumerate(BOMBS):
        for side in (10_000, 50_000):
            (tmp_path / f"{number}-{side}").write_bytes(bomb(side))
    program = """
import pathlib, resource, sys
from models.decoding import ImageError, decode_upright
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for path in pathlib.Path(sys.argv[1]).iterdir():
    try:
        decode_upright(path.read_bytes())
    except ImageError:
        continue
    sys.exit(f"{path.name} was decoded")
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 30_000  # KiB; one such picture decodes to 300 MB and more


def test_the_pixel_limit_is_a_setting(jpeg: bytes) -> None:
    assert code_of(jpeg, max_pixels=1000) == "too_many_pixels"
    assert decode_upright(jpeg, max_pixels=240 * 160).width == 240


def segments(kind: int, body: bytes = b"") -> bytes:
    return bytes([0xFF, kind]) + (len(body) + 2).to_bytes(2, "big") + body


def _with_scans(picture: Image.Image, more: int) -> bytes:
    """A progressive JPEG whose last scan, which refines what is there, comes `more` times more."""
    data = encoded(picture, "JPEG", progressive=True)
    last, end = data.rindex(b"\xff\xda"), data.rindex(b"\xff\xd9")
    return data[:end] + data[last:end] * more + data[end:]


def _chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def _with_chunks(picture: Image.Image, chunks: bytes) -> bytes:
    data = encoded(picture, "PNG")
    return data[:33] + chunks + data[33:]


def test_a_progressive_jpeg_with_very_many_scans_is_refused(astronaut: Image.Image) -> None:
    assert outcome_of(_with_scans(astronaut, 20)) == "decoded"
    assert code_of(_with_scans(astronaut, 60)) == "too_complex"
    assert code_of(_with_scans(astronaut, 100_000)) == "too_complex"


def test_what_a_phone_appends_to_its_picture_is_no_scan(jpeg: bytes) -> None:
    assert outcome_of(jpeg + b"\0\0\0\x18ftypmp42" + b"\xff\xda" * 1000) == "decoded"
    metadata = segments(0xE1, b"\xff\xda" * 1000)
    assert outcome_of(jpeg[:2] + metadata + jpeg[2:]) == "decoded"
    assert outcome_of(jpeg + b"\xff" * 200_000) == "decoded"


def test_very_many_segments_are_refused(jpeg: bytes, astronaut: Image.Image) -> None:
    assert outcome_of(jpeg[:2] + segments(0xFE) * 1000 + jpeg[2:]) == "decoded"
    assert code_of(jpeg[:2] + segments(0xFE) * 100_000 + jpeg[2:]) == "too_complex"
    assert outcome_of(_with_chunks(astronaut, _chunk(b"prVt", b"") * 1000)) == "decoded"
    assert code_of(_with_chunks(astronaut, _chunk(b"prVt", b"") * 100_000)) == "too_complex"


@pytest.mark.parametrize(
    "chunk",
    [
        _chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes(50_000_000))),
        _chunk(b"iTXt", b"k\0\1\0\0\0" + zlib.compress(bytes(50_000_000))),
        _chunk(b"iCCP", b"k\0\0" + zlib.compress(bytes(50_000_000))),
        _chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes(900_000))) * 100,
    ],
)
def test_a_png_whose_metadata_expands_is_refused(astronaut: Image.Image, chunk: bytes) -> None:
    assert code_of(_with_chunks(astronaut, chunk)) == "undecodable"


def test_pixels_beyond_the_announced_ones_are_not_decoded() -> None:
    data = png(8, 8, bit_depth=8, colour_type=2, rows=bytes(200_000_000))
    assert outcome_of(data) in ("decoded", "undecodable")


def test_exif_beyond_its_bound_counts_as_upright(astronaut: Image.Image) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    for padding, size in ((1000, (160, 240)), (300_000, (240, 160))):
        data = encoded(astronaut, "PNG", exif=exif.tobytes() + bytes(padding))
        assert decode_upright(data).pixels.size == size


def test_damaged_exif_entries_write_nothing(astronaut: Image.Image) -> None:
    entries = b"".join(struct.pack(">HHII", 1000 + tag, 7, 60_000, 0) for tag in range(3000))
    block = b"Exif\0\0MM\0*\0\0\0\x08" + struct.pack(">H", 3000) + entries
    program = """
import sys
from models.decoding import decode_upright
decode_upright(sys.stdin.buffer.read())
"""
    done = subprocess.run(
        [sys.executable, "-c", program], input=encoded(astronaut, "JPEG", exif=block), capture_output=True, check=True
    )
    assert done.stderr == b""
