"""The least that request and reply over topics can cost: a process that sends a reply for each record, and who asks it.

`python -m load_tests.bare_echo BROKER REQUESTS BYTES` answers each request with so many bytes; ends on SIGTERM.
"""

from __future__ import annotations

import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from confluent_kafka import Consumer, Producer, TopicPartition
from confluent_kafka.cimpl import NewTopic

from sightlog.events import consumed_headers
from sightlog.reply_address import CORRELATION_ID, ReplyAddress
from stack.kafka import admin_client

_SECONDS = 10.0


def _consumer(bootstrap: str, topic: str) -> Consumer:
    """Reads partition 0 of a new topic."""
    consumer = Consumer(
        {
            "bootstrap.servers": bootstrap,
            "group.id": uuid.uuid4().hex,
            "enable.auto.commit": False,
            "fetch.min.bytes": 1,
            "socket.nagle.disable": True,
        }
    )
    consumer.assign([TopicPartition(topic, 0, 0)])
    return consumer


def _producer(bootstrap: str) -> Producer:
    settings = {"bootstrap.servers": bootstrap, "enable.idempotence": True, "linger.ms": 0}
    return Producer({**settings, "socket.nagle.disable": True})


def echo(bootstrap: str, topic: str, size: int) -> None:
    """Answer until the process is ended."""
    consumer, producer, value = _consumer(bootstrap, topic), _producer(bootstrap), b"x" * size
    while True:
        message = consumer.poll(1.0)
        if message is None or message.error() is not None:
            continue
        headers: Any = message.headers()  # pairs, typed more loosely there
        address = ReplyAddress.from_headers(consumed_headers(headers))
        producer.produce(
            address.topic, value, partition=address.partition or 0, headers=[(CORRELATION_ID, address.correlation_id)]
        )
        producer.poll(0)


class Floor:
    """Asks the bare echo."""

    def __init__(self, bootstrap: str, requests: str, replies: str) -> None:
        self._requests, self._replies = requests, replies
        self._producer, self._consumer = _producer(bootstrap), _consumer(bootstrap, replies)

    def ask(self, value: bytes) -> float:
        """Seconds until the reply is here."""
        correlation_id = uuid.uuid4().bytes
        address = ReplyAddress(self._replies, 0, correlation_id, None)
        started = time.perf_counter()
        self._producer.produce(self._requests, value, headers=address.to_headers())
        self._producer.poll(0)
        while (elapsed := time.perf_counter() - started) < _SECONDS:
            message = self._consumer.poll(1.0)
            if message is None or message.error() is not None:
                continue
            if dict(message.headers() or []).get(CORRELATION_ID) == correlation_id:
                return time.perf_counter() - started
        raise RuntimeError(f"the bare echo did not answer within {elapsed:.0f} s")

    def close(self) -> None:
        """Leave the broker."""
        self._producer.flush(_SECONDS)
        self._consumer.close()


@contextmanager
def floor(bootstrap: str, size: int) -> Iterator[Floor]:
    """An echo of its own on topics of its own; `size`: bytes of a reply."""
    tag = uuid.uuid4().hex[:8]
    topics = [f"bench.echo.{tag}.requests", f"bench.echo.{tag}.replies"]
    admin = admin_client(bootstrap)
    for created in admin.create_topics([NewTopic(topic, 1, 1) for topic in topics]).values():
        created.result(_SECONDS)
    process = subprocess.Popen([sys.executable, "-m", "load_tests.bare_echo", bootstrap, topics[0], str(size)])
    asking = Floor(bootstrap, *topics)
    try:
        yield asking
    finally:
        asking.close()
        process.terminate()
        process.wait()
        for deleted in admin.delete_topics(topics).values():
            deleted.result(_SECONDS)


if __name__ == "__main__":
    echo(sys.argv[1], sys.argv[2], int(sys.argv[3]))
