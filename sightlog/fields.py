"""Field types that several contracts share: packed vectors, packed bytes, UTC times."""

from __future__ import annotations

import base64
import binascii
from datetime import datetime, timezone
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    GetPydanticSchema,
    PlainSerializer,
    WithJsonSchema,
)
from pydantic_core import core_schema

FloatArray = npt.NDArray[np.float32]


class Contract(BaseModel):
    """Base of every public message: frozen, and open to optional fields of a newer writer."""

    model_config = ConfigDict(frozen=True, extra="ignore", populate_by_name=True, arbitrary_types_allowed=True)


def _unpack_vector(value: Any) -> FloatArray:
    if isinstance(value, str):
        try:
            return np.frombuffer(base64.b64decode(value, validate=True), dtype="<f4")
        except (binascii.Error, ValueError) as error:
            raise ValueError(f"not a base64 string of little-endian float32: {error}") from None
    try:
        vector = np.ascontiguousarray(value, dtype="<f4")
    except TypeError as error:  # pydantic turns only ValueError into a complaint about the message
        raise ValueError(f"not a vector: {error}") from None
    if vector.ndim != 1:
        raise ValueError(f"a vector has one axis, this one has shape {vector.shape}")
    return vector


def _pack_vector(vector: FloatArray) -> str:
    return base64.b64encode(vector.tobytes()).decode("ascii")


#: float32 [dim], little-endian; base64 in JSON, because JSON numbers cost four times the bytes and the time.
Vector = Annotated[
    FloatArray,
    GetPydanticSchema(lambda _source, _handler: core_schema.no_info_plain_validator_function(_unpack_vector)),
    PlainSerializer(_pack_vector, return_type=str),
    WithJsonSchema(
        {"type": "string", "contentEncoding": "base64", "description": "float32 [dim], packed little-endian"}
    ),
]


def _decode_base64(value: Any) -> Any:
    if isinstance(value, str):
        try:
            return base64.b64decode(value, validate=True)
        except binascii.Error as error:
            raise ValueError(f"not base64: {error}") from None
    return value


#: Bytes that travel as base64 (standard alphabet) in JSON.
Base64Bytes = Annotated[
    bytes,
    BeforeValidator(_decode_base64),
    PlainSerializer(lambda value: base64.b64encode(value).decode("ascii"), return_type=str, when_used="json"),
    WithJsonSchema({"type": "string", "contentEncoding": "base64"}),
]


def as_utc(value: datetime) -> datetime:
    """The same moment in UTC; without a zone it is taken as UTC. Raises ValueError outside the years 1 to 9999."""
    try:
        return value.replace(tzinfo=timezone.utc) if value.tzinfo is None else value.astimezone(timezone.utc)
    except OverflowError:  # pydantic turns only ValueError into a complaint about the message
        raise ValueError("a time outside the years 1 to 9999 in UTC") from None


#: A moment in UTC; a time without a zone is taken as UTC.
UtcTime = Annotated[datetime, AfterValidator(as_utc)]


def now() -> datetime:
    """The present moment in UTC."""
    return datetime.now(timezone.utc)
