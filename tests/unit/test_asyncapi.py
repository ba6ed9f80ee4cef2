"""The AsyncAPI document: valid by the official schema, true to the types and topics, with examples that hold."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from sightlog import message_examples as examples
from sightlog.asyncapi import document, render
from sightlog.dead_letters import DeadLetter, Resolution
from sightlog.documents import IndexReceipt, read_change
from sightlog.events import ImageEvent, OutgoingHeaders, parse_event
from sightlog.history import HISTORY_HEADER, History
from sightlog.reply_address import ReplyAddress
from sightlog.schemas import ASYNCAPI
from sightlog.search import SearchReply, SearchRequest
from stack.kafka import DEFAULT_TOPICS
from stack.settings import StackSettings

TESTS = Path(__file__).parents[1]
DOCUMENT = document()
CHANNELS, OPERATIONS, COMPONENTS = (DOCUMENT[part] for part in ("channels", "operations", "components"))
MESSAGES: dict[str, dict[str, Any]] = COMPONENTS["messages"]


@cache
def official() -> jsonschema.Draft7Validator:
    schema = json.loads((TESTS / "vendored" / "asyncapi" / "asyncapi-3.0.0.json").read_text())
    return jsonschema.Draft7Validator(schema)


def within(schema: dict[str, Any]) -> jsonschema.Draft7Validator:
    """Checks by a schema that refers to the document's components."""
    return jsonschema.Draft7Validator({"allOf": [schema], "components": COMPONENTS})


def header_schemas(message: dict[str, Any]) -> list[dict[str, Any]]:
    traits = [resolved(trait["$ref"]) for trait in message.get("traits", ())]
    return [part["headers"] for part in (message, *traits) if "headers" in part]


def resolved(reference: str) -> Any:
    assert reference.startswith("#/"), f"{reference} leads out of the document"
    found: Any = DOCUMENT
    for step in reference[2:].split("/"):
        found = found[step]
    return found


def references(part: Any) -> Iterator[str]:
    if isinstance(part, dict):
        if isinstance(part.get("$ref"), str):
            yield part["$ref"]
        for inner in part.values():
            yield from references(inner)
    elif isinstance(part, list):
        for inner in part:
            yield from references(inner)


def test_the_document_has_not_drifted_from_the_types() -> None:
    written = (TESTS.parent / "schemas" / f"{ASYNCAPI}.json").read_bytes()
    assert written == render(), "run: python -m sightlog.schemas schemas"


def test_the_official_schema_accepts_the_document() -> None:
    assert [f"{error.json_path}: {error.message}" for error in official().iter_errors(DOCUMENT)] == []


@pytest.mark.parametrize(
    "spoil",
    [
        lambda broken: broken.pop("info"),
        lambda broken: broken["operations"]["search"].update(action="answer"),
        lambda broken: broken["operations"]["search"]["reply"]["address"].update(location="kafka_replyTopic"),
        lambda broken: broken["channels"]["images"]["bindings"]["kafka"].update(partitions="four"),
        lambda broken: broken["components"]["messages"]["searchRequest"].update(correlationId="kafka_correlationId"),
        lambda broken: broken["components"]["schemas"]["SearchRequest"].update(type="object or so"),
    ],
    ids=["no info", "action", "reply address", "binding", "correlation id", "payload"],
)
def test_the_official_schema_refuses_what_is_wrong(spoil: Callable[[Any], object]) -> None:
    broken = copy.deepcopy(DOCUMENT)
    spoil(broken)
    assert not official().is_valid(broken)


def test_every_reference_leads_somewhere_within_the_document() -> None:
    for reference in references(DOCUMENT):
        resolved(reference)


def test_every_message_is_on_a_channel_and_every_channel_in_an_operation() -> None:
    sent = {reference for channel in CHANNELS.values() for reference in references(channel["messages"])}
    assert sent == {f"#/components/messages/{name}" for name in MESSAGES}
    used = {operation["channel"]["$ref"] for operation in OPERATIONS.values()}
    used.add(OPERATIONS["search"]["reply"]["channel"]["$ref"])
    assert used == {f"#/channels/{name}" for name in CHANNELS}


