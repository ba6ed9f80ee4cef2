"""What the vision agent says about an image: the embedding document, and the receipt of its indexing.

An embedding document is self-contained: an index can be rebuilt from the topic `images.embedded` alone.
"""

from __future__ import annotations

from typing import Any

from pydantic import Field, ValidationError

from sightlog.errors import ContractError
from sightlog.fields import Contract, UtcTime, Vector


class ModelRef(Contract):
    """Which model made a vector; vectors of different digests are never compared."""

    name: str
    digest: str = Field(pattern=r"^[0-9a-f]{64}$", description="SHA-256 of weights and preprocessing")


Box = tuple[float, float, float, float]


class Detection(Contract):
    """One detected object of an image."""

    ordinal: int = Field(ge=0, description="position by falling confidence; part of the object id")
    class_name: str = Field(alias="class")
    confidence: float = Field(ge=0, le=1)
    box: Box = Field(description="x1, y1, x2, y2 in pixels of the upright original")
    box_normalised: Box = Field(description="the same, divided by width and height")
    vector: Vector


class EmbeddingDocument(Contract):
    """An image with its detections and vectors, as published on `images.embedded`."""

    image_id: str
    version: int = Field(ge=0, description="grows with the log; a smaller one never overwrites a larger one")
    event_id: str
    event_source: str
    tenant: str | None = None
    filename: str | None = None
    tags: tuple[str, ...] = ()
    captured_at: UtcTime | None = None
    uploaded_at: UtcTime
    metadata: dict[str, Any] = Field(default_factory=dict)
    dataref: str | None = Field(None, description="where the file is; absent when it came inline")
    content_type: str | None = None
    sha256: str
    size_bytes: int = Field(ge=0, description="of the file")
    width: int = Field(gt=0, description="pixels, upright")
    height: int = Field(gt=0, description="pixels, upright")
    model: ModelRef
    vector: Vector
    detections: tuple[Detection, ...] = ()

    @classmethod
    def from_kafka(cls, value: bytes | None) -> EmbeddingDocument:
        """Read a record of `images.embedded`; raises ContractError `bad_document`."""
        try:
            return cls.model_validate_json(value or b"")
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(map(str, first["loc"]))
            raise ContractError("bad_document", f"{place}: {first['msg']}") from None

    def to_kafka(self) -> bytes:
        """The record value, JSON."""
        return self.model_dump_json(by_alias=True, exclude_defaults=True).encode()


class IndexReceipt(Contract):
    """Published on `images.indexed` once a document can be found by a search."""

    image_id: str
    version: int
    objects: int = Field(description="number of detections indexed with the image")
    uploaded_at: UtcTime
    searchable_at: UtcTime
    superseded: bool = Field(False, description="a newer version was there already; nothing was written")

    @classmethod
    def from_kafka(cls, value: bytes | None) -> IndexReceipt:
        """Read a record of `images.indexed`; raises ContractError `bad_receipt`."""
        try:
            return cls.model_validate_json(value or b"")
        except ValidationError as error:
            raise ContractError("bad_receipt", str(error.errors()[0]["msg"])) from None

    def to_kafka(self) -> bytes:
        """The record value, JSON."""
        return self.model_dump_json().encode()


#: Low bits of a version hold the offset, so that two records of one millisecond keep their order.
_OFFSET_BITS = 20


def log_version(timestamp_ms: int, offset: int) -> int:
    """Version of a record of `images`, from the broker's append time and the offset; fits in 63 bits.

    The topic uses LogAppendTime, so within a partition, where all events of an image are, versions only grow.
    """
    return (timestamp_ms << _OFFSET_BITS) | (offset & ((1 << _OFFSET_BITS) - 1))


def object_id(image_id: str, ordinal: int) -> str:
    """Id of a detected object, derived, so that a redelivery writes the same document again."""
    return f"{image_id}#{ordinal}"
