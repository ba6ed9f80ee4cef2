"""All topics as one AsyncAPI 3 document, made from the types; `python -m sightlog.schemas` writes it."""

from __future__ import annotations

from typing import Any

import orjson
from pydantic.json_schema import models_json_schema

from sightlog.asyncapi_messages import JSON, KAFKA_BINDING, SCHEMAS, Json, messages, traits
from sightlog.dead_letters import DeadLetter, Resolution
from sightlog.documents import EmbeddingDocument, ImageDeletion, ImageUpdate, IndexReceipt
from sightlog.events import ImageDeleted, ImageUpdated, ImageUploaded
from sightlog.fields import Contract
from sightlog.history import History
from sightlog.reply_address import REPLY_TOPIC
from sightlog.search import SearchReply, SearchRequest
from sightlog.settings import MAX_RECORD_BYTES, ClientSettings, Topics

#: Of the contracts: the last number for words, the one before it for new optional fields and messages.
VERSION = "1.0.0"

_CONTRACTS: tuple[type[Contract], ...] = (
    *(ImageUploaded, ImageUpdated, ImageDeleted, EmbeddingDocument, ImageUpdate, ImageDeletion, IndexReceipt),
    *(DeadLetter, Resolution, History, SearchRequest, SearchReply),
)

_EVENTS = tuple(f"image{what}{mode}" for what in ("Uploaded", "Updated", "Deleted") for mode in ("", "Structured"))
_LARGE: Json = {"max.message.bytes": MAX_RECORD_BYTES}
_BROKER_TIME: Json = {"message.timestamp.type": "LogAppendTime"}


def document() -> Json:
    """The document; it holds all that it refers to."""
    topics = Topics.model_construct()
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": "Sightlog",
            "version": VERSION,
            "description": "Visual search over event streams: images in through Kafka, found again seconds later. This"
            " says what Sightlog receives and sends; whoever publishes or asks does the opposite.",
            "license": {"name": "Apache-2.0"},
        },
        "defaultContentType": JSON,
        "servers": {
            "local": {
                "host": ClientSettings.model_fields["kafka"].default,
                "protocol": "kafka",
                "description": "as `sightlog up` starts it",
            }
        },
        "channels": _channels(topics),
        "operations": _operations(topics),
        "components": {"schemas": _schemas(), "messages": messages(topics), "messageTraits": traits()},
    }


def render() -> bytes:
    """The document as a JSON file."""
    return orjson.dumps(document(), option=orjson.OPT_INDENT_2 | orjson.OPT_SORT_KEYS | orjson.OPT_APPEND_NEWLINE)


def _channels(topics: Topics) -> Json:
    """The topics; the names of the channels are those of the settings."""
    retry = _channel(
        f"{topics.retry}.{{tier}}",
        "Events whose file is not there yet, each with the header `sightlog_history`; they go back to"
        f" `{topics.images}` once they have waited here as long as the tier says.",
        _EVENTS,
        partitions=1,
        config=_LARGE | _BROKER_TIME,
    )
    retry["parameters"] = {
        "tier": {
            "description": "how long an event waits; the tiers are set by SIGHTLOG_TOPIC_RETRY_TIERS",
            "enum": list(topics.retry_tiers),
        }
    }
    return {
        "images": _channel(
            topics.images,
            "Uploads, updates and deletions. All events of an image have its id as their key, so they keep their"
            " order: more partitions move images to other ones.",
            _EVENTS,
            partitions=4,
            config=_LARGE | _BROKER_TIME,
        ),
        "embedded": _channel(
            topics.embedded,
            "What was seen in each image, its updates and deletions: the index can be rebuilt from it alone.",
            ("embeddingDocument", "imageUpdate", "imageDeletion"),
            partitions=4,
            config=_LARGE,
        ),
        "indexed": _channel(
            topics.indexed,
            "Searches see the change from now on.",
            ("indexReceipt",),
            partitions=4,
        ),
        "retry": retry,
        "dead": _channel(
            topics.dead,
            f"Events that were given up, with the reason; open until `{topics.closed}` says otherwise.",
            ("deadLetter",),
            partitions=1,
            config=_LARGE | {"retention.ms": -1},
        ),
        "closed": _channel(
            topics.closed,
            "What somebody did about a dead letter.",
            ("resolution",),
            partitions=1,
            config={"retention.ms": -1},
        ),
        "requests": _channel(
            topics.requests,
            "Searches. They need no key: any search worker answers any of them.",
            ("searchRequest",),
            partitions=2,
        ),
        "replies": _channel(
            None,
            f"The topic that a request names in `{REPLY_TOPIC}`: `{topics.replies}`, with 16 partitions as"
            " `sightlog up` makes it, or one whose name goes on with a dot. Callers share it: each reads one"
            " partition, from its end on, and passes over correlation ids that are not its own.",
            ("searchReply",),
        ),
    }


