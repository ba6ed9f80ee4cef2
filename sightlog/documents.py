"""What the vision agent says about images on `images.embedded`, and the receipt of what the index made of it.

An embedding document is self-contained, and updates and deletions pass through the same topic: an index can be rebuilt
from it alone.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import orjson
from pydantic import Field, ValidationError

from sightlog.errors import ContractError
from sightlog.fields import Contract, UtcTime, Vector


class ModelRef(Contract):
    """Which model made a vector; vectors of different digests are never compared."""

    name: str
    digest: str = Field(pattern=r"^[0-9a-f]{64}$", description="SHA-256 of weights and preprocessing")


Box = tuple[float, float, float, float]

#: Four of them add up to less than 2^63, the largest version that OpenSearch takes.
MAX_VERSION = 2**61 - 1

Version = Annotated[
    int, Field(ge=1, le=MAX_VERSION, description="grows with the log; a smaller one never overwrites a larger one")
]


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
    version: Version
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
    reused: bool = Field(False, description="the same bytes were seen before; no inference was made for this event")

    @classmethod
    def from_kafka(cls, value: bytes | None) -> EmbeddingDocument:
        """Read an embedding document; raises ContractError `bad_document`, also for another kind of change."""
        change = read_change(value)
        if not isinstance(change, EmbeddingDocument):
            raise ContractError("bad_document", f"type: {change.type} is no embedding document")
        return change

    def to_kafka(self) -> bytes:
        """The record value, JSON."""
        return self.model_dump_json(by_alias=True, exclude_defaults=True).encode()


class ImageUpdate(Contract):
    """New tags, new metadata, or both, for an image; an absent field stays as it is."""

    type: Literal["update"] = "update"
    image_id: str
    version: Version
    event_id: str
    event_source: str
    updated_at: UtcTime
    tags: tuple[str, ...] | None = None
    metadata: dict[str, Any] | None = None

    def to_kafka(self) -> bytes:
        """The record value, JSON."""
        return self.model_dump_json(exclude_none=True).encode()


class ImageDeletion(Contract):
    """The image and its objects are to be found no more."""

    type: Literal["deletion"] = "deletion"
    image_id: str
    version: Version
    event_id: str
    event_source: str
    deleted_at: UtcTime

    def to_kafka(self) -> bytes:
        """The record value, JSON."""
        return self.model_dump_json().encode()


#: What a record of `images.embedded` holds: an object with a `type`, or an embedding document, which has none.
ImageChange = EmbeddingDocument | ImageUpdate | ImageDeletion

_CHANGES: dict[Any, type[ImageUpdate] | type[ImageDeletion]] = {"update": ImageUpdate, "deletion": ImageDeletion}


def read_change(value: bytes | None) -> ImageChange:
    """Read a record of `images.embedded`; raises ContractError `bad_document`."""
    try:
        found = orjson.loads(value or b"")
        kind = found.get("type") if isinstance(found, dict) else None
        if kind is not None and (not isinstance(kind, str) or kind not in _CHANGES):
            raise ContractError("bad_document", f"type: {repr(kind)[:200]}; this version knows {', '.join(_CHANGES)}")
        return (EmbeddingDocument if kind is None else _CHANGES[kind]).model_validate(found)
    except orjson.JSONDecodeError as error:
        raise ContractError("bad_document", f"not JSON: {error}") from None
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise ContractError("bad_document", f"{place}: {first['msg']}") from None


class IndexReceipt(Contract):
    """Published on `images.indexed` once searches see the change: an upload, an update, or that the image is gone."""

    image_id: str
    version: int
    kind: Literal["uploaded", "updated", "deleted"] = "uploaded"
    objects: int = Field(description="number of detections that an upload brought; 0 for other kinds")
    uploaded_at: UtcTime = Field(description="when the event happened, of whatever kind")
    searchable_at: UtcTime = Field(description="when searches saw it")
    superseded: bool = Field(False, description="newer events had the last word already; nothing of this one shows")
    reused: bool = Field(False, description="the same bytes were seen before; no inference was made for this event")

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


#: 2024-01-01; a later beginning leaves room for the offset.
_EPOCH_MS = 1_704_067_200_000

#: Log offsets that a millisecond is worth: more records than a broker appends to one partition in that time.
_OFFSETS_PER_MS = 1 << 20

#: The last millisecond, in the year 2093, short of 2^41 by what is left for offsets: 2^50 of them.
_LAST_MS = (1 << 41) - (1 << 30) - 1


def log_version(timestamp_ms: int, offset: int) -> int:
    """Version of a record of `images`, from the broker's append time and the offset; 1 to MAX_VERSION.

    The topic uses LogAppendTime. Within a partition, where all events of an image are, time never goes back while the
    offset grows, so the sum of both grows with every record, however many share a millisecond. When partitions are
    added and the image moves, its next event must be `offset / 2^20` ms younger than the last one to be newer: one
    second for each 10^9 records of the old partition.
    """
    since = min(max(timestamp_ms - _EPOCH_MS, 0), _LAST_MS)
    return since * _OFFSETS_PER_MS + offset + 1


def object_id(image_id: str, ordinal: int) -> str:
    """Id of a detected object, derived, so that a redelivery writes the same document again."""
    return f"{image_id}#{ordinal}"
