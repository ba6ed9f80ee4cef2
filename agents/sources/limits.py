"""Bounds on one read: bytes, counted while they come, and progress."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass

from agents.delivery.failures import ItemBroken, NotYet

#: A reference has up to 4096 characters; a message with it must stay readable.
_SHOWN = 200


@dataclass(frozen=True)
class ReadLimits:
    """How large a file may be, and how slow: at least `min_progress` bytes in every `stall` seconds."""

    max_bytes: int
    stall: float
    min_progress: int

    def check_size(self, size: int) -> None:
        """Raises ItemBroken `too_large`."""
        if size > self.max_bytes:
            raise ItemBroken("too_large", f"the file has more than {self.max_bytes} bytes")

    async def collect(self, chunks: AsyncIterator[bytes], place: str) -> bytes:
        """All chunks as one file; stops at the first that is one too many.

        Raises ItemBroken `too_large`, NotYet `source_timeout`.
        """
        received: list[bytes] = []
        size, since, before = 0, time.monotonic(), 0
        while True:
            try:
                chunk = await asyncio.wait_for(anext(chunks, None), self.stall)
            except asyncio.TimeoutError:
                raise NotYet("source_timeout", f"{place} stopped after {size} bytes") from None
            if chunk is None:
                return b"".join(received)
            size += len(chunk)
            self.check_size(size)
            received.append(chunk)
            if (seconds := time.monotonic() - since) >= self.stall:
                if size - before < self.min_progress:
                    raise NotYet("source_timeout", f"{place} sent {size - before} bytes in {seconds:.1f} s: too slow")
                since, before = time.monotonic(), size


def shown(uri: str) -> str:
    """The reference as messages carry it: cut, and without what follows a `?`, which may be a signature."""
    uri = uri.partition("?")[0]
    return uri if len(uri) <= _SHOWN else f"{uri[:_SHOWN]}..."