def _channel(
    address: str | None,
    description: str,
    names: tuple[str, ...],
    *,
    partitions: int | None = None,
    config: Json | None = None,
) -> Json:
    binding: Json = {"bindingVersion": KAFKA_BINDING}
    if partitions is not None:
        binding["partitions"] = partitions
    if config is not None:
        binding["topicConfiguration"] = config
    return {
        "address": address,
        "description": description,
        "messages": {name: {"$ref": f"#/components/messages/{name}"} for name in names},
        "bindings": {"kafka": binding},
    }


def _operations(topics: Topics) -> Json:
    return {
        "receiveImages": _operation("receive", "images", _EVENTS, "Look at pictures.", group="vision"),
        "sendEmbedded": _operation(
            "send", "embedded", ("embeddingDocument", "imageUpdate", "imageDeletion"), "Say what was seen."
        ),
        "receiveEmbedded": _operation(
            "receive",
            "embedded",
            ("embeddingDocument", "imageUpdate", "imageDeletion"),
            "Bring it into the index.",
            group="indexer",
        ),
        "sendIndexed": _operation("send", "indexed", ("indexReceipt",), "Tell that searches see it."),
        "sendRetry": _operation("send", "retry", _EVENTS, "Put off an event whose file is not there."),
        "receiveRetry": _operation("receive", "retry", _EVENTS, "Hold it until its time has come.", group="retry"),
        "sendImages": _operation("send", "images", _EVENTS, "Bring back what waited, or what a person replays."),
        "sendDead": _operation("send", "dead", ("deadLetter",), "Give up an event, or a request without an address."),
        "sendClosed": _operation("send", "closed", ("resolution",), "Close a dead letter: `sightlog dlq`."),
        "search": {
            **_operation("receive", "requests", ("searchRequest",), "Answer a search.", group="search"),
            "description": "The reply, an error too, goes to the topic and partition that the request names, with its"
            " correlation id. After the deadline there is none.",
            "reply": {
                "address": {
                    "location": f"$message.header#/{REPLY_TOPIC}",
                    "description": f"`{topics.replies}`, or what SIGHTLOG_REPLY_TOPICS allows",
                },
                "channel": {"$ref": "#/channels/replies"},
                "messages": [{"$ref": "#/channels/replies/messages/searchReply"}],
            },
        },
    }


def _operation(action: str, channel: str, names: tuple[str, ...], summary: str, group: str | None = None) -> Json:
    operation: Json = {
        "action": action,
        "channel": {"$ref": f"#/channels/{channel}"},
        "messages": [{"$ref": f"#/channels/{channel}/messages/{name}"} for name in names],
        "summary": summary,
    }
    if group is not None:
        group_id = {"type": "string", "enum": [f"sightlog-{group}"]}
        operation["bindings"] = {"kafka": {"groupId": group_id, "bindingVersion": KAFKA_BINDING}}
    return operation


def _schemas() -> Json:
    _, together = models_json_schema(
        [(contract, "validation") for contract in _CONTRACTS], ref_template=f"{SCHEMAS}{{model}}"
    )
    schemas: Json = _as_draft_7(together["$defs"])
    return schemas


def _as_draft_7(schema: Any) -> Any:
    """AsyncAPI builds on JSON Schema draft 7, where tuples have another name."""
    if isinstance(schema, dict):
        return {"items" if name == "prefixItems" else name: _as_draft_7(value) for name, value in schema.items()}
    return [_as_draft_7(item) for item in schema] if isinstance(schema, list) else schema
