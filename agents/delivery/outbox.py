"""Where the results of an agent leave it: published records and dead letters, each confirmed by the broker."""

from __future__ import annotations

import logging
from types import TracebackType

from agents.delivery.failures import ItemBroken
from agents.delivery.producer import ConfirmedProducer
from agents.delivery.records import Record
from agents.delivery.retry import Backoff, until_up
from sightlog.dead_letters import DeadLetter, Origin, Stage
from sightlog.errors import ContractError
from sightlog.events import OutgoingHeaders
from sightlog.fields import now

log = logging.getLogger(__name__)

#: Bytes up to which a dead letter repeats headers and key. In base64, and with the value, they could make it larger
#: than any record may be, and an event without an end would stop its partition for ever.
_MAX_DEAD_HEADERS = 256 * 1024
_MAX_DEAD_KEY = 64 * 1024


class Outbox:
    """Publishes for one stage and waits out a broker that does not answer."""

    def __init__(
        self,
        stage: Stage,
        producer: ConfirmedProducer,
        *,
        dead_topic: str,
        dead_inline_limit: int,
        backoff: Backoff,
    ) -> None:
        self._stage: Stage = stage
        self._producer = producer
        self._dead_topic = dead_topic
        self._dead_inline_limit = dead_inline_limit
        self._backoff = backoff

    async def __aenter__(self) -> Outbox:
        await self._producer.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._producer.__aexit__(kind, error, trace)

    async def publish(
        self,
        topic: str,
        value: bytes,
        *,
        key: bytes | None = None,
        headers: OutgoingHeaders | None = None,
        partition: int | None = None,
    ) -> None:
        """Return when the broker has the record. Raises ItemBroken when it never will."""
        await until_up(
            self._stage,
            lambda: self._producer.send(topic, value, key=key, headers=headers, partition=partition),
            self._backoff,
        )

    async def bury(self, record: Record, cause: ItemBroken | ContractError, image_id: str | None = None) -> None:
        """Publish the dead letter of a record."""
        value = record.value or b""
        headers, key = record.headers, record.key
        if sum(len(name) + len(content) for name, content in headers) > _MAX_DEAD_HEADERS:
            headers = []
        if key is not None and len(key) > _MAX_DEAD_KEY:
            key = None
        letter = DeadLetter(
            code=cause.code,
            message=cause.message,
            stage=self._stage,
            origin=Origin(topic=record.topic, partition=record.partition, offset=record.offset, timestamp=record.time),
            failed_at=now(),
            image_id=image_id,
            key=key,
            headers=tuple(headers),
            value=value if len(value) <= self._dead_inline_limit else None,
            value_bytes=len(value),
        )
        log.info("dead letter: %s", cause)
        await self.publish(self._dead_topic, letter.to_kafka(), key=key)
