"""Image events: CloudEvents 1.0 over Kafka, in binary and in structured mode.

A producer needs nothing of ours. Binary mode carries the attributes as `ce_*` headers and the image file as the
value; structured mode is one JSON object with the header `content-type: application/cloudevents+json`.
"""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any

import orjson
from pydantic import AfterValidator, Field, StringConstraints, ValidationError, field_validator, model_validator

from sightlog.errors import ContractError
from sightlog.fields import Base64Bytes, Contract, UtcTime, now
from sightlog.limits import check_headers, check_json, check_metadata, check_name

IMAGE_UPLOADED = "image.uploaded.v1"
IMAGE_UPDATED = "image.updated.v1"
IMAGE_DELETED = "image.deleted.v1"
STRUCTURED_CONTENT_TYPE = "application/cloudevents+json"

#: OpenSearch takes ids of 512 bytes at most; object ids append `#` and an ordinal to the image id.
MAX_IMAGE_ID_BYTES = 500

#: OpenSearch refuses a flat object of more than 20 levels; JSON writers give up at a few hundred.
MAX_METADATA_DEPTH = 16

#: What stands in logs, on terminals and in URLs.
Name = Annotated[str, AfterValidator(check_name)]
#: Lucene takes terms of 32,766 bytes at most; a character has up to four.
Tag = Annotated[Name, StringConstraints(max_length=1024)]

Headers = Sequence[tuple[str, bytes]]
#: The same as the Kafka client takes it.
OutgoingHeaders = list[tuple[str, "str | bytes | None"]]


class ImageEvent(Contract):
    """What every event about an image carries.

    Attribute names are those of CloudEvents; the rest are extension attributes, which by its rules are lower-case
    words without separators. In binary mode `tags` is a comma-separated list and `metadata` a JSON object.
    """

    specversion: str = Field("1.0", pattern=r"^1\.0$")
    type: str
    id: Name = Field(min_length=1, max_length=512, description="unique for its source")
    source: Name = Field(min_length=1, max_length=2048, description="who publishes, for example /camera/3")
    time: UtcTime | None = Field(None, description="when it happened")
    subject: Name | None = Field(None, max_length=MAX_IMAGE_ID_BYTES, description="image id, if the key has none")

    @field_validator("tags", mode="before", check_fields=False)
    @classmethod
    def _split_tags(cls, value: Any) -> Any:
        return [tag.strip() for tag in value.split(",") if tag.strip()] if isinstance(value, str) else value

    @field_validator("metadata", mode="before", check_fields=False)
    @classmethod
    def _parse_metadata(cls, value: Any) -> Any:
        parsed = orjson.loads(value) if isinstance(value, (str, bytes)) else value
        if _deeper_than(parsed, MAX_METADATA_DEPTH):
            raise ValueError(f"more than {MAX_METADATA_DEPTH} levels deep")
        if isinstance(parsed, dict):
            check_metadata(parsed)
        return parsed

    def image_id(self, key: bytes | None) -> str:
        """The record key, else the subject.

        Raises ContractError `bad_image_id` when the key is not UTF-8, when key or subject is too long, or when nothing
        identifies the image.
        """
        named = key or (self.subject or "").encode()
        if len(named) > MAX_IMAGE_ID_BYTES:
            place = "record key" if key else "subject"
            raise ContractError("bad_image_id", f"the {place} has {len(named)} bytes; {MAX_IMAGE_ID_BYTES} at most")
        if not named:
            raise ContractError("bad_image_id", "no record key and no subject")
        try:
            return check_name(named.decode("utf-8"))
        except UnicodeDecodeError:
            raise ContractError("bad_image_id", "the record key is not UTF-8") from None
        except ValueError as error:
            raise ContractError("bad_image_id", f"the record key {error}") from None

    def to_kafka(self, *, structured: bool = False) -> tuple[bytes, OutgoingHeaders]:
        """Value and headers of the record that carries this event."""
        named = {"specversion": self.specversion, "type": self.type}
        if structured:
            body = self.model_dump(mode="json", by_alias=True, exclude_defaults=True) | named
            return orjson.dumps(body), [("content-type", STRUCTURED_CONTENT_TYPE.encode())]
        attributes = self.model_dump(mode="json", exclude={"data", "datacontenttype"}, exclude_defaults=True) | named
        return b"", [(f"ce_{name}", _header(value)) for name, value in attributes.items()]


