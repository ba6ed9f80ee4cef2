"""A Kafka record as the rooms below an agent see it, free of any client library."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any

from faust.types import EventT

from sightlog.events import Headers


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

    @classmethod
    def from_event(cls, event: EventT[bytes]) -> Record:
        """The record behind a Faust event; the topic must use raw serializers."""
        message = event.message
        # A list of pairs from aiokafka; typed more loosely by Faust.
        headers: Any = message.headers or ()
        return cls(
            topic=message.topic,
            partition=message.partition,
            offset=message.offset,
            # Faust turns milliseconds into float seconds.
            timestamp_ms=round(message.timestamp * 1000),
            key=message.key,
            value=message.value,
            headers=[(name, content or b"") for name, content in headers],
        )
