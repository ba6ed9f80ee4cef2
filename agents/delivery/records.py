"""A Kafka record as the rooms below an agent see it, free of any client library."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timezone
from functools import cached_property
from typing import Any

from faust.types import EventT

from sightlog.documents import log_version
from sightlog.events import Headers, consumed_headers
from sightlog.history import History, Origin


@dataclass(frozen=True)
class Record:
    """One consumed record."""

    topic: str
    partition: int
    offset: int
    timestamp_ms: int
    """Of the broker where the topic uses LogAppendTime."""
    key: bytes | None
    value: bytes | None
    headers: Headers

    @property
    def time(self) -> datetime:
        """The timestamp in UTC."""
        return datetime.fromtimestamp(self.timestamp_ms / 1000, timezone.utc)

    @cached_property
    def place(self) -> Origin:
        """Where this record is in the log."""
        return Origin(topic=self.topic, partition=self.partition, offset=self.offset, timestamp=self.time)

    @cached_property
    def history(self) -> History | None:
        """What the event has been through, if it was here before.

        The header of a stranger who claims to come from elsewhere, or from later than this very record, says nothing:
        it could only let an event overwrite newer ones.
        """
        history = History.from_headers(self.headers)
        if history is None or history.origin.topic != self.topic:
            return None
        return history if _version(history.origin) <= _version(self.place) else None

    @property
    def origin(self) -> Origin:
        """The record by which the event was first published: this one, unless it came back."""
        return self.history.origin if self.history else self.place

    @property
    def version(self) -> int:
        """The version of everything that the event causes, however often it comes back."""
        return _version(self.origin)

    @classmethod
    def from_event(cls, event: EventT[bytes]) -> Record:
        """The record behind a Faust event; the topic must use raw serializers."""
        message = event.message
        # A list of pairs from aiokafka; typed more loosely by Faust.
        headers: Any = message.headers
        return cls(
            topic=message.topic,
            partition=message.partition,
            offset=message.offset,
            # Faust turns milliseconds into float seconds.
            timestamp_ms=round(message.timestamp * 1000),
            key=message.key,
            value=message.value,
            headers=consumed_headers(headers),
        )


def _version(origin: Origin) -> int:
    return log_version(origin.timestamp_ms, origin.offset)
