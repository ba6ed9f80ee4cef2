"""The retry worker: holds what is not there yet until its delay is over, then sends it through the front door again.

A plain consumer and no Faust app: Faust moves the records of all topics through one loop, so that a tier which waits
for minutes would stop the others. Here a partition whose next record is not due is paused, and nothing of it is held in
memory: its position is the memory. An offset is committed only after the record is in its topic again, so a kill at any
moment loses nothing; at worst a record comes back twice, with the version of its origin both times.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, cast

from confluent_kafka import Consumer, KafkaException, Message, TopicPartition

from agents.app import new_outbox
from agents.delivery.failures import ItemBroken
from agents.delivery.members import member_settings
from agents.delivery.outbox import Outbox
from agents.delivery.records import Record
from agents.settings import AgentSettings
from agents.stopping import until_told_to_stop
from sightlog.events import consumed_headers
from sightlog.history import History

log = logging.getLogger(__name__)

#: Records published at once; they are as large as a record may be, at worst.
_AT_ONCE = 16
#: Seconds after which a stop is noticed.
_POLL_SECONDS = 0.2

#: As confluent-kafka gives them, typed more loosely there.
_Headers = list[tuple[str, "bytes | None"]]
#: Topic and partition.
_Place = tuple[str, int]


async def run_retry(settings: AgentSettings) -> None:
    """Run the retry worker until SIGTERM or SIGINT."""
    consumer = Consumer(consumer_settings(settings))
    try:
        async with new_outbox("retry", settings, linger_ms=5) as outbox:
            delays = settings.topics.retry_delays
            # Whatever is being published stays un-acknowledged and is published again.
            await until_told_to_stop(RetryWorker(consumer, outbox, settings.topics.images, delays).serve())
    finally:
        await asyncio.to_thread(consumer.close)


def consumer_settings(settings: AgentSettings) -> dict[str, Any]:
    """Of librdkafka: tiers may be made after this process started."""
    return {
        **member_settings(settings, "sightlog-retry"),
        "topic.metadata.refresh.interval.ms": 10_000,
        # What librdkafka reads ahead, of each partition.
        "queued.max.messages.kbytes": 4096,
    }


class RetryWorker:
    """Moves records from the tiers in `delays` (topic: seconds) to `target`."""

    def __init__(self, consumer: Consumer, outbox: Outbox, target: str, delays: Mapping[str, float]) -> None:
        self._consumer = consumer
        self._outbox = outbox
        self._target = target
        self._delays = delays
        #: When a paused partition's next record is due, in seconds since the epoch.
        self._due: dict[_Place, float] = {}
        #: Seconds that the broker's clock is ahead of this one, as far as records of the future tell.
        self._ahead = 0.0

    async def serve(self) -> None:
        """Move records for ever."""
        self._consumer.subscribe(list(self._delays), on_assign=self._forget, on_revoke=self._forget)
        while True:
            await self.step()

    async def step(self) -> None:
        """Read what there is, publish what is due, and pause the partitions of the rest."""
        self._resume()
        now = time.time()
        wait = min((_POLL_SECONDS, *(max(0.0, due - now) for due in self._due.values())))
        read = await asyncio.to_thread(self._consumer.consume, _AT_ONCE, wait)
        due = self._split([message for message in read if message.error() is None])
        await asyncio.gather(*(self._return(_record(message)) for message in due))
        self._done(due)

    def _split(self, messages: Iterable[Message]) -> list[Message]:
        """Those that are due; of each other partition, the first that is not is where it goes on later."""
        due, now = [], time.time()
        for message in messages:
            place = _place(message)
            if place in self._due:
                continue  # behind one that waits: read again after it
            written = message.timestamp()[1] / 1000
            self._ahead = max(self._ahead, written - now)
            at = written - self._ahead + self._delays[place[0]]
            if at <= now:
                due.append(message)
                continue
            self._due[place] = at
            here = TopicPartition(*place, _offset(message))
            self._consumer.pause([here])
            self._consumer.seek(here)
        return due

    def _resume(self) -> None:
        now = time.time()
        for place in [place for place, at in self._due.items() if at <= now]:
            del self._due[place]
            self._consumer.resume([TopicPartition(*place)])

    async def _return(self, record: Record) -> None:
        try:
            await self._outbox.publish(self._target, record.value, key=record.key, headers=[*record.headers])
        except ItemBroken as cause:
            await self._outbox.bury(_returned(record), cause)

    def _done(self, messages: Iterable[Message]) -> None:
        ends = {_place(message): _offset(message) + 1 for message in messages}
        try:
            self._consumer.store_offsets(offsets=[TopicPartition(*place, end) for place, end in ends.items()])
        except KafkaException as error:
            # Another worker has the partition now, and reads them again.
            log.info("not acknowledged: %s", error.args[0].str())

    def _forget(self, _consumer: Consumer, partitions: list[TopicPartition]) -> None:
        for one in partitions:
            self._due.pop((one.topic, one.partition), None)


def _place(message: Message) -> _Place:
    topic, partition = message.topic(), message.partition()
    assert topic is not None
    assert partition is not None
    return topic, partition


def _offset(message: Message) -> int:
    offset = message.offset()
    assert offset is not None
    return offset


def _record(message: Message) -> Record:
    topic, partition = _place(message)
    return Record(
        topic=topic,
        partition=partition,
        offset=_offset(message),
        timestamp_ms=message.timestamp()[1],
        key=message.key(),
        value=message.value(),
        headers=consumed_headers(cast("_Headers", message.headers())),
    )


def _returned(record: Record) -> Record:
    """The record as it was where it was first published; one of a stranger, who wrote into a tier, as it is."""
    history = History.from_headers(record.headers)
    if history is None:
        return record
    origin = history.origin
    return replace(
        record,
        topic=origin.topic,
        partition=origin.partition,
        offset=origin.offset,
        timestamp_ms=origin.timestamp_ms,
    )
