"""Reads a topic from its beginning to where it ends now, or one record at its place."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterator
from typing import Any

from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaError, KafkaException, Message, TopicPartition

from sightlog.errors import SightlogError

#: Seconds without any record after which the broker counts as gone.
_PATIENCE = 30.0
_ANSWER_S = 10.0
#: Bytes read ahead, in all.
_READ_AHEAD_KB = 16 * 1024


class LogReader:
    """Reads the log without being in a group: nothing is acknowledged, nobody else notices."""

    def __init__(self, bootstrap: str) -> None:
        self._bootstrap = bootstrap
        self._consumer = Consumer(
            {
                "bootstrap.servers": bootstrap,
                "group.id": f"sightlog-reader-{uuid.uuid4().hex}",
                "enable.auto.commit": False,
                "enable.partition.eof": True,
                "queued.max.messages.kbytes": _READ_AHEAD_KB,
                "log_level": 0,
            }
        )

    def read(self, topic: str, told: Callable[[int, int], object] = lambda _done, _total: None) -> Iterator[Message]:
        """Yield what a topic holds now, partition by partition in order; `told` hears how far it is, of how many.

        Raises SightlogError when the topic is missing or the broker does not answer.
        """
        ends = self._ends(topic)
        total, done = sum(end - first for first, end in ends.values()), 0
        left = {partition for partition, (first, end) in ends.items() if end > first}
        self._assign([TopicPartition(topic, partition, OFFSET_BEGINNING) for partition in left])
        heard = time.monotonic()
        while left:
            for message in self._consumer.consume(200, 0.5):
                heard = time.monotonic()
                partition, offset = _place(message)
                error = message.error()
                if error is not None:
                    if error.code() == KafkaError._PARTITION_EOF:
                        left.discard(partition)
                    continue
                if offset >= ends[partition][1]:
                    left.discard(partition)
                    continue
                done += 1
                told(done, total)
                yield message
                if offset + 1 >= ends[partition][1]:
                    left.discard(partition)
            if time.monotonic() - heard > _PATIENCE:
                raise SightlogError(f"{topic}: nothing came from {self._bootstrap} for {_PATIENCE:g} s")
        self._consumer.unassign()

    def record(self, topic: str, partition: int, offset: int) -> Message | None:
        """The record at a place; None when it is not in the log any more. Raises SightlogError."""
        first, end = self._ends(topic).get(partition, (0, 0))
        if not first <= offset < end:
            return None
        self._assign([TopicPartition(topic, partition, offset)])
        began = time.monotonic()
        try:
            while time.monotonic() - began < _PATIENCE:
                message = self._consumer.poll(0.5)
                if message is None:
                    continue
                error = message.error()
                if error is not None and error.code() != KafkaError._PARTITION_EOF:
                    continue
                return message if error is None and _place(message) == (partition, offset) else None
        finally:
            self._consumer.unassign()
        raise SightlogError(f"{topic}: nothing came from {self._bootstrap} for {_PATIENCE:g} s")

    def close(self) -> None:
        self._consumer.close()

    def _ends(self, topic: str) -> dict[int, tuple[int, int]]:
        """First offset and end of each partition; a topic that has just been made has no leaders for a moment."""
        until = time.monotonic() + _ANSWER_S
        while True:
            try:
                known = self._consumer.list_topics(topic, timeout=_ANSWER_S).topics[topic].partitions
                if known:
                    places = [TopicPartition(topic, number) for number in known]
                    return {p.partition: self._consumer.get_watermark_offsets(p, timeout=_ANSWER_S) for p in places}
                problem = f"topic {topic} does not exist at {self._bootstrap}; sightlog up creates it"
            except KafkaException as error:
                reason = error.args[0].str()
                problem = f"no answer from Kafka at {self._bootstrap}: {reason}; is the stack up (sightlog up)?"
                if time.monotonic() < until:
                    time.sleep(0.2)
                    continue
            raise SightlogError(problem)

    def _assign(self, partitions: list[TopicPartition]) -> None:
        self._consumer.assign(partitions)


def _place(message: Message) -> tuple[int, int]:
    at: Any = message  # of a consumed message both are there
    return at.partition(), at.offset()
