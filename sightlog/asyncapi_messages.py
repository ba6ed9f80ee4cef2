"""The messages of the AsyncAPI document: payload, headers, Kafka key, and examples."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import orjson

from sightlog import message_examples as examples
from sightlog.dead_letters import DeadLetter, Resolution
from sightlog.documents import EmbeddingDocument, ImageDeletion, ImageUpdate, IndexReceipt
from sightlog.events import STRUCTURED_CONTENT_TYPE, ImageEvent, ImageUploaded
from sightlog.fields import Contract
from sightlog.history import HISTORY_HEADER
from sightlog.reply_address import CALLER, CORRELATION_ID, DEADLINE, REPLY_PARTITION, REPLY_TOPIC
from sightlog.search import SearchReply, SearchRequest
from sightlog.settings import Topics

SCHEMAS = "#/components/schemas/"
JSON = "application/json"
KAFKA_BINDING = "0.5.0"

_CLOUD_EVENTS = "CloudEvents 1.0 over Kafka, {} mode"
_BYTES = "as bytes; here one character stands for each"

Json = dict[str, Any]


def messages(topics: Topics) -> Json:
    """All messages by name, as `components.messages` has them."""
    image_key = _text("the image id")
    return {
        **_event_messages(),
        "embeddingDocument": _message(EmbeddingDocument, image_key, {"upload": _json(examples.EMBEDDED.to_kafka())}),
        "imageUpdate": _message(ImageUpdate, image_key, {"update": _json(examples.UPDATE.to_kafka())}),
        "imageDeletion": _message(ImageDeletion, image_key, {"deletion": _json(examples.DELETION.to_kafka())}),
        "indexReceipt": _message(IndexReceipt, image_key, {"receipt": _json(examples.RECEIPT.to_kafka())}),
        "deadLetter": _message(
            DeadLetter, _text("of the failed record"), {"letter": _json(examples.DEAD_LETTER.to_kafka())}
        ),
        "resolution": _message(
            Resolution, _text("the id of the letter"), {"resolution": _json(examples.RESOLUTION.to_kafka())}
        ),
        "searchRequest": {
            **_message(
                SearchRequest,
                _text("not read"),
                {name: _json(request.to_kafka()) for name, request in examples.REQUESTS.items()},
                _readable(examples.ADDRESS.to_headers()),
            ),
            "headers": _request_headers(topics),
            "correlationId": {"location": f"$message.header#/{CORRELATION_ID}"},
        },
        "searchReply": {
            **_message(
                SearchReply,
                None,
                {name: _json(reply.to_kafka()) for name, reply in examples.REPLIES.items()},
                {CORRELATION_ID: examples.ADDRESS.correlation_id.decode()},
            ),
            "headers": {
                "type": "object",
                "required": [CORRELATION_ID],
                "properties": {CORRELATION_ID: _text(f"of the request, {_BYTES}")},
            },
            "correlationId": {"location": f"$message.header#/{CORRELATION_ID}"},
        },
    }


def _event_messages() -> Json:
    events: tuple[tuple[str, ImageEvent, Json], ...] = (
        ("imageUploaded", examples.UPLOADED, _text("the file, JPEG, PNG or WebP; empty with `ce_dataref`")),
        ("imageUpdated", examples.UPDATED, {"type": ["string", "null"], "maxLength": 0}),
        ("imageDeleted", examples.DELETED, {"type": ["string", "null"], "maxLength": 0}),
    )
    made: Json = {}
    key = _text("the image id; without a key the attribute `subject`, then the SHA-256 of the file")
    for name, event, value in events:
        content_type = "image/jpeg" if isinstance(event, ImageUploaded) else "application/octet-stream"
        body, headers = event.to_kafka()
        made[name] = {
            "title": f"{event.type}, binary",
            "summary": _first_line(type(event)),
            "description": _CLOUD_EVENTS.format("binary"),
            "contentType": content_type,
            "headers": _cloud_event_headers(type(event)),
            "payload": value,
            "bindings": _message_binding(key),
            "examples": [{"name": "binary", "headers": _readable(headers), "payload": body.decode()}],
        }
        body, headers = event.to_kafka(structured=True)
        structured = _message(type(event), key, {"structured": _json(body)}, _readable(headers))
        made[f"{name}Structured"] = structured | {
            "title": f"{event.type}, structured",
            "description": _CLOUD_EVENTS.format("structured"),
            "contentType": STRUCTURED_CONTENT_TYPE,
            "traits": [{"$ref": "#/components/messageTraits/structuredCloudEvent"}],
        }
    return made


def traits() -> Json:
    """What messages have in common, as `components.messageTraits` has it."""
    content_type = _text(
        "tells this mode from the binary one", pattern=f"^{STRUCTURED_CONTENT_TYPE}".replace("+", "\\+")
    )
    return {
        "structuredCloudEvent": {
            "headers": {
                "type": "object",
                "required": ["content-type"],
                "properties": {"content-type": content_type} | _history_header(),
            }
        }
    }


def _message(
    contract: type[Contract], key: Json | None, payloads: Mapping[str, Any], headers: Json | None = None
) -> Json:
    said = {} if headers is None else {"headers": headers}
    return {
        "title": contract.__name__,
        "summary": _first_line(contract),
        "contentType": JSON,
        "payload": {"$ref": f"{SCHEMAS}{contract.__name__}"},
        "bindings": _message_binding(key),
        "examples": [{"name": name, **said, "payload": payload} for name, payload in payloads.items()],
    }


def _message_binding(key: Json | None) -> Json:
    return {"kafka": {"bindingVersion": KAFKA_BINDING, **({} if key is None else {"key": key})}}


def _first_line(contract: type[Contract]) -> str:
    return (contract.__doc__ or "").partition("\n")[0]


def _json(value: bytes) -> Any:
    return orjson.loads(value)


def _readable(headers: Iterable[tuple[str, str | bytes | None]]) -> Json:
    """Bytes of headers as text, one character each where they are no text."""
    return {name: content.decode("latin-1") if isinstance(content, bytes) else content for name, content in headers}


def _text(description: str, **more: Any) -> Json:
    return {"type": "string", "description": description, **more}


def _cloud_event_headers(event: type[ImageEvent]) -> Json:
    """The attributes of an event as headers: all of them are text."""
    fields: Json = event.model_json_schema()["properties"]
    headers: Json = {}
    if "datacontenttype" in fields:
        headers["content-type"] = _text("of the file, for example image/jpeg")
    for name, field in fields.items():
        if name in ("data_base64", "datacontenttype"):
            continue
        kinds = [field, *field.get("anyOf", ())]
        header = {"type": "string"}
        for kind in kinds:
            header |= {key: kind[key] for key in ("description", "format", "pattern", "maxLength") if key in kind}
        if name == "tags":
            header["description"] = "separated by commas"
        if name == "metadata":
            header |= {"description": "a JSON object", "contentMediaType": JSON}
        headers[f"ce_{name}"] = header
    return {
        "type": "object",
        "required": ["ce_specversion", "ce_type", "ce_id", "ce_source"],
        "properties": headers | _history_header(),
    }


def _history_header() -> Json:
    told = "what became of an event that comes back, as JSON of the schema History; nobody but Sightlog writes it"
    return {HISTORY_HEADER: _text(told, contentMediaType=JSON)}


def _request_headers(topics: Topics) -> Json:
    return {
        "type": "object",
        "required": [REPLY_TOPIC, CORRELATION_ID],
        "properties": {
            REPLY_TOPIC: _text(f"`{topics.replies}`, or another that SIGHTLOG_REPLY_TOPICS allows", minLength=1),
            REPLY_PARTITION: _text(
                f"where the caller reads, a big-endian integer of 4 bytes, {_BYTES}; any partition if absent",
                minLength=4,
                maxLength=4,
            ),
            CORRELATION_ID: _text(f"of the caller's choice, {_BYTES}; comes back as it is", minLength=1),
            DEADLINE: _text(
                "milliseconds since 1970, in decimal digits: after it no reply is wanted, and none comes",
                pattern="^[0-9]+$",
            ),
            CALLER: _text("on whose behalf, where one client asks for many: callers take turns"),
        },
    }
