"""Real photographs and broken files for tests: what ships inside scikit-image, in every form that people upload."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import skimage
from PIL import Image

_PHOTOS = Path(skimage.__file__).parent / "data"


def photo(name: str) -> Image.Image:
    """A photograph that scikit-image carries, for example `astronaut.png`."""
    return Image.open(_PHOTOS / name)


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def good_pictures() -> dict[str, bytes]:
    """Files that must become searchable, by what is special about them."""
    astronaut = photo("astronaut.png").convert("RGB")
    pictures = {
        "jpeg": encoded(astronaut, "JPEG", quality=90),
        "png": encoded(photo("coffee.png").convert("RGB"), "PNG"),
        "webp": encoded(photo("chelsea.png").convert("RGB"), "WEBP"),
        "cmyk": encoded(astronaut.convert("CMYK"), "JPEG"),
        "grey": encoded(photo("camera.png").convert("L"), "JPEG"),
        "palette": encoded(astronaut.convert("P"), "PNG"),
        "alpha": encoded(_with_alpha(astronaut), "PNG"),
        "16-bit": encoded(_sixteen_bit(photo("camera.png").convert("L")), "PNG"),
        "1x1": encoded(Image.new("RGB", (1, 1), (200, 10, 10)), "PNG"),
        "6000x4000": encoded(astronaut.resize((6000, 4000)), "JPEG", quality=80),
    }
    for orientation in range(1, 9):
        pictures[f"exif-{orientation}"] = _oriented(astronaut, orientation)
    return pictures


def bomb(side: int = 50_000) -> bytes:
    """A valid PNG of side x side pixels that is a few hundred kilobytes small."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    rows = zlib.compressobj(9)
    line = b"\0" * (1 + (side + 7) // 8)
    body = b"".join(rows.compress(line) for _ in range(side)) + rows.flush()
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def truncated_jpeg() -> bytes:
    """The first half of a photograph."""
    whole = encoded(photo("coffee.png").convert("RGB"), "JPEG", quality=90)
    return whole[: len(whole) // 2]


def _with_alpha(image: Image.Image) -> Image.Image:
    mask = Image.linear_gradient("L").resize(image.size)
    image = image.copy()
    image.putalpha(mask)
    return image


def _sixteen_bit(image: Image.Image) -> Image.Image:
    return Image.fromarray(np.asarray(image).astype(np.uint16) * 257)


def _oriented(image: Image.Image, orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded(image, "JPEG", quality=90, exif=exif.tobytes())
