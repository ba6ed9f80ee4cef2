"""Dead letters: an event that could not be processed, why, and how to get back to it."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, ValidationError

from sightlog.errors import ContractError
from sightlog.fields import Base64Bytes, Contract, UtcTime

#: The agent that gave up.
Stage = Literal["vision", "indexer", "search"]


class Origin(Contract):
    """The record that failed, in the log."""

    topic: str
    partition: int
    offset: int
    timestamp: UtcTime


class DeadLetter(Contract):
    """One failed event, as published on `images.dead` under the key of the failed record."""

    code: str = Field(description="stable cause, for example undecodable")
    message: str = Field(description="the cause in words")
    stage: Stage
    origin: Origin
    failed_at: UtcTime
    image_id: str | None = Field(None, description="absent when the event does not tell")
    key: Base64Bytes | None = None
    headers: tuple[tuple[str, Base64Bytes], ...] = ()
    value: Base64Bytes | None = Field(None, description="absent above the size limit: read it at the origin")
    value_bytes: int = Field(ge=0, description="size of the failed record's value")

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