class ImageUploaded(ImageEvent):
    """One uploaded image. `data` holds the file, or `dataref` says where it is; exactly one of the two."""

    type: str = Field(IMAGE_UPLOADED, pattern=r"^image\.uploaded\.v1$")
    time: UtcTime | None = Field(None, description="when the upload happened")
    datacontenttype: Name | None = Field(None, max_length=256, description="for example image/jpeg")
    dataref: Name | None = Field(None, max_length=4096, description="URI of the file when it is not inline")
    sha256: str | None = Field(None, pattern=r"^[0-9a-f]{64}$", description="of the file, in hex")
    tenant: Name | None = Field(None, max_length=256)
    filename: Name | None = Field(None, max_length=1024)
    tags: tuple[Tag, ...] = Field((), max_length=256)
    capturedat: UtcTime | None = Field(None, description="when the picture was taken")
    metadata: dict[str, Any] = Field(default_factory=dict)
    data: Base64Bytes | None = Field(None, alias="data_base64", description="the file, JPEG, PNG or WebP")

    @model_validator(mode="after")
    def _one_place_for_the_bytes(self) -> ImageUploaded:
        if self.data and self.dataref:
            raise ValueError("both data and dataref are given; give one of them")
        return self

    def image_id(self, key: bytes | None) -> str:
        """The record key, else the subject, else the SHA-256 of the bytes; raises ContractError `bad_image_id`."""
        if key or self.subject or not (self.data or self.sha256):
            return super().image_id(key)
        return hashlib.sha256(self.data).hexdigest() if self.data else str(self.sha256)

    def to_kafka(self, *, structured: bool = False) -> tuple[bytes, OutgoingHeaders]:
        """Value and headers of the record that carries this event."""
        value, headers = super().to_kafka(structured=structured)
        if structured:
            return value, headers
        if self.datacontenttype:
            headers.append(("content-type", self.datacontenttype.encode()))
        return self.data or b"", headers


class ImageUpdated(ImageEvent):
    """New tags, new metadata, or both, for an image: each replaces the whole field, the picture stays as it is."""

    type: str = Field(IMAGE_UPDATED, pattern=r"^image\.updated\.v1$")
    tags: tuple[Tag, ...] | None = Field(None, max_length=256, description="an empty list takes all tags away")
    metadata: dict[str, Any] | None = Field(None, description="an empty object takes all metadata away")

    @model_validator(mode="after")
    def _something_to_update(self) -> ImageUpdated:
        if self.tags is None and self.metadata is None:
            raise ValueError("neither tags nor metadata are given; give at least one of them")
        return self


class ImageDeleted(ImageEvent):
    """The image and its objects are to be found no more; the record needs no value."""

    type: str = Field(IMAGE_DELETED, pattern=r"^image\.deleted\.v1$")


#: Event type -> contract.
EVENTS: dict[str, type[ImageUploaded] | type[ImageUpdated] | type[ImageDeleted]] = {
    IMAGE_UPLOADED: ImageUploaded,
    IMAGE_UPDATED: ImageUpdated,
    IMAGE_DELETED: ImageDeleted,
}


def _header(value: Any) -> bytes:
    if isinstance(value, str):
        return value.encode()
    if isinstance(value, list):
        return ",".join(value).encode()
    return orjson.dumps(value)


def consumed_headers(headers: Iterable[tuple[str, bytes | None]] | None) -> list[tuple[str, bytes]]:
    """Headers of a consumed record; one without a value is empty. Kafka clients hand out None where there are none."""
    return [(name, content or b"") for name, content in headers or ()]


