"""Consumers that are in no group: nothing is acknowledged, nobody else notices."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Iterator
from typing import Any

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, TopicPartition

from sightlog.errors import SightlogError

#: A consumer polls in slices of this length, so that close() is never far away.
_POLL_SECONDS = 0.1
_ANSWER_S = 10.0


def consumer_at_end(bootstrap: str, *topics: str) -> Consumer:
    """A consumer assigned to the present end of topics: it sees everything written after this call returns.

    Assigned with explicit offsets, not subscribed: no group, no rebalance, and no race with the first message.
    Raises SightlogError when the broker does not answer or a topic is missing.
    """
    consumer = new_consumer(bootstrap)
    assign_end(consumer, bootstrap, [TopicPartition(t, p) for t in topics for p in partitions(consumer, bootstrap, t)])
    return consumer


def new_consumer(bootstrap: str, **config: Any) -> Consumer:
    """A consumer that is assigned nothing yet; `config` is added to what librdkafka is told."""
    return Consumer(
        {
            "bootstrap.servers": bootstrap,
            "group.id": f"sightlog-client-{uuid.uuid4().hex}",
            "enable.auto.commit": False,
            # A reply is handed over when it is there, not when there are more.
            "fetch.min.bytes": 1,
            "socket.nagle.disable": True,
            "log_level": 0,
            **config,
        }
    )


def partitions(consumer: Consumer, bootstrap: str, topic: str) -> list[int]:
    """Numbers of a topic's partitions. Raises SightlogError."""
    try:
        found = list(consumer.list_topics(topic, timeout=_ANSWER_S).topics[topic].partitions)
    except KafkaException as error:
        raise unreachable(bootstrap, error) from None
    if not found:
        raise SightlogError(f"topic {topic} does not exist at {bootstrap}; sightlog up creates it")
    return found


def assign_end(consumer: Consumer, bootstrap: str, places: list[TopicPartition]) -> None:
    """Read on from where partitions end now. Raises SightlogError."""
    try:
        for place in places:
            place.offset = consumer.get_watermark_offsets(place, timeout=_ANSWER_S)[1]
        consumer.assign(places)
    except KafkaException as error:
        raise unreachable(bootstrap, error) from None


def assign_since(consumer: Consumer, bootstrap: str, places: list[TopicPartition], since_ms: int) -> None:
    """Read on from the first records of a time on, in milliseconds since the epoch. Raises SightlogError."""
    wanted = [TopicPartition(place.topic, place.partition, max(0, since_ms)) for place in places]
    try:
        places = consumer.offsets_for_times(wanted, timeout=_ANSWER_S)
        for place in places:
            if place.offset < 0:  # no record since then: what comes after this call
                place.offset = consumer.get_watermark_offsets(place, timeout=_ANSWER_S)[1]
        consumer.assign(places)
    except KafkaException as error:
        raise unreachable(bootstrap, error) from None


def unreachable(bootstrap: str, error: KafkaException) -> SightlogError:
    """What to raise when the broker does not answer."""
    return SightlogError(f"no answer from Kafka at {bootstrap}: {error.args[0].str()}; is the stack up (sightlog up)?")


def messages(consumer: Consumer, stopped: threading.Event) -> Iterator[Message]:
    """Messages of an assigned consumer until `stopped` is set; broker hiccups are waited out by librdkafka."""
    while not stopped.is_set():
        message = consumer.poll(_POLL_SECONDS)
        if message is not None and message.error() is None:
            yield message


def at_end(message: Message) -> bool:
    """Whether this is no record but the news that a partition has no more (`enable.partition.eof`)."""
    error = message.error()
    return error is not None and error.code() == KafkaError._PARTITION_EOF
