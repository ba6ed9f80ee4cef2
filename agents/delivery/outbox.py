"""Where the results of an agent leave it: published records and dead letters, each confirmed by the broker."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from types import TracebackType

from agents.delivery.failures import DependencyDown, ItemBroken, NoSuchPlace, NotYet
from agents.delivery.producer import ConfirmedProducer
from agents.delivery.records import Record
from agents.delivery.retry import Backoff, until_up
from sightlog.dead_letters import DeadLetter
from sightlog.errors import ContractError
from sightlog.events import Headers, OutgoingHeaders
from sightlog.fields import now
from sightlog.history import History, Stage, failed_hop, without_history

log = logging.getLogger(__name__)

#: Bytes up to which a dead letter repeats headers and key. In base64, and with the value, they could make it larger
#: than any record may be, and an event without an end would stop its partition for ever.
_MAX_DEAD_HEADERS = 256 * 1024
_MAX_DEAD_KEY = 64 * 1024
_MAX_DATAREF = 4096


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
        retry_topics: Sequence[str] = (),
    ) -> None:
        self._stage: Stage = stage
        self._producer = producer
        self._dead_topic = dead_topic
        self._dead_inline_limit = dead_inline_limit
        self._backoff = backoff
        self._retry_topics = tuple(retry_topics)

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
        value: bytes | None,
        *,
        key: bytes | None = None,
        headers: OutgoingHeaders | None = None,
        partition: int | None = None,
    ) -> None:
        """Return when the broker has the record. Raises ItemBroken when it never will."""
        await until_up(
            "kafka",
            lambda: self._producer.send(topic, value, key=key, headers=headers, partition=partition),
            self._backoff,
        )

    async def reply(self, topic: str, value: bytes, headers: OutgoingHeaders, partition: int | None = None) -> None:
        """Return when the broker has a reply, which goes where a stranger says.

        It holds up nobody else, whatever is wrong with that place. Raises ItemBroken when the record never gets there;
        until when it is worth trying is the caller's business.
        """
        attempt = 0
        while True:
            try:
                return await self._producer.send(topic, value, headers=headers, partition=partition)
            except NoSuchPlace as cause:
                raise ItemBroken("no_reply_address", str(cause)) from None
            except DependencyDown as cause:
                log.warning("a reply waits: %s", cause)
                await asyncio.sleep(self._backoff.pause(attempt))
                attempt += 1

    async def postpone(self, record: Record, cause: NotYet, image_id: str | None = None) -> None:
        """Publish a record on the next retry tier; after the last tier it is a dead letter."""
        waited = record.history.waits if record.history else 0
        if waited >= len(self._retry_topics):
            await self.bury(record, cause, image_id)
            return
        headers = without_history(record.headers)
        history = self._failed(record, cause)
        topic = self._retry_topics[waited]
        log.info("to %s: %s", topic, cause)
        try:
            await self.publish(topic, record.value, key=record.key, headers=[*headers, history.to_header()])
        except ItemBroken as too_large:
            await self.bury(record, too_large, image_id)

    async def bury(
        self, record: Record, cause: ItemBroken | NotYet | ContractError, image_id: str | None = None
    ) -> None:
        """Publish the dead letter of a record."""
        value = record.value or b""
        headers, key = without_history(record.headers), record.key
        large_headers = sum(len(name) + len(content) for name, content in headers) > _MAX_DEAD_HEADERS
        large_key = key is not None and len(key) > _MAX_DEAD_KEY
        history = self._failed(record, cause)
        letter = DeadLetter(
            code=cause.code,
            message=cause.message,
            stage=self._stage,
            origin=history.origin,
            failed_at=history.hops[-1].at,
            first_failed_at=history.first_failed_at,
            attempts=history.attempts,
            hops=history.hops,
            image_id=image_id,
            key=None if large_key else key,
            headers=() if large_headers else tuple(headers),
            headers_dropped=large_headers or large_key,
            value=value if len(value) <= self._dead_inline_limit else None,
            value_bytes=len(value),
            dataref=_dataref(headers),
        )
        log.info("dead letter: %s", cause)
        await self.publish(self._dead_topic, letter.to_kafka(), key=letter.key)

    def _failed(self, record: Record, cause: ItemBroken | NotYet | ContractError) -> History:
        at = now()
        before = record.history or History(origin=record.place, attempts=0, first_failed_at=at)
        return before.after(failed_hop(self._stage, cause.code, cause.message, record.place, at))


def _dataref(headers: Headers) -> str | None:
    """What binary mode says; in structured mode it is in the value."""
    found = next((content for name, content in headers if name.lower() == "ce_dataref"), None)
    return None if found is None else found.decode("utf-8", "replace")[:_MAX_DATAREF]
