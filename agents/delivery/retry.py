"""Holds one piece of work until what it depends on answers again."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

from agents.delivery.failures import DependencyDown

log = logging.getLogger(__name__)

Result = TypeVar("Result")


@dataclass(frozen=True)
class Backoff:
    """Exponential back-off with full jitter, in seconds."""

    first: float = 0.1
    limit: float = 5.0

    def pause(self, attempt: int) -> float:
        """How long to wait after failed attempt number `attempt`, counted from 0."""
        return random.uniform(0.5, 1.0) * min(self.limit, self.first * 2.0 ** min(attempt, 30))


async def until_up(what: str, work: Callable[[], Awaitable[Result]], backoff: Backoff) -> Result:
    """Repeat `work` while it raises DependencyDown; every other outcome is the caller's."""
    attempt = 0
    while True:
        try:
            result = await work()
        except DependencyDown as down:
            if attempt == 0:
                log.warning("%s: holding, because %s", what, down)
            await asyncio.sleep(backoff.pause(attempt))
            attempt += 1
        else:
            if attempt:
                log.warning("%s: went on after %d attempts", what, attempt + 1)
            return result
