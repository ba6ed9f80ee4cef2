"""Records of a topic a moment after they are in the log, for an agent whose callers wait for each of them.

librdkafka's consumer and no Faust app: what Faust and aiokafka do in Python about a single record takes longer than
most of the rest of a request, and as much processor time as a third of a search.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import AsyncIterator
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from confluent_kafka import Consumer, KafkaException, Message, TopicPartition
from faust.types import TP

from agents.delivery.members import member_settings
from agents.settings import AgentSettings

log = logging.getLogger(__name__)

#: Records handed over at once; the thread waits until they are taken.
_AT_ONCE = 256
#: Seconds after which a stop is noticed.
_POLL_SECONDS = 0.2


@dataclass(frozen=True)
class _Record:
    """The part of a Faust message that the window reads."""

    tp: TP
    topic: str
    partition: int
    offset: int
    timestamp: float
    key: bytes | None
    value: bytes | None
    headers: Any


@dataclass(frozen=True)
class _Event:
    message: _Record


class PromptStream:
    """A topic as a member of a consumer group reads it, from where the group was; acknowledged by the window, in order.

    Use it as a context. When partitions move on, what was read of them is still worked on, and the next member reads it
    again from the last acknowledged record on.
    """

    def __init__(self, settings: AgentSettings, topic: str, group: str) -> None:
        self._topic = topic
        self._consumer = Consumer(consumer_settings(settings, group))
        self._stopped = threading.Event()
        #: Set while the thread may hand over more.
        self._taken = threading.Event()
        #: Where each partition is to be read on, as far as the consumer does not know it yet.
        self._acked: dict[TP, int] = {}
        self._handed: asyncio.Queue[list[Message] | BaseException] = asyncio.Queue()
        self._thread = threading.Thread(target=self._read, name=f"reads-{topic}", daemon=True)

    async def __aenter__(self) -> PromptStream:
        self._loop = asyncio.get_running_loop()
        self._consumer.subscribe([self._topic])
        self._thread.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopped.set()
        self._taken.set()
        await asyncio.to_thread(self._thread.join)
        self._store()
        # Commits what was acknowledged, and leaves the group.
        await asyncio.to_thread(self._consumer.close)

    async def events(self) -> AsyncIterator[Any]:
        """The records, one by one; nothing is read ahead of those that were handed over."""
        while True:
            self._taken.set()
            handed = await self._handed.get()
            if isinstance(handed, BaseException):
                raise handed
            for message in handed:
                yield _Event(_record(message))

    async def ack(self, event: Any) -> bool:
        """All up to this record need not be read again."""
        # Not told to the consumer from here: while the thread polls, whoever else calls it waits until it is done.
        self._acked[event.message.tp] = event.message.offset + 1
        return True

    def _store(self) -> None:
        while self._acked:
            tp, offset = self._acked.popitem()
            try:
                self._consumer.store_offsets(offsets=[TopicPartition(tp.topic, tp.partition, offset)])
            except KafkaException as error:
                # Another member has the partition now, and reads it again.
                log.info("not acknowledged: %s", error.args[0].str())

    def _read(self) -> None:
        try:
            self._read_on()
        except BaseException as error:
            self._loop.call_soon_threadsafe(self._handed.put_nowait, error)

    def _read_on(self) -> None:
        while not self._stopped.is_set():
            first = self._consumer.poll(_POLL_SECONDS)
            self._store()
            if first is None:
                continue
            messages = [one for one in (first, *self._consumer.consume(_AT_ONCE - 1, 0)) if not _is_error(one)]
            if not messages:
                continue
            self._taken.wait()
            self._taken.clear()
            if not self._stopped.is_set():
                self._loop.call_soon_threadsafe(self._handed.put_nowait, messages)


def consumer_settings(settings: AgentSettings, group: str) -> dict[str, Any]:
    """Of librdkafka: it fetches as soon as there is one record."""
    return {
        **member_settings(settings, group),
        "fetch.min.bytes": 1,
        "socket.nagle.disable": True,
        # What librdkafka reads ahead, of each partition.
        "queued.max.messages.kbytes": max(1, settings.fetch_bytes // 1024),
    }


def _is_error(message: Message) -> bool:
    error = message.error()
    if error is not None:
        log.warning("%s: %s", message.topic(), error.str())
    return error is not None


def _record(message: Message) -> _Record:
    topic, partition, offset = message.topic(), message.partition(), message.offset()
    assert topic is not None
    assert partition is not None
    assert offset is not None
    return _Record(
        TP(topic, partition),
        topic,
        partition,
        offset,
        message.timestamp()[1] / 1000,
        message.key(),
        message.value(),
        message.headers() or (),
    )
