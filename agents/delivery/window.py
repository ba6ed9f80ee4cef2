"""A bounded window of un-acknowledged events: the reason why nothing is lost and memory stays flat.

Faust commits what was acknowledged, also when an earlier event of the partition is still being worked on, and
acknowledges whatever its iterator yielded when an agent raises. So here the stream acknowledges nothing by itself; an
event is acknowledged only when its effect is confirmed *and* all events before it in its partition are too. The window
counts events until they are acknowledged, not until they are worked on: this is the back-pressure, and it bounds what a
restart repeats.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import os
from collections import defaultdict, deque
from collections.abc import AsyncIterable, Awaitable, Callable
from dataclasses import dataclass
from typing import Protocol

from faust.types import TP, EventT

from agents.delivery.records import Record

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class WindowLimits:
    """How much may be under way at once."""

    unacked: int
    #: Inline images count in full, so that a window of large files does not fill the memory.
    unacked_bytes: int
    #: Batches worked on at the same time.
    concurrency: int
    batch: int = 1
    #: Seconds a batch waits for more events once it has one.
    linger: float = 0.0


class NoAckStream(Protocol):
    """The two verbs of a Faust stream, after `noack()`, that the window needs."""

    def events(self) -> AsyncIterable[EventT[bytes]]: ...

    async def ack(self, event: EventT[bytes]) -> bool: ...


class Slot:
    """An admitted event; `done` once its effect is confirmed."""

    __slots__ = ("done", "event", "record", "size")

    def __init__(self, event: EventT[bytes]) -> None:
        self.event = event
        self.record = Record.from_event(event)
        self.size = len(self.record.value or b"")
        self.done = False


class Window:
    """The un-acknowledged events of each partition, in log order."""

    def __init__(self, limits: WindowLimits, ack: Callable[[EventT[bytes]], Awaitable[object]]) -> None:
        self._limits = limits
        self._ack = ack
        self._partitions: defaultdict[TP, deque[Slot]] = defaultdict(deque)
        self._room = asyncio.Event()
        self._room.set()
        self.events = 0
        self.bytes = 0
        #: The stream has ended: work that is cancelled now was not cancelled by a bug.
        self.closing = False

    async def admit(self, event: EventT[bytes]) -> Slot:
        """Take an event in; waits while the window is full."""
        while self.events and (self.events >= self._limits.unacked or self.bytes >= self._limits.unacked_bytes):
            self._room.clear()
            await self._room.wait()
        slot = Slot(event)
        self.events += 1
        self.bytes += slot.size
        self._partitions[event.message.tp].append(slot)
        return slot

    async def settle(self, slots: list[Slot]) -> None:
        """Mark events as done and acknowledge the contiguous done head of their partitions."""
        for slot in slots:
            slot.done = True
        for tp in {slot.event.message.tp for slot in slots}:
            queue = self._partitions[tp]
            while queue and queue[0].done:
                slot = queue.popleft()
                await self._ack(slot.event)
                self.events -= 1
                self.bytes -= slot.size
                self._room.set()

    async def conclude(self, work: Callable[[], Awaitable[None]], slots: list[Slot]) -> None:
        """Settle events when `work` on them is done. What it raises is a bug, and the process ends at once: that is as
        safe as a SIGKILL, whereas a supervised restart of the agent would acknowledge what it was holding."""
        try:
            await work()
            await self.settle(slots)
        except BaseException as error:
            # Cancelled by itself and not by the end of the stream: a task that is gone would stall the partition.
            if self.closing and isinstance(error, asyncio.CancelledError):
                raise
            log.critical("a bug in the agent; the process ends, its events will be redelivered", exc_info=True)
            os._exit(70)


Work = Callable[[list[Record]], Awaitable[None]]


async def drain(stream: NoAckStream, work: Work, limits: WindowLimits) -> None:
    """Run `work` over the events of a stream, batch by batch, and acknowledge in order.

    `work` returns once the effects of its events are confirmed; it waits out failing dependencies itself and writes
    dead letters for broken items. It must not raise.
    """
    window = Window(limits, stream.ack)
    waiting: asyncio.Queue[Slot] = asyncio.Queue()

    async def worker() -> None:
        while True:
            batch = await _next_batch(waiting, limits)
            await window.conclude(functools.partial(work, [slot.record for slot in batch]), batch)

    workers = [asyncio.create_task(worker()) for _ in range(limits.concurrency)]
    try:
        async for event in stream.events():
            waiting.put_nowait(await window.admit(event))
    finally:
        window.closing = True
        for task in workers:
            task.cancel()


async def _next_batch(waiting: asyncio.Queue[Slot], limits: WindowLimits) -> list[Slot]:
    batch = [await waiting.get()]
    deadline = asyncio.get_running_loop().time() + limits.linger
    while len(batch) < limits.batch:
        if not waiting.empty():
            batch.append(waiting.get_nowait())
            continue
        left = deadline - asyncio.get_running_loop().time()
        if left <= 0:
            break
        try:
            batch.append(await asyncio.wait_for(waiting.get(), left))
        except asyncio.TimeoutError:
            break
    return batch
