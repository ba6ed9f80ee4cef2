"""How much is written to OpenSearch at once: less when it refuses, more again while it takes everything.

OpenSearch answers 429 when its queues are full or its breakers would trip. Additive increase and multiplicative
decrease find the rate that it can bear, as TCP does; events that wait for their turn fill the agent's window, which
stops the intake.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

log = logging.getLogger(__name__)

#: Of the limits, at least: so much is tried however often OpenSearch refuses.
_SMALLEST = 1 / 64
_STEP = 1 / 32


class Refused(Exception):
    """OpenSearch refused the bulk, or a part of it, because it has too much to do."""


@dataclass(frozen=True)
class BulkLimits:
    """The most that is written at once."""

    images: int = 64
    """In a bulk request."""
    bytes: int = 8 * 1024 * 1024
    """Of a bulk request. OpenSearch refuses more than 100 MB, and its breakers trip earlier."""
    bulks: int = 16
    """Requests at the same time."""


class BulkPace:
    """The limits, scaled by a share that follows the answers of OpenSearch."""

    def __init__(self, limits: BulkLimits) -> None:
        self._limits = limits
        self._share = 1.0
        #: How often the share was lowered: bulks that were sent before tell nothing about the present one.
        self._cuts = 0
        self._under_way = 0
        self._turn = asyncio.Condition()

    @property
    def share(self) -> float:
        """Of the limits, in use now; 1.0 while OpenSearch takes everything."""
        return self._share

    @property
    def images(self) -> int:
        """Images in a bulk request now."""
        return max(1, int(self._limits.images * self._share))

    @property
    def bytes(self) -> int:
        """Bytes of a bulk request now; one image may have more."""
        return max(1, int(self._limits.bytes * self._share))

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """Wait until one more bulk may be sent; the block raises Refused when OpenSearch did not take all of it."""
        async with self._turn:
            await self._turn.wait_for(lambda: self._under_way < max(1, int(self._limits.bulks * self._share)))
            self._under_way += 1
        cuts = self._cuts
        try:
            yield
        except Refused:
            if cuts == self._cuts:
                self._cuts += 1
                self._share = max(_SMALLEST, self._share / 2)
                log.warning("OpenSearch refuses bulks: going on with %d images in each", self.images)
            raise
        else:
            if cuts == self._cuts:
                self._share = min(1.0, self._share + _STEP)
        finally:
            async with self._turn:
                self._under_way -= 1
                self._turn.notify_all()
