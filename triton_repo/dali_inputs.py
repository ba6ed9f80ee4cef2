"""What DALI may be given: every accepted upload as a file that DALI decodes exactly as `models.decoding` does."""

from __future__ import annotations

import numpy as np

from models.decoding import DEFAULT_MAX_PIXELS, decode_upright, exif_orientation, open_checked

_SOI, _APP0, _APP1, _APP14 = 0xD8, 0xE0, 0xE1, 0xEE
_BASELINE, _EXTENDED, _PROGRESSIVE = 0xC0, 0xC1, 0xC2
_SOS, _EOI = 0xDA, 0xD9
#: Huffman tables, quantisation tables, restart interval.
_TABLES = frozenset({0xC4, 0xDB, 0xDD})
#: Application data and comments; none of it changes pixels but JFIF and Adobe, which say how colours are coded.
_METADATA = frozenset({*range(0xE0, 0xF0), 0xFE})
_ADOBE_YCBCR = 1
_SMALLEST = 16  # pixels of the shorter side


def dali_ready(data: bytes, max_pixels: int = DEFAULT_MAX_PIXELS) -> bytes:
    """A file that DALI reads as `decode_upright` reads `data`. Raises `ImageError`."""
    return dali_picture(data, max_pixels)[0]


def dali_picture(data: bytes, max_pixels: int = DEFAULT_MAX_PIXELS) -> tuple[bytes, int]:
    """A file that DALI reads as `decode_upright` reads `data`, and how many pixels it has. Raises `ImageError`.

    A grey or YCbCr JPEG keeps its coded pixels. Its metadata is left out but for the orientation, which is written anew
    as Pillow reads it: DALI reads damaged EXIF differently, and two EXIF blocks in one file make it corrupt its heap.
    Everything else (other formats, CMYK and RGB JPEGs, stray markers that DALI decodes to half-grey) is decoded here
    and passed on as an uncompressed picture, because DALI drops transparency and refuses animations.
    """
    image = open_checked(data, max_pixels)
    # A GPU decodes JPEGs of a few pixels otherwise: 16 levels off at 2 x 3.
    coded = _bare_jpeg(data, exif_orientation(image)) if data[1] == _SOI and min(image.size) >= _SMALLEST else None
    count = image.width * image.height
    if coded is not None:
        return coded, count
    pixels = decode_upright(data, max_pixels=max_pixels, cap=0).pixels
    return b"P6 %d %d 255\n" % pixels.size + pixels.tobytes(), count


def _bare_jpeg(data: bytes, orientation: int) -> bytes | None:
    """The JPEG with `orientation` as its only metadata; None where DALI may decode other pixels than Pillow."""
    parts = [data[:2], *([_exif(orientation)] if 2 <= orientation <= 8 else [])]
    frame: int | None = None
    jfif, adobe, components = False, -1, b""
    at = 2
    while data[at : at + 1] == b"\xff" and at + 4 <= len(data):
        kind = data[at + 1]
        end = at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        segment, at = data[at:end], end
        content = segment[4:]
        if kind in {_BASELINE, _EXTENDED, _PROGRESSIVE} and frame is None and content[:1] == b"\x08":
            frame, components = kind, content[6::3]
        elif kind == _APP0 and content.startswith(b"JFIF\0"):
            jfif = True
        elif kind == _APP14 and content.startswith(b"Adobe") and len(content) >= 12:
            adobe = content[11]
        elif kind in _METADATA:
            continue
        elif kind not in _TABLES and kind != _SOS:
            return None
        parts.append(segment)
        if kind == _SOS:
            ycbcr = adobe == _ADOBE_YCBCR or (adobe < 0 and (jfif or components == b"\1\2\3"))
            plain = len(components) == 1 or (len(components) == 3 and ycbcr)
            return _joined(parts, data, at, frame) if plain else None
    return None


def _joined(parts: list[bytes], data: bytes, at: int, frame: int | None) -> bytes | None:
    """The parts and the coded data that begins at `at`."""
    if frame == _PROGRESSIVE:
        # Several scans with tables between them. Without its end the file is cut off, which a GPU decodes to half-grey.
        end = data.rfind(bytes([0xFF, _EOI]), at)
        return b"".join([*parts, data[at : end + 2]]) if end >= 0 else None
    # One scan to the end. A marker in its midst is damage: libjpeg, as DALI drives it, fills the rest with grey.
    marker = _first_marker(data, at)
    if frame is None or marker is None or data[marker + 1] != _EOI:
        return None
    return b"".join([*parts, data[at : marker + 2]])


def _first_marker(data: bytes, at: int) -> int | None:
    """Where coded data that begins at `at` ends: FF 00 in it is a coded FF, FF D0-D7 restart the decoder."""
    coded = np.frombuffer(data, np.uint8, offset=at)
    # A regular expression takes ten times as long, and lets no other thread run meanwhile.
    after = coded[1:]
    markers = (coded[:-1] == 0xFF) & (after != 0) & (after != 0xFF)
    place = int(markers.argmax()) if markers.size else 0
    if markers.size and 0xD0 <= after[place] <= 0xD7:
        markers &= (after < 0xD0) | (after > 0xD7)
        place = int(markers.argmax())
    return at + place if markers.size and markers[place] else None


def _exif(orientation: int) -> bytes:
    """An APP1 segment that holds nothing else."""
    entry = b"\x01\x12\0\x03\0\0\0\x01" + orientation.to_bytes(2, "big") + b"\0\0"
    block = b"Exif\0\0MM\0*\0\0\0\x08\0\x01" + entry + b"\0\0\0\0"
    return bytes([0xFF, _APP1]) + (len(block) + 2).to_bytes(2, "big") + block
