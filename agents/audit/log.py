"""Reads the log from where it begins to where it ended when the audit began, without joining any group."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, cast

from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition

from sightlog.errors import SightlogError
from sightlog.settings import Topics

#: What one call takes out of the client's buffer, and how much that buffer holds.
_MESSAGES = 2_000
_BUFFER_KIB = 32_768
_TIMEOUT_S = 20.0
#: The client waits this long for so many messages, also at the end of a topic.
_SLICE_S = 0.1


class LogRecord(Protocol):
    """A consumed message without error: the client's own type allows None everywhere."""

    def topic(self) -> str: ...
    def partition(self) -> int: ...
    def offset(self) -> int: ...
    def timestamp(self) -> tuple[int, int]: ...
    def key(self) -> bytes | None: ...
    def value(self) -> bytes | None: ...
    def headers(self) -> list[tuple[str, bytes | None]] | None: ...


@dataclass(frozen=True)
class Span:
    """Offsets of one partition: from the first that is there, to the end; `committed` is where its group is."""

    start: int
    committed: int
    end: int


@dataclass(frozen=True)
class Snapshot:
    """Where the log ended, and where the groups were shortly before: topic to partition to span."""

    spans: Mapping[str, Mapping[int, Span]]

    def of(self, topic: str) -> Mapping[int, Span]:
        """The partitions of a topic; none when the topic does not exist."""
        return self.spans.get(topic, {})

    @property
    def lag(self) -> int:
        """Records that the groups have still to work on."""
        return sum(max(0, span.end - span.committed) for spans in self.spans.values() for span in spans.values())


class LogReader:
    """Reads topics of one cluster without joining any group. Raises SightlogError when Kafka does not answer."""

    def __init__(self, bootstrap: str, topics: Topics) -> None:
        self._bootstrap, self._topics = bootstrap, topics

    def snapshot(self, since_ms: int | None = None) -> Snapshot:
        """Take the groups' offsets first and the ends afterwards: what was committed has its effect before the ends.

        Events before `since_ms` are left out.
        """
        topics = self._topics
        read: dict[str, str | None] = {topics.images: "vision", topics.embedded: "indexer"}
        read |= dict.fromkeys(topics.retry_delays, "retry") | {topics.dead: None, topics.closed: None}
        with self._consumer() as consumer:
            known = {
                topic: sorted(about.partitions)
                for topic, about in consumer.list_topics(timeout=_TIMEOUT_S).topics.items()
            }
            if topics.images not in known:
                raise SightlogError(f"topic {topics.images} does not exist at {self._bootstrap}")
            parts = {t: [TopicPartition(t, number) for number in known[t]] for t in read if t in known}
            committed: dict[str, dict[int, int]] = {}
            for topic, group in read.items():
                if group is not None and topic in parts:
                    committed[topic] = self._committed(f"sightlog-{group}", parts[topic])
            spans: dict[str, dict[int, Span]] = {}
            for topic, partitions in parts.items():
                spans[topic] = {}
                for part in partitions:
                    start, end = consumer.get_watermark_offsets(part, timeout=_TIMEOUT_S)
                    if since_ms is not None and topic == topics.images:
                        start = self._offset_at(consumer, part, since_ms, end)
                    # A group that never committed begins at the start.
                    at = committed[topic][part.partition] if topic in committed else end
                    spans[topic][part.partition] = Span(start, max(at, start), end)
        return Snapshot(spans)

    def tail(self, snapshot: Snapshot) -> Mapping[int, Span]:
        """What was published on `images` since the snapshot."""
        with self._consumer() as consumer:
            spans = {}
            for partition, span in snapshot.of(self._topics.images).items():
                part = TopicPartition(self._topics.images, partition)
                end = consumer.get_watermark_offsets(part, timeout=_TIMEOUT_S)[1]
                spans[partition] = Span(span.end, span.end, end)
        return spans

    def records(self, spans: Mapping[str, Mapping[int, Span]]) -> Iterator[list[LogRecord]]:
        """The records of topics from `start` to `end`, in batches, those of a partition in order."""
        left = {(topic, p): span for topic, of in spans.items() for p, span in of.items() if span.start < span.end}
        if not left:
            return
        with self._consumer() as consumer:
            heard = time.monotonic()
            consumer.assign([TopicPartition(topic, p, span.start) for (topic, p), span in left.items()])
            while left:
                batch: list[Any] = consumer.consume(_MESSAGES, timeout=_SLICE_S)
                if not batch and time.monotonic() - heard > _TIMEOUT_S:
                    raise self._silent()
                heard = time.monotonic() if batch else heard
                taken = []
                ended = []
                for message in batch:
                    place = (message.topic(), message.partition())
                    span, offset = left.get(place), message.offset()
                    if message.error() is not None:
                        # The end of a partition that ends in a gap, as transactions leave one.
                        if message.error().code() != KafkaError._PARTITION_EOF:
                            raise SightlogError(f"{place[0]}: {message.error().str()}")
                        at_end = span is not None
                    else:
                        if span is not None and offset < span.end:
                            taken.append(message)
                        at_end = span is not None and offset + 1 >= span.end
                    if at_end:
                        del left[place]
                        ended.append(TopicPartition(*place))
                if ended:
                    consumer.incremental_unassign(ended)
                if taken:
                    yield taken

    def pick(self, topic: str, places: Iterable[tuple[int, int]]) -> Iterator[LogRecord | None]:
        """Single records, by partition and offset; None for one that has left the log."""
        with self._consumer() as consumer:
            for partition, offset in places:
                consumer.assign([TopicPartition(topic, partition, offset)])
                # An offset that is gone starts at the earliest record that is left.
                message = consumer.poll(_TIMEOUT_S)
                if message is None:
                    raise self._silent()
                found = message.error() is None and message.offset() == offset
                yield cast(LogRecord, message) if found else None

    @contextlib.contextmanager
    def _consumer(self, group: str = "sightlog-audit") -> Iterator[Consumer]:
        consumer = Consumer(
            {
                "bootstrap.servers": self._bootstrap,
                "group.id": group,
                "enable.auto.commit": False,
                "enable.auto.offset.store": False,
                "enable.partition.eof": True,
                "auto.offset.reset": "earliest",
                "queued.max.messages.kbytes": _BUFFER_KIB,
                "log_level": 0,
            }
        )
        try:
            yield consumer
        except KafkaException as error:
            raise SightlogError(f"no answer from Kafka at {self._bootstrap}: {error.args[0].str()}") from None
        finally:
            consumer.close()

    def _silent(self) -> SightlogError:
        return SightlogError(f"no answer from Kafka at {self._bootstrap} for {_TIMEOUT_S:.0f} s")

    def _committed(self, group: str, partitions: list[TopicPartition]) -> dict[int, int]:
        # Asks for the offsets of the group, without becoming a member of it.
        with self._consumer(group) as consumer:
            return {at.partition: at.offset for at in consumer.committed(partitions, timeout=_TIMEOUT_S)}

    @staticmethod
    def _offset_at(consumer: Consumer, part: TopicPartition, since_ms: int, end: int) -> int:
        found = consumer.offsets_for_times([TopicPartition(part.topic, part.partition, since_ms)], timeout=_TIMEOUT_S)
        return found[0].offset if found[0].offset >= 0 else end
