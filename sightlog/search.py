"""Search over topics: what can be asked, what comes back, and the headers that tie the two together.

The header names are those that Spring for Apache Kafka uses for request/reply, plus `deadline`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from pydantic import Field, ValidationError, model_validator

from sightlog.documents import Box
from sightlog.errors import ContractError
from sightlog.events import Headers, OutgoingHeaders
from sightlog.fields import Base64Bytes, Contract, UtcTime

REPLY_TOPIC = "kafka_replyTopic"
REPLY_PARTITION = "kafka_replyPartition"
CORRELATION_ID = "kafka_correlationId"
DEADLINE = "deadline"

#: Characters of a query; the text tower reads far fewer.
MAX_TEXT = 2000
#: Bytes of a query picture: as base64, with the rest of the request, it fits into a record.
MAX_IMAGE = 5 * 1024 * 1024


class SearchFilters(Contract):
    """Conditions inside the k-NN search: `k` hits come back when that many documents fulfil them."""

    classes: tuple[str, ...] = Field((), max_length=256, description="any of these detected classes")
    min_confidence: float | None = Field(None, ge=0, le=1, description="of a detection of those classes")
    tags: tuple[str, ...] = Field((), max_length=256, description="all of these tags")
    captured_from: UtcTime | None = Field(None, description="inclusive")
    captured_to: UtcTime | None = Field(None, description="exclusive")
    uploaded_from: UtcTime | None = Field(None, description="inclusive")
    uploaded_to: UtcTime | None = Field(None, description="exclusive")


class SearchRequest(Contract):
    """Find images, or objects in images, that match words (`text`) or look like a picture (`image`): one of the two."""

    text: str | None = Field(None, min_length=1, max_length=MAX_TEXT)
    image: Base64Bytes | None = Field(
        None, description="an encoded picture of at most 5 MiB, seen exactly as an upload of it is"
    )
    target: Literal["images", "objects"] = "images"
    k: int = Field(10, ge=1, le=1000)
    filters: SearchFilters = Field(default_factory=SearchFilters)

    @model_validator(mode="after")
    def _one_question(self) -> SearchRequest:
        if (self.text is None) == (self.image is None):
            raise ValueError("give text or image, one of them")
        if self.text is not None and not self.text.strip():
            raise ValueError("text is blank")
        if self.image is not None and not 0 < len(self.image) <= MAX_IMAGE:
            raise ValueError(f"image has {len(self.image)} bytes; 1 to {MAX_IMAGE} are taken")
        return self

    @classmethod
    def from_kafka(cls, value: bytes | None) -> SearchRequest:
        """Read a record of `search.requests`; raises ContractError `bad_request`."""
        try:
            return cls.model_validate_json(value or b"")
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(map(str, first["loc"])) or "request"
            raise ContractError("bad_request", f"{place}: {first['msg']}") from None

    def to_kafka(self) -> bytes:
        """The record value, JSON."""
        return self.model_dump_json(exclude_defaults=True).encode()


class Hit(Contract):
    """One found image or object."""

    image_id: str
    score: float = Field(description="0..1; (1 + cosine) / 2 until a model is calibrated")
    cosine: float = Field(description="raw cosine between query and document")
    source: str = Field(description="where the picture is: its dataref, else its filename, else the publisher")
    object_id: str | None = None
    class_name: str | None = Field(None, alias="class")
    confidence: float | None = None
    box: Box | None = Field(None, description="x1, y1, x2, y2 in pixels of the upright original")
    width: int
    height: int
    tags: tuple[str, ...] = ()
    captured_at: UtcTime | None = None
    uploaded_at: UtcTime
    metadata: dict[str, Any] = Field(default_factory=dict)


class SearchError(Contract):
    """Why a request was not answered."""

    code: str
    message: str


class SearchReply(Contract):
    """The answer to a request: hits by falling score, or an error."""

    hits: tuple[Hit, ...] = ()
    model_digest: str | None = None
    took_ms: float = Field(0.0, description="from receipt of the request to the reply, in the agent")
    error: SearchError | None = None

    @classmethod
    def from_kafka(cls, value: bytes | None) -> SearchReply:
        """Read a record of a reply topic; raises ContractError `bad_reply`."""
        try:
            return cls.model_validate_json(value or b"")
        except ValidationError as error:
            raise ContractError("bad_reply", str(error.errors()[0]["msg"])) from None

    def to_kafka(self) -> bytes:
        """The record value, JSON."""
        return self.model_dump_json(by_alias=True, exclude_none=True).encode()


@dataclass(frozen=True)
class ReplyAddress:
    """Where a reply goes and until when it is wanted; travels in the headers of the request."""

    topic: str
    partition: int | None
    correlation_id: bytes
    deadline_ms: int | None
    """Milliseconds since the epoch; None: the agent's own limit holds."""

    @classmethod
    def from_headers(cls, headers: Headers) -> ReplyAddress:
        """Read the address; raises ContractError `no_reply_address` when one cannot reply with these headers."""
        by_name = dict(headers)
        topic, correlation_id = by_name.get(REPLY_TOPIC), by_name.get(CORRELATION_ID)
        if not topic or not correlation_id:
            raise ContractError("no_reply_address", f"a request needs the headers {REPLY_TOPIC} and {CORRELATION_ID}")
        partition = by_name.get(REPLY_PARTITION)
        if partition is not None and (len(partition) != 4 or partition[0] > 127):
            raise ContractError("no_reply_address", f"{REPLY_PARTITION} is a 4-byte big-endian integer, not negative")
        deadline = by_name.get(DEADLINE)
        try:
            return cls(
                topic=topic.decode("ascii"),
                partition=None if partition is None else int.from_bytes(partition, "big"),
                correlation_id=correlation_id,
                deadline_ms=None if deadline is None else int(deadline),
            )
        except ValueError as error:
            raise ContractError("no_reply_address", f"a reply header cannot be read: {error}") from None

    def to_headers(self) -> OutgoingHeaders:
        """The headers of a request that wants its reply here."""
        headers: OutgoingHeaders = [(REPLY_TOPIC, self.topic.encode()), (CORRELATION_ID, self.correlation_id)]
        if self.partition is not None:
            headers.append((REPLY_PARTITION, self.partition.to_bytes(4, "big")))
        if self.deadline_ms is not None:
            headers.append((DEADLINE, str(self.deadline_ms).encode()))
        return headers
