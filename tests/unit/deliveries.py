"""Records as a worker gets them, without a broker."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from types import SimpleNamespace
from typing import Any

from faust.types import TP

from agents.delivery.records import Record
from sightlog.events import OutgoingHeaders


def event(partition: int = 0, offset: int = 0, value: bytes | None = b"", topic: str = "images") -> Any:
    """What the window sees of a Faust event."""
    return SimpleNamespace(
        message=SimpleNamespace(
            tp=TP(topic, partition),
            topic=topic,
            partition=partition,
            offset=offset,
            timestamp=1_700_000_000.123,
            key=b"key",
            value=value,
            headers=[("name", b"content"), ("empty", None)],
        )
    )


class FakeStream:
    """Yields events, then those that `add` brings; as in Faust, an acknowledgement does not suspend."""

    def __init__(self, events: Iterable[Any]) -> None:
        self._events: asyncio.Queue[Any] = asyncio.Queue()
        self.add(*events)
        self.taken = 0
        self.acked: list[tuple[int, int]] = []

    async def events(self) -> AsyncIterator[Any]:
        while True:
            one = await self._events.get()
            self.taken += 1
            yield one

    def add(self, *events: Any) -> None:
        for one in events:
            self._events.put_nowait(one)

    async def ack(self, event: Any) -> bool:
        self.acked.append((event.message.partition, event.message.offset))
        return True

    def acked_of(self, partition: int) -> list[int]:
        return [offset for of, offset in self.acked if of == partition]


def record(value: bytes | None = b"", headers: Any = (), key: bytes | None = None, **facts: Any) -> Record:
    """A consumed record."""
    place: dict[str, Any] = {"topic": "images", "partition": 3, "offset": 41, "timestamp_ms": 1_700_000_000_123}
    return Record(key=key, value=value, headers=list(headers), **(place | facts))


class Sent(SimpleNamespace):
    topic: str
    value: bytes
    key: bytes | None
    headers: OutgoingHeaders
    partition: int | None


class FakeProducer:
    """Takes what is sent; `failures` are raised by the next calls, in order."""

    def __init__(self, *failures: Exception | None) -> None:
        self.sent: list[Sent] = []
        self.failures = list(failures)
        self.open = False

    async def __aenter__(self) -> FakeProducer:
        self.open = True
        return self

    async def __aexit__(self, *_details: object) -> None:
        self.open = False

    async def send(
        self,
        topic: str,
        value: bytes | None,
        *,
        key: bytes | None = None,
        headers: OutgoingHeaders | None = None,
        partition: int | None = None,
    ) -> None:
        await asyncio.sleep(0)
        if self.failures and (failure := self.failures.pop(0)) is not None:
            raise failure
        self.sent.append(Sent(topic=topic, value=value, key=key, headers=headers or [], partition=partition))

    def sent_to(self, topic: str) -> list[Sent]:
        return [one for one in self.sent if one.topic == topic]


async def spin(times: int = 20) -> None:
    """Let every task that can go on do so."""
    for _ in range(times):
        await asyncio.sleep(0)