def test_topics_are_described_as_the_stack_makes_them() -> None:
    described: dict[str, tuple[int, dict[str, Any]]] = {}
    for channel in CHANNELS.values():
        binding = channel["bindings"]["kafka"]
        for tier in channel.get("parameters", {}).get("tier", {}).get("enum", [""]):
            if channel["address"] is not None:
                address = channel["address"].replace("{tier}", tier)
                described[address] = (binding["partitions"], binding.get("topicConfiguration", {}))
    made = {spec.name: (spec.partitions, dict(spec.config)) for spec in DEFAULT_TOPICS}
    replies = made.pop("search.replies")
    assert {name: (n, {k: str(v) for k, v in config.items()}) for name, (n, config) in described.items()} == made
    assert f"{replies[0]} partitions" in CHANNELS["replies"]["description"]


def test_consumer_groups_are_those_of_the_workers() -> None:
    groups = [
        operation["bindings"]["kafka"]["groupId"]["enum"][0]
        for operation in OPERATIONS.values()
        if "bindings" in operation
    ]
    assert sorted(groups) == sorted(f"sightlog-{name}" for name in StackSettings().worker_names)


@pytest.mark.parametrize("name", MESSAGES)
def test_examples_follow_the_schemas_of_their_message(name: str) -> None:
    message = MESSAGES[name]
    assert message["examples"]
    for example in message["examples"]:
        within(message["payload"]).validate(example["payload"])
        for schema in header_schemas(message):
            within(schema).validate(example["headers"])


@pytest.mark.parametrize(
    ("name", "read"),
    [
        ("embeddingDocument", read_change),
        ("imageUpdate", read_change),
        ("imageDeletion", read_change),
        ("indexReceipt", IndexReceipt.from_kafka),
        ("deadLetter", DeadLetter.from_kafka),
        ("resolution", Resolution.from_kafka),
        ("searchRequest", SearchRequest.from_kafka),
        ("searchReply", SearchReply.from_kafka),
    ],
)
def test_our_readers_read_the_examples_back(name: str, read: Callable[[bytes], Any]) -> None:
    for example in MESSAGES[name]["examples"]:
        contract = MESSAGES[name]["payload"]["$ref"].rpartition("/")[2]
        assert type(read(json.dumps(example["payload"]).encode())).__name__ == contract


def as_headers(example: dict[str, Any]) -> list[tuple[str, bytes]]:
    return [(name, content.encode("latin-1")) for name, content in example["headers"].items()]


@pytest.mark.parametrize(
    ("name", "event"),
    [
        (name + mode, event)
        for mode in ("", "Structured")
        for name, event in {
            "imageUploaded": examples.UPLOADED,
            "imageUpdated": examples.UPDATED,
            "imageDeleted": examples.DELETED,
        }.items()
    ],
)
def test_our_reader_reads_the_examples_of_events_back(name: str, event: ImageEvent) -> None:
    (example,) = MESSAGES[name]["examples"]
    payload = example["payload"]
    value = payload.encode() if isinstance(payload, str) else json.dumps(payload).encode()
    assert parse_event(value, as_headers(example)) == event


def test_our_reader_reads_the_example_of_a_reply_address_back() -> None:
    for example in MESSAGES["searchRequest"]["examples"]:
        assert ReplyAddress.from_headers(as_headers(example)) == examples.ADDRESS


def names(headers: OutgoingHeaders) -> set[str]:
    return {name for name, _content in headers}


def test_every_header_that_we_write_is_described() -> None:
    def described(message: str) -> set[str]:
        return {name for schema in header_schemas(MESSAGES[message]) for name in schema["properties"]}

    assert described("searchRequest") == names(examples.ADDRESS.to_headers())
    every = {"data": None, "subject": "x", "tenant": "x", "sha256": "a" * 64}
    _value, headers = examples.UPLOADED.model_copy(update=every).to_kafka()
    assert described("imageUploaded") == names(headers) | {HISTORY_HEADER}
    _value, headers = examples.UPDATED.model_copy(update={"subject": "x", "metadata": {}}).to_kafka()
    assert described("imageUpdated") == names(headers) | {HISTORY_HEADER}
    _value, headers = examples.DELETED.model_copy(update={"subject": "x"}).to_kafka()
    assert described("imageDeleted") == names(headers) | {HISTORY_HEADER}
    _value, headers = examples.UPLOADED.to_kafka(structured=True)
    assert described("imageUploadedStructured") == names(headers) | {HISTORY_HEADER}
    _name, written = examples.HISTORY.to_header()
    within({"$ref": "#/components/schemas/History"}).validate(json.loads(written))
    assert History.from_headers([(HISTORY_HEADER, written)]) == examples.HISTORY