def new_upload(data: bytes | None = None, *, source: str, **attributes: Any) -> ImageUploaded:
    """An upload event with a fresh id and the present time; `attributes` are fields of ImageUploaded."""
    return ImageUploaded(id=uuid.uuid4().hex, source=source, time=now(), data=data, **attributes)


def new_update(*, source: str, **attributes: Any) -> ImageUpdated:
    """An update with a fresh id and the present time; `attributes` are fields of ImageUpdated."""
    return ImageUpdated(id=uuid.uuid4().hex, source=source, time=now(), **attributes)


def new_deletion(*, source: str, **attributes: Any) -> ImageDeleted:
    """A deletion with a fresh id and the present time; `attributes` are fields of ImageDeleted."""
    return ImageDeleted(id=uuid.uuid4().hex, source=source, time=now(), **attributes)


def parse_event(value: bytes | None, headers: Headers) -> ImageUploaded | ImageUpdated | ImageDeleted:
    """Read a record of the `images` topic in either mode.

    Raises ContractError with code `empty`, `not_cloudevent`, `bad_json`, `unsupported_type` or `bad_event`.
    """
    check_headers(headers)
    by_name = {name.lower(): content or b"" for name, content in headers}
    content_type = _text(by_name, "content-type")
    if content_type is not None and content_type.split(";")[0].strip().lower() == STRUCTURED_CONTENT_TYPE:
        attributes = _structured_attributes(value)
    else:
        attributes = _binary_attributes(value, by_name, content_type)
    kind = attributes.get("type")
    contract = EVENTS.get(kind) if isinstance(kind, str) else None
    if contract is None:
        known = ", ".join(EVENTS)
        # Cut, because a dead letter carries the message and must stay publishable.
        raise ContractError("unsupported_type", f"event type {repr(kind)[:200]}; this version knows {known}")
    try:
        event = contract.model_validate(attributes)
    except ValidationError as error:
        raise ContractError("bad_event", _reason(error)) from None
    except orjson.JSONDecodeError as error:
        raise ContractError("bad_event", f"metadata is not JSON: {error}") from None
    if isinstance(event, ImageUploaded) and not event.data and not event.dataref:
        raise ContractError("empty", "no image bytes in the record and no dataref")
    return event


def _structured_attributes(value: bytes | None) -> dict[str, Any]:
    if not value:
        raise ContractError("empty", "the record has no value")
    check_json(value)
    try:
        attributes = orjson.loads(value)
    except orjson.JSONDecodeError as error:
        raise ContractError("bad_json", f"the structured event is not JSON: {error}") from None
    if not isinstance(attributes, dict) or "specversion" not in attributes:
        raise ContractError("not_cloudevent", "the JSON value has no specversion")
    return attributes


def _binary_attributes(value: bytes | None, headers: Mapping[str, bytes], content_type: str | None) -> dict[str, Any]:
    if "ce_specversion" not in headers or "ce_type" not in headers:
        raise ContractError("not_cloudevent", "no ce_specversion and ce_type headers, and not a structured event")
    attributes: dict[str, Any] = {name[3:]: _text(headers, name) for name in headers if name.startswith("ce_")}
    attributes["datacontenttype"] = content_type
    attributes["data"] = value or None
    # The bytes are the record's value, whatever a header of that name says.
    attributes.pop("data_base64", None)
    return attributes


def _deeper_than(value: Any, levels: int) -> bool:
    level = [value]
    for _ in range(levels):
        level = [
            child
            for item in level
            if isinstance(item, (dict, list))
            for child in (item.values() if isinstance(item, dict) else item)
        ]
    return any(isinstance(item, (dict, list)) for item in level)


def _text(headers: Mapping[str, bytes], name: str) -> str | None:
    content = headers.get(name)
    if content is None:
        return None
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError:
        raise ContractError("bad_event", f"the header {name} is not UTF-8") from None


def _reason(error: ValidationError) -> str:
    """The first few complaints of pydantic in one line."""
    return "; ".join(f"{'.'.join(map(str, e['loc'])) or 'event'}: {e['msg']}" for e in error.errors()[:3])
