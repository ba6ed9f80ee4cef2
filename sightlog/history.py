"""Where an event came from and what has become of it so far: the one header that a record which comes back carries.

A record that comes back to its topic, from a retry tier or by a replay, is the original record (key, value, headers)
with this header in addition. Everything that it causes has the version of its origin, so however late it comes, it
never overwrites what is newer.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import Literal

from pydantic import Field, ValidationError
from typing_extensions import Self

from sightlog.fields import Contract, UtcTime

HISTORY_HEADER = "sightlog_history"

#: Who did something with an event: an agent that gave it up, or `sightlog dlq replay`.
Stage = Literal["vision", "indexer", "search", "retry", "replay"]

#: Newest hops that are kept, and how much of a message: the header travels with every attempt.
MAX_HOPS = 16
_MAX_HOP_MESSAGE = 200


class Origin(Contract):
    """A record in the log."""

    topic: str
    partition: int
    offset: int
    timestamp: UtcTime

    @property
    def timestamp_ms(self) -> int:
        """As the log has it."""
        return round(self.timestamp.timestamp() * 1000)

    def __str__(self) -> str:
        return f"{self.topic}/{self.partition}/{self.offset}"


class Hop(Contract):
    """One failed attempt, or one replay."""

    stage: Stage
    code: str = Field(max_length=64, description="stable cause; `replayed` for a replay")
    message: str = Field("", max_length=_MAX_HOP_MESSAGE, description="the cause in words, cut")
    topic: str = Field(description="the record of this attempt, in the log")
    partition: int
    offset: int
    at: UtcTime


class History(Contract):
    """What has happened to an event since it was first published."""

    origin: Origin = Field(description="the record that was published first; its version is the event's")
    attempts: int = Field(ge=0, description="failed attempts so far")
    waits: int = Field(0, ge=0, description="retry tiers passed since it was published or replayed")
    first_failed_at: UtcTime
    hops: tuple[Hop, ...] = Field((), max_length=MAX_HOPS, description="oldest first; the newest are kept")

    @classmethod
    def from_headers(cls, headers: Iterable[tuple[str, bytes]]) -> Self | None:
        """The history in the headers of a record; None when there is none, or one that nobody of ours wrote."""
        written = [content for name, content in headers if name == HISTORY_HEADER]
        if not written:
            return None
        try:
            return cls.model_validate_json(written[-1])
        except (ValidationError, OverflowError):
            return None

    def to_header(self) -> tuple[str, bytes]:
        """The header that carries it."""
        return HISTORY_HEADER, self.model_dump_json(exclude_defaults=True).encode()

    def after(self, hop: Hop) -> History:
        """The history with one more failed attempt."""
        hops = (*self.hops, hop)[-MAX_HOPS:]
        return self.model_copy(update={"attempts": self.attempts + 1, "waits": self.waits + 1, "hops": hops})

    def replayed(self, at: datetime) -> History:
        """The history of an event that somebody sends through the stream once more, with all retry tiers before it."""
        where = self.origin
        hop = Hop(
            stage="replay", code="replayed", topic=where.topic, partition=where.partition, offset=where.offset, at=at
        )
        return self.model_copy(update={"waits": 0, "hops": (*self.hops, hop)[-MAX_HOPS:]})


def failed_hop(stage: Stage, code: str, message: str, at_record: Origin, at: datetime) -> Hop:
    """The hop of a failed attempt on the record `at_record`."""
    return Hop(
        stage=stage,
        code=code[:64],
        message=message[:_MAX_HOP_MESSAGE],
        topic=at_record.topic,
        partition=at_record.partition,
        offset=at_record.offset,
        at=at,
    )


def without_history(headers: Iterable[tuple[str, bytes]]) -> list[tuple[str, bytes]]:
    """The headers as they were first published."""
    return [(name, content) for name, content in headers if name != HISTORY_HEADER]
