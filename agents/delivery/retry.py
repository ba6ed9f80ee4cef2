"""Holds work until what it depends on answers again: exponential back-off, and a circuit breaker for each dependency.

While a dependency is down, all work that needs it waits and one piece at a time tries, in turns: a server that comes
back is not hammered by everything that waits for it, and one piece that always fails does not keep the others waiting.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar
from weakref import WeakKeyDictionary

from agents.delivery.failures import DependencyDown, ItemBroken, NotYet

log = logging.getLogger(__name__)

Result = TypeVar("Result")

#: Failures in a row, without a success of anybody in between, that mean the dependency and not the work.
_TRIP = 3


@dataclass(frozen=True)
class Backoff:
    """Exponential back-off with jitter, in seconds."""

    first: float = 0.1
    limit: float = 5.0

    def pause(self, attempt: int) -> float:
        """How long to wait after failed attempt number `attempt`, counted from 0."""
        return random.uniform(0.5, 1.0) * min(self.limit, self.first * 2.0 ** min(attempt, 30))


class Breaker:
    """What all work of one event loop knows about one dependency."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._failures = 0
        #: Attempts since it is open: what fails at the same moment is one failure, and no reason to wait longer.
        self._probes = 0
        self._since = 0.0
        #: First come, first served: whoever failed queues behind the others.
        self._turn = asyncio.Lock()

    @property
    def open(self) -> bool:
        """The dependency counts as down."""
        return self._failures >= _TRIP

    async def run(self, work: Callable[[], Awaitable[Result]], backoff: Backoff) -> Result:
        """Repeat `work` while it raises DependencyDown; every other outcome is the caller's."""
        attempt = 0
        while True:
            try:
                if not self.open:
                    return await self._attempt(work)
                async with self._turn:
                    if self.open:
                        self._probes += 1
                        await asyncio.sleep(backoff.pause(self._probes - 1))
                        return await self._attempt(work)
            except DependencyDown:
                if not self.open:
                    await asyncio.sleep(backoff.pause(attempt))
                attempt += 1

    async def _attempt(self, work: Callable[[], Awaitable[Result]]) -> Result:
        try:
            result = await work()
        except DependencyDown as down:
            if self._failures == 0:
                self._since = time.monotonic()
                log.warning("%s: holding, because %s", self._what, down)
            self._failures += 1
            raise
        except (ItemBroken, NotYet):
            self._answered()
            raise
        self._answered()
        return result

    def _answered(self) -> None:
        if self._failures:
            log.warning("%s: goes on after %.1f s", self._what, time.monotonic() - self._since)
            self._failures = self._probes = 0


#: By event loop, since the waiting is bound to one.
_breakers: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[str, Breaker]] = WeakKeyDictionary()


async def until_up(what: str, work: Callable[[], Awaitable[Result]], backoff: Backoff) -> Result:
    """Repeat `work` while it raises DependencyDown; every other outcome is the caller's.

    `what` names the dependency: all work under one name waits together.
    """
    of_loop = _breakers.setdefault(asyncio.get_running_loop(), {})
    breaker = of_loop.get(what) or of_loop.setdefault(what, Breaker(what))
    return await breaker.run(work, backoff)
