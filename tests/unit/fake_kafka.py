"""A broker in memory, with just what the client uses of confluent-kafka: records, offsets, times, headers."""

from __future__ import annotations

import gc
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
from confluent_kafka import KafkaError, KafkaException, TopicPartition

PARTITIONS = {"images": 4, "images.indexed": 4, "images.dead": 1, "search.requests": 2, "search.replies": 16}


@dataclass(frozen=True)
class Record:
    """A record in the log; has the methods of confluent_kafka.Message."""

    at: TopicPartition
    payload: bytes | None
    name: bytes | None
    fields: list[tuple[str, bytes]]
    milliseconds: int
    failure: Any = None

    def topic(self) -> str:
        return str(self.at.topic)

    def partition(self) -> int:
        return int(self.at.partition)

    def offset(self) -> int:
        return int(self.at.offset)

    def value(self) -> bytes | None:
        return self.payload

    def key(self) -> bytes | None:
        return self.name

    def headers(self) -> list[tuple[str, bytes]] | None:
        return self.fields or None

    def timestamp(self) -> tuple[int, int]:
        return 2, self.milliseconds

    def error(self) -> Any:
        return self.failure


@dataclass
class FakeBroker:
    """`on`: topic -> what is called with every record that is written there, as an agent would be."""

    on: dict[str, Callable[[Record], None]] = field(default_factory=dict)
    log: dict[tuple[str, int], list[Record]] = field(default_factory=dict)
    down: bool = False
    changed: threading.Condition = field(default_factory=threading.Condition)

    def write(
        self,
        topic: str,
        value: bytes | None,
        key: str | bytes | None = None,
        headers: Any = (),
        partition: int = 0,
        milliseconds: int | None = None,
    ) -> Record:
        name = key.encode() if isinstance(key, str) else key
        with self.changed:
            records = self.log.setdefault((topic, partition), [])
            now = int(time.time() * 1000) if milliseconds is None else milliseconds
            record = Record(TopicPartition(topic, partition, len(records)), value, name, list(headers), now)
            records.append(record)
            self.changed.notify_all()
        if topic in self.on:
            self.on[topic](record)
        return record


BROKERS: dict[str, FakeBroker] = {}


class FakeProducer:
    made = 0
    freed = 0

    def __init__(self, config: dict[str, Any]) -> None:
        FakeProducer.made += 1
        self._broker = BROKERS[config["bootstrap.servers"]]
        self._reports: deque[Callable[[], None]] = deque()
        self._most = config["message.max.bytes"]
        self.full = False

    def __del__(self) -> None:
        FakeProducer.freed += 1

    def produce(
        self, topic: str, value: bytes, key: str | None = None, headers: Any = (), on_delivery: Any = None
    ) -> None:
        if self.full:
            raise BufferError("Local: Queue full")
        if len(value) > self._most:
            raise KafkaException(KafkaError(KafkaError.MSG_SIZE_TOO_LARGE))
        if self._broker.down:
            self._reports.append(lambda: None)
            return
        record = self._broker.write(topic, value, key, headers)
        if on_delivery is not None:
            self._reports.append(lambda: on_delivery(None, record))

    def poll(self, seconds: float = 0) -> int:
        served = 0
        while self._reports and not self._broker.down:
            self._reports.popleft()()
            served += 1
        if not served and seconds:
            time.sleep(min(seconds, 0.002))
        return served

    def flush(self, _seconds: float) -> int:
        self.poll(0)
        return len(self._reports)

    def __len__(self) -> int:
        return len(self._reports)


class FakeConsumer:
    made = 0
    alive = 0
    freed = 0

    def __init__(self, config: dict[str, Any]) -> None:
        FakeConsumer.made += 1
        FakeConsumer.alive += 1
        self._broker = BROKERS[config["bootstrap.servers"]]
        self._tells_end = config.get("enable.partition.eof", False)
        self._places: dict[tuple[str, int], int] = {}
        self._told: dict[tuple[str, int], int] = {}

    def __del__(self) -> None:
        FakeConsumer.freed += 1

    def list_topics(self, topic: str, timeout: float) -> Any:
        with self._broker.changed:
            if self._broker.down:
                raise KafkaException(KafkaError(KafkaError._ALL_BROKERS_DOWN))
        known = type("Topic", (), {"partitions": dict.fromkeys(range(PARTITIONS.get(topic, 0)))})()
        return type("Cluster", (), {"topics": {topic: known}})()

    def get_watermark_offsets(self, place: TopicPartition, timeout: float) -> tuple[int, int]:
        return 0, len(self._broker.log.get((place.topic, place.partition), ()))

    def offsets_for_times(self, places: list[TopicPartition], timeout: float) -> list[TopicPartition]:
        found = []
        for place in places:
            records = self._broker.log.get((place.topic, place.partition), [])
            later = [record.offset() for record in records if record.milliseconds >= place.offset]
            found.append(TopicPartition(place.topic, place.partition, min(later, default=-1)))
        return found

    def assign(self, places: list[TopicPartition]) -> None:
        self._places = {(str(place.topic), int(place.partition)): int(place.offset) for place in places}
        self._told = {}

    def poll(self, seconds: float) -> Record | None:
        with self._broker.changed:
            found = self._next()
            if found is None:
                self._broker.changed.wait(min(seconds, 0.01))
                found = self._next()
            return found

    def _next(self) -> Record | None:
        # No order holds between partitions; this one is not what a reader may have hoped for.
        for (topic, partition), offset in reversed(self._places.items()):
            records = self._broker.log.get((topic, partition), [])
            if offset < len(records):
                self._places[topic, partition] = offset + 1
                return records[offset]
            if self._tells_end and self._told.get((topic, partition)) != offset:
                self._told[topic, partition] = offset
                end = KafkaError(KafkaError._PARTITION_EOF)
                return Record(TopicPartition(topic, partition, offset), None, None, [], 0, end)
        return None

    def close(self) -> None:
        FakeConsumer.alive -= 1


@pytest.fixture
def broker(monkeypatch: pytest.MonkeyPatch) -> FakeBroker:
    """The broker at `127.0.0.1:19092`, the default address, for all clients that are made in the test."""
    made = BROKERS["127.0.0.1:19092"] = FakeBroker()
    monkeypatch.setattr("sightlog.connection.Producer", FakeProducer)
    monkeypatch.setattr("sightlog.consuming.Consumer", FakeConsumer)
    gc.collect()
    FakeProducer.made = FakeConsumer.made = FakeConsumer.alive = FakeProducer.freed = FakeConsumer.freed = 0
    return made
