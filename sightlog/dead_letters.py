"""Dead letters: an event that could not be processed, why, what was tried, and how to get back to it.

A letter is open until a resolution with its id is on `images.dead.closed`: somebody replayed or dropped it. A letter of
the same id that is written later, because the replayed event failed again, is open again.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field, ValidationError

from sightlog.errors import ContractError
from sightlog.fields import Base64Bytes, Contract, UtcTime
from sightlog.history import History, Hop, Origin, Stage

__all__ = ["DeadLetter", "Origin", "Resolution", "Stage"]


class DeadLetter(Contract):
    """One failed event, as published on `images.dead` under the key of the failed record."""

    code: str = Field(description="stable cause, for example undecodable")
    message: str = Field(description="the cause in words")
    stage: Stage
    origin: Origin = Field(description="the record that was published first, before any retry")
    failed_at: UtcTime = Field(description="last attempt")
    first_failed_at: UtcTime | None = Field(None, description="first attempt; absent: the last was the only one")
    attempts: int = Field(1, ge=1, description="attempts until it was given up")
    hops: tuple[Hop, ...] = Field((), description="what each attempt said, oldest first; the newest are kept")
    image_id: str | None = Field(None, description="absent when the event does not tell")
    key: Base64Bytes | None = None
    headers: tuple[tuple[str, Base64Bytes], ...] = ()
    headers_dropped: bool = Field(False, description="key or headers were too large for a letter: see the origin")
    value: Base64Bytes | None = Field(None, description="absent above the size limit: read it at the origin")
    value_bytes: int = Field(ge=0, description="size of the failed record's value")
    dataref: str | None = Field(None, description="where the event said that its file is, when it is not inline")

    @property
    def id(self) -> str:
        """Names the event, however often it fails: `<topic>/<partition>/<offset>` of its origin."""
        return str(self.origin)

    @property
    def history(self) -> History:
        """What a replay sends along."""
        first = self.first_failed_at or self.failed_at
        return History(origin=self.origin, attempts=self.attempts, first_failed_at=first, hops=self.hops)

    @classmethod
    def from_kafka(cls, value: bytes | None) -> DeadLetter:
        """Read a record of `images.dead`; raises ContractError `bad_dead_letter`."""
        try:
            return cls.model_validate_json(value or b"")
        except ValidationError as error:
            raise ContractError("bad_dead_letter", str(error.errors()[0]["msg"])) from None

    def to_kafka(self) -> bytes:
        """The record value, JSON."""
        return self.model_dump_json(exclude_defaults=True).encode()


class Resolution(Contract):
    """What somebody did with a dead letter, as published on `images.dead.closed` under the letter's id."""

    id: str = Field(description="of the letter")
    action: Literal["replayed", "dropped"]
    letter: Origin = Field(description="the newest letter of that id when it was closed: later ones are open again")
    at: UtcTime

    @classmethod
    def from_kafka(cls, value: bytes | None) -> Resolution:
        """Read a record of `images.dead.closed`; raises ContractError `bad_resolution`."""
        try:
            return cls.model_validate_json(value or b"")
        except ValidationError as error:
            raise ContractError("bad_resolution", str(error.errors()[0]["msg"])) from None

    def to_kafka(self) -> bytes:
        """The record value, JSON."""
        return self.model_dump_json().encode()
