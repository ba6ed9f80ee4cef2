"""Bounds how many pixels of pictures are under way at once: decoded, a picture takes many times its file."""

from __future__ import annotations

import asyncio
import struct
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from agents.inference.quarantine import Seer
from agents.inference.results import ImageInference

#: Pixels of a file whose header says nothing: the decoder refuses it, or finds the size in a place where few look.
UNKNOWN_PIXELS = 4_000_000
#: JPEG markers that start a frame; the others of their range are tables.
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
#: Markers without a length.
_BARE = frozenset({0x01, *range(0xD0, 0xD9)})
#: Segments before the frame of an honest file are few.
_MOST_SEGMENTS = 1000


class Budget:
    """Lets work in while the sum of its weights is within a limit; who is heavier than the limit goes in alone.

    First come, first served: a heavy one is not overtaken for ever.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()
        self.used = 0

    @asynccontextmanager
    async def taking(self, weight: int) -> AsyncIterator[None]:
        """Hold `weight` of the budget; waits for it."""
        if self._waiting or not self._fits(weight):
            turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiting.append((weight, turn))
            try:
                await turn
            except asyncio.CancelledError:
                if turn.done() and not turn.cancelled():
                    self._give_back(weight)
                raise
        else:
            self.used += weight
        try:
            yield
        finally:
            self._give_back(weight)

    def _fits(self, weight: int) -> bool:
        return not self.used or self.used + weight <= self._limit

    def _give_back(self, weight: int) -> None:
        self.used -= weight
        while self._waiting:
            wanted, turn = self._waiting[0]
            if turn.cancelled():
                self._waiting.popleft()
                continue
            if not self._fits(wanted):
                return
            self._waiting.popleft()
            self.used += wanted
            turn.set_result(None)


class PixelBound:
    """Asks somebody who sees pictures, for as many at once as their pixels allow."""

    def __init__(self, seer: Seer, megapixels: float) -> None:
        self._seer = seer
        self._budget = Budget(round(megapixels * 1e6))

    async def infer_image(self, data: bytes, timeout: float) -> ImageInference:
        """As the one who is asked; the timeout counts from when there is room."""
        async with self._budget.taking(picture_pixels(data)):
            return await self._seer.infer_image(data, timeout)


def picture_pixels(data: bytes) -> int:
    """Width times height as the header of a JPEG, PNG, WebP or GIF says; `UNKNOWN_PIXELS` where it says nothing.

    Only as honest as the header: what a decoder makes of it is bounded by its own limit.
    """
    try:
        size = _size(data)
    except (struct.error, IndexError):
        size = None
    return size[0] * size[1] if size and size[0] and size[1] else UNKNOWN_PIXELS


def _size(data: bytes) -> tuple[int, int] | None:
    if data.startswith(b"\xff\xd8"):
        return _jpeg_size(data)
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        width, height = struct.unpack_from(">II", data, 16)
        return width, height
    if data.startswith((b"GIF87a", b"GIF89a")):
        width, height = struct.unpack_from("<HH", data, 6)
        return width, height
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return _webp_size(data)
    return None


def _jpeg_size(data: bytes) -> tuple[int, int] | None:
    place = 2
    for _ in range(_MOST_SEGMENTS):
        while data[place] == 0xFF and data[place + 1] == 0xFF:
            place += 1
        if data[place] != 0xFF:
            return None
        marker = data[place + 1]
        if marker in _BARE:
            place += 2
            continue
        if marker in _FRAMES:
            height, width = struct.unpack_from(">HH", data, place + 5)
            return width, height
        place += 2 + struct.unpack_from(">H", data, place + 2)[0]
    return None


def _webp_size(data: bytes) -> tuple[int, int] | None:
    kind = data[12:16]
    if kind == b"VP8X":
        return 1 + int.from_bytes(data[24:27], "little"), 1 + int.from_bytes(data[27:30], "little")
    if kind == b"VP8L":
        bits = struct.unpack_from("<I", data, 21)[0]
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    if kind == b"VP8 ":
        width, height = struct.unpack_from("<HH", data, 26)
        return width & 0x3FFF, height & 0x3FFF
    return None
