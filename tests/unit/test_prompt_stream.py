"""The prompt stream: nothing is lost between its thread and the loop, and only what was acknowledged is committed."""

from __future__ import annotations

import asyncio
import queue
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from confluent_kafka import KafkaException, TopicPartition

from agents.delivery import prompt
from agents.delivery.prompt import PromptStream
from agents.delivery.records import Record
from agents.delivery.window import Slot
from agents.settings import AgentSettings


class FakeConsumer:
    """Of one topic; what it is asked for is checked to come from one thread, as librdkafka's locks demand."""

    def __init__(self, config: dict[str, Any]) -> None:
        self.config = config
        self.coming: queue.Queue[Any] = queue.Queue()
        self.stored: list[tuple[int, int]] = []
        self.polled = 0
        self.closed = False
        self.moved = False

    def subscribe(self, topics: list[str]) -> None:
        assert topics == ["search.requests"]

    def poll(self, seconds: float) -> Any:
        self.polled += 1
        try:
            one = self.coming.get(timeout=min(seconds, 0.01))
        except queue.Empty:
            return None
        if isinstance(one, Exception):
            raise one
        return one

    def consume(self, most: int, seconds: float) -> list[Any]:
        assert seconds == 0, "who waits for a full batch holds back the first record of it"
        found: list[Any] = []
        while len(found) < most and not self.coming.empty():
            found.append(self.coming.get())
        return found

    def store_offsets(self, offsets: list[TopicPartition]) -> None:
        if self.moved:
            raise KafkaException(SimpleNamespace(str=lambda: "not assigned"))
        self.stored += [(one.partition, one.offset) for one in offsets]

    def close(self) -> None:
        self.closed = True


class Message:
    def __init__(self, offset: int, partition: int = 0, error: Any = None) -> None:
        self._facts = {"offset": offset, "partition": partition, "error": error}

    def __getattr__(self, name: str) -> Any:
        facts = {"topic": "search.requests", "key": None, "value": b"value", "headers": [("a", b"b"), ("none", None)]}
        return lambda: (facts | {"timestamp": (1, 1_700_000_000_123)} | self._facts)[name]


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[FakeConsumer]]:
    consumers: list[FakeConsumer] = []

    def make(config: dict[str, Any]) -> FakeConsumer:
        consumers.append(FakeConsumer(config))
        return consumers[-1]

    monkeypatch.setattr(prompt, "Consumer", make)
    yield consumers
    assert all(consumer.closed for consumer in consumers)


def stream() -> PromptStream:
    return PromptStream(AgentSettings.load(), "search.requests", "group")


async def take(events: Any, count: int) -> list[Any]:
    return [await asyncio.wait_for(anext(events), 5) for _ in range(count)]


async def until(condition: Any) -> None:
    async def wait() -> None:
        while not condition():
            await asyncio.sleep(0.001)

    await asyncio.wait_for(wait(), 5)


async def test_records_come_whole_and_in_order(made: list[FakeConsumer]) -> None:
    async with stream() as reading:
        for offset in range(1000):
            made[0].coming.put(Message(offset))
        found = await take(reading.events(), 1000)
    assert [event.message.offset for event in found] == list(range(1000))
    record = Slot(found[7]).record
    assert record == Record(
        topic="search.requests",
        partition=0,
        offset=7,
        timestamp_ms=1_700_000_000_123,
        key=None,
        value=b"value",
        headers=[("a", b"b"), ("none", b"")],
    )


async def test_only_what_is_acknowledged_is_stored(made: list[FakeConsumer]) -> None:
    async with stream() as reading:
        for partition in (0, 1):
            for offset in range(3):
                made[0].coming.put(Message(offset, partition))
        found = await take(reading.events(), 6)
        await reading.ack(found[0])
        await reading.ack(found[1])
        await until(lambda: (0, 2) in made[0].stored)
        assert {partition for partition, _ in made[0].stored} == {0}


async def test_what_was_acknowledged_last_is_stored_before_the_end(made: list[FakeConsumer]) -> None:
    async with stream() as reading:
        made[0].coming.put(Message(41))
        (event,) = await take(reading.events(), 1)
        # The thread has the next one, and waits until somebody takes it.
        made[0].coming.put(Message(42))
        await until(made[0].coming.empty)
        await reading.ack(event)
    assert made[0].stored[-1] == (0, 42)


async def test_an_acknowledgement_of_a_partition_that_has_moved_on_harms_nobody(made: list[FakeConsumer]) -> None:
    async with stream() as reading:
        events = reading.events()
        made[0].coming.put(Message(1))
        (event,) = await take(events, 1)
        made[0].moved = True
        await reading.ack(event)
        await until(lambda: not reading._acked)
        made[0].coming.put(Message(2))
        assert (await take(events, 1))[0].message.offset == 2


async def test_nothing_is_read_ahead_while_nobody_takes(made: list[FakeConsumer]) -> None:
    async with stream() as reading:
        events = reading.events()
        made[0].coming.put(Message(0))
        await take(events, 1)
        for offset in range(1, 2000):
            made[0].coming.put(Message(offset))
        await until(lambda: made[0].coming.qsize() < 1999)
        polled = made[0].polled
        await asyncio.sleep(0.05)
        assert made[0].polled == polled, "the thread waits"
        assert made[0].coming.qsize() >= 1999 - 2 * prompt._AT_ONCE
        assert [event.message.offset for event in await take(events, 1999)] == list(range(1, 2000))


async def test_an_error_of_the_broker_is_no_record(made: list[FakeConsumer]) -> None:
    async with stream() as reading:
        made[0].coming.put(Message(0, error=SimpleNamespace(str=lambda: "gone")))
        made[0].coming.put(Message(1))
        assert (await take(reading.events(), 1))[0].message.offset == 1


async def test_a_thread_that_fails_ends_the_worker(made: list[FakeConsumer]) -> None:
    async with stream() as reading:
        made[0].coming.put(RuntimeError("consumer closed"))
        with pytest.raises(RuntimeError, match="consumer closed"):
            await take(reading.events(), 1)


async def test_the_group_commits_what_is_stored_and_nothing_else(made: list[FakeConsumer]) -> None:
    async with stream():
        pass
    config = made[0].config
    assert config["enable.auto.offset.store"] is False
    assert (config["group.id"], config["auto.offset.reset"]) == ("group", "earliest")
