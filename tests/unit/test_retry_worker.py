"""The retry worker keeps nothing in memory but places, and acknowledges nothing that is not in its topic again."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from typing import Any

import pytest

import agents.retry
from agents.delivery.failures import DependencyDown, ItemBroken
from agents.delivery.outbox import Outbox
from agents.delivery.retry import Backoff
from agents.retry import RetryWorker, consumer_settings
from agents.settings import AgentSettings
from sightlog.dead_letters import DeadLetter
from sightlog.history import History, Origin
from tests.unit.deliveries import FakeProducer, record

NOW = 1_760_000_000.0
DELAYS = {"tier.10s": 10.0, "tier.1m": 60.0}


class FakeMessage:
    def __init__(self, topic: str, offset: int, at: float, headers: Any = ()) -> None:
        self._of = topic, offset, at, list(headers)

    def topic(self) -> str:
        return self._of[0]

    def partition(self) -> int:
        return 0

    def offset(self) -> int:
        return self._of[1]

    def timestamp(self) -> tuple[int, int]:
        return 2, round(self._of[2] * 1000)

    def key(self) -> bytes:
        return b"key"

    def value(self) -> bytes:
        return b"%d" % self._of[1]

    def headers(self) -> Any:
        return self._of[3]

    def error(self) -> None:
        return None


class FakeConsumer:
    """A log of several topics; reads like librdkafka: nothing of what is paused, and from where it was sought to."""

    def __init__(self, *messages: FakeMessage) -> None:
        self.log: dict[str, list[FakeMessage]] = defaultdict(list)
        for message in messages:
            self.log[message.topic()].append(message)
        self.position: dict[str, int] = defaultdict(int)
        self.paused: set[str] = set()
        self.stored: dict[str, int] = {}

    def consume(self, count: int, timeout: float) -> list[FakeMessage]:
        assert timeout <= 0.2, "a stop has to be noticed"
        found: list[FakeMessage] = []
        for topic, messages in self.log.items():
            if topic not in self.paused:
                new = messages[self.position[topic] :][: count - len(found)]
                self.position[topic] += len(new)
                found += new
        return found

    def pause(self, places: Any) -> None:
        self.paused |= {place.topic for place in places}

    def resume(self, places: Any) -> None:
        self.paused -= {place.topic for place in places}

    def seek(self, place: Any) -> None:
        self.position[place.topic] = place.offset

    def store_offsets(self, offsets: Any) -> None:
        self.stored.update({place.topic: place.offset for place in offsets})


class Clock:
    def __init__(self) -> None:
        self.now = NOW

    def time(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(agents.retry, "time", made)
    return made


def worker(consumer: FakeConsumer, producer: FakeProducer) -> RetryWorker:
    outbox = Outbox(
        "retry",
        producer,  # type: ignore[arg-type]
        dead_topic="dead",
        dead_inline_limit=100,
        backoff=Backoff(first=1e-6, limit=1e-6),
    )
    return RetryWorker(consumer, outbox, "images", DELAYS)  # type: ignore[arg-type]


async def test_each_record_waits_since_it_was_written_and_no_tier_waits_for_another(clock: Clock) -> None:
    consumer = FakeConsumer(
        FakeMessage("tier.1m", 0, NOW - 1),
        FakeMessage("tier.1m", 1, NOW - 1),
        FakeMessage("tier.10s", 0, NOW - 11),
        FakeMessage("tier.10s", 1, NOW - 4),
        FakeMessage("tier.10s", 2, NOW - 4),
    )
    producer = FakeProducer()
    one = worker(consumer, producer)
    await one.step()
    assert [sent.value for sent in producer.sent] == [b"0"]
    assert consumer.stored == {"tier.10s": 1}
    assert consumer.paused == {"tier.1m", "tier.10s"}
    clock.now += 5
    await one.step()
    assert len(producer.sent) == 1
    clock.now += 1
    await one.step()
    assert [sent.value for sent in producer.sent] == [b"0", b"1", b"2"]
    assert consumer.stored == {"tier.10s": 3}
    clock.now += 60
    await one.step()
    assert consumer.stored == {"tier.10s": 3, "tier.1m": 2}
    assert {sent.topic for sent in producer.sent} == {"images"}


async def test_clock_that_is_behind_the_brokers_waits_no_longer_than_the_delay(clock: Clock) -> None:
    consumer, producer = FakeConsumer(FakeMessage("tier.10s", 0, NOW + 3600)), FakeProducer()
    one = worker(consumer, producer)
    await one.step()
    clock.now += 10
    await one.step()
    assert len(producer.sent) == 1


async def test_nothing_is_acknowledged_before_the_broker_has_it(clock: Clock) -> None:
    consumer = FakeConsumer(FakeMessage("tier.10s", 0, NOW - 60), FakeMessage("tier.10s", 1, NOW - 60))
    producer = FakeProducer(*[DependencyDown("no broker")] * 1_000_000)
    stepping = asyncio.create_task(worker(consumer, producer).step())
    await asyncio.sleep(0.05)
    stepping.cancel()
    await asyncio.wait([stepping])
    assert producer.sent == []
    assert consumer.stored == {}


async def test_record_that_no_longer_fits_is_a_dead_letter_of_its_origin(clock: Clock) -> None:
    first = record(b"value", timestamp_ms=round(NOW * 1000))
    history = History(origin=first.place, attempts=1, waits=1, first_failed_at=first.time)
    consumer = FakeConsumer(FakeMessage("tier.10s", 0, NOW - 60, [history.to_header()]))
    producer = FakeProducer(ItemBroken("record_too_large", "no"))
    await worker(consumer, producer).step()
    (sent,) = producer.sent
    letter = DeadLetter.from_kafka(sent.value)
    assert (sent.topic, letter.id, letter.attempts) == ("dead", "images/3/41", 2)
    assert consumer.stored == {"tier.10s": 1}


async def test_record_that_a_stranger_wrote_into_a_tier_goes_on_as_it_is(clock: Clock) -> None:
    consumer, producer = FakeConsumer(FakeMessage("tier.10s", 0, NOW - 60, [("odd", None)])), FakeProducer()
    await worker(consumer, producer).step()
    assert [(sent.topic, sent.headers) for sent in producer.sent] == [("images", [("odd", b"")])]


def test_partition_that_comes_back_is_read_at_once(clock: Clock) -> None:
    consumer = FakeConsumer(FakeMessage("tier.10s", 0, NOW))
    one = worker(consumer, FakeProducer())
    asyncio.run(one.step())
    assert one._due
    place = Origin(topic="tier.10s", partition=0, offset=0, timestamp=record().time)
    one._forget(consumer, [place])  # type: ignore[arg-type, list-item]
    assert not one._due


def test_what_was_only_read_is_never_committed() -> None:
    settings = consumer_settings(AgentSettings.load())
    assert settings["enable.auto.offset.store"] is False
    assert settings["max.poll.interval.ms"] == 86_400_000
