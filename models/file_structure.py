"""Bounds on the structure of an image file: files of a few hundred kilobytes can keep a decoder busy for minutes."""

from __future__ import annotations

import re
import struct

#: Each scan of a progressive JPEG goes over all its pixels: 500 over 50 million take half a minute. Cameras and web
#: encoders write 10, the most thorough optimisers some 20.
MAX_SCANS = 64
#: Header segments of a JPEG, and chunks of a PNG, which Pillow reads one by one in Python at 2-5 microseconds each.
#: A PNG of 32 MiB in the usual chunks of 8 KiB has 4,096.
MAX_SEGMENTS = 50_000

#: In coded data FF 00 is a coded FF, FF D0-D7 restart the decoder, and FF may be repeated before a marker.
_MARKER = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")
_SOS, _EOI = 0xDA, 0xD9


def excess(name: str, data: bytes) -> str | None:
    """What there is too much of in a file of format `name` (in Pillow's spelling), or None."""
    if name == "JPEG":
        return _jpeg_excess(data)
    if name == "PNG":
        return _png_excess(data)
    return None


def _jpeg_excess(data: bytes) -> str | None:
    # Markers can be no more than these. What a phone appends to its picture may hold as many by chance, so that they
    # are looked at one by one then.
    if data.count(b"\xff\xda") <= MAX_SCANS and data.count(b"\xff") <= MAX_SEGMENTS:
        return None
    scans = segments = 0
    at = 2
    while (marker := _MARKER.search(data, at)) is not None:
        kind, at = data[marker.end() - 1], marker.end()
        if kind == _EOI:
            break
        scans += kind == _SOS
        segments += 1
        if scans > MAX_SCANS:
            return f"more than {MAX_SCANS} scans"
        if segments > MAX_SEGMENTS:
            return f"more than {MAX_SEGMENTS} segments"
        at += int.from_bytes(data[at : at + 2], "big")
    return None


def _png_excess(data: bytes) -> str | None:
    at = 8
    # Almost every file is through after a few.
    for _ in range(MAX_SEGMENTS):
        if at + 12 > len(data):
            return None
        at += 12 + int(struct.unpack_from(">I", data, at)[0])
    return f"more than {MAX_SEGMENTS} chunks"
