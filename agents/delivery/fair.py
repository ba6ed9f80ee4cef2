"""Turns between callers: one that asks thousands of times at once waits for itself, and the others do not wait for it.

A caller may have so many requests waiting and no more; the rest is refused at once, so that the log behind a burst is
read on.
"""

from __future__ import annotations

import asyncio
import functools
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Protocol

from agents.delivery.records import Record
from agents.delivery.window import NoAckStream, Slot, Window, WindowLimits


class Job(Protocol):
    """What is to be done about one event. Neither way raises; both return when the effect is confirmed."""

    @property
    def caller(self) -> str | None:
        """Under which name it waits for its turn; None: it needs none, and is refused."""

    async def work(self, leave: Callable[[], None]) -> None:
        """At its turn. After `leave` it does nothing heavy any more, and the next one begins."""

    async def refuse(self) -> None:
        """In place of the work, without a turn."""


@dataclass(frozen=True)
class WaitingLimits:
    """What one caller may have waiting; one event always."""

    events: int
    bytes: int


@dataclass(frozen=True)
class _Place:
    """An admitted event and its job."""

    slot: Slot
    job: Job


@dataclass
class _Caller:
    """Whose jobs wait, the oldest first."""

    places: deque[_Place] = field(default_factory=deque)
    bytes: int = 0


class Turns:
    """Jobs that wait, by caller: each caller that has any gets its turn before one gets a second."""

    def __init__(self, limits: WaitingLimits) -> None:
        self._limits = limits
        #: In the order of their turns. Only who waits is here: names that come once leave nothing behind.
        self._callers: OrderedDict[str, _Caller] = OrderedDict()
        self.waiting = 0

    @property
    def callers(self) -> int:
        """How many have something waiting."""
        return len(self._callers)

    def put(self, name: str, place: _Place) -> bool:
        """Let a job wait for a turn of its caller; False, and nothing done, if the caller has too much waiting."""
        caller = self._callers.get(name)
        if caller is None:
            caller = self._callers[name] = _Caller()
        elif len(caller.places) >= self._limits.events or caller.bytes + place.slot.size > self._limits.bytes:
            return False
        caller.places.append(place)
        caller.bytes += place.slot.size
        self.waiting += 1
        return True

    def next(self) -> _Place | None:
        """Whose turn it is."""
        if not self._callers:
            return None
        name, caller = self._callers.popitem(last=False)
        place = caller.places.popleft()
        caller.bytes -= place.slot.size
        self.waiting -= 1
        if caller.places:
            self._callers[name] = caller
        return place


async def drain_in_turns(
    stream: NoAckStream, job_of: Callable[[Record], Job], limits: WindowLimits, turns: Turns
) -> None:
    """As `drain`, for jobs that take turns between callers; `limits.concurrency` of them work at once."""
    window = Window(limits, stream.ack)
    tasks: set[asyncio.Task[None]] = set()
    free = limits.concurrency

    def start(work: Callable[[], Awaitable[None]], slot: Slot) -> None:
        task = asyncio.create_task(window.conclude(work, [slot]))
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    def take_turns() -> None:
        nonlocal free
        while free and (place := turns.next()) is not None:
            free -= 1
            start(functools.partial(in_turn, place.job), place.slot)

    async def in_turn(job: Job) -> None:
        here = True

        def leave() -> None:
            nonlocal free, here
            if here:
                here = False
                free += 1
                take_turns()

        await job.work(leave)
        leave()

    try:
        async for event in stream.events():
            slot = await window.admit(event)
            job = job_of(slot.record)
            if job.caller is not None and turns.put(job.caller, _Place(slot, job)):
                take_turns()
            else:
                start(job.refuse, slot)
    finally:
        window.closing = True
        for task in tasks:
            task.cancel()
