"""The published schemas are those of the types, and real messages follow them."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import pytest

from sightlog.events import ImageEvent, new_deletion, new_update, new_upload
from sightlog.schemas import ASYNCAPI, CONTRACTS, render

SCHEMAS = Path(__file__).parents[2] / "schemas"


@pytest.mark.parametrize("name", CONTRACTS)
def test_schema_has_not_drifted_from_its_type(name: str) -> None:
    assert (SCHEMAS / f"{name}.json").read_bytes() == render(CONTRACTS[name]), "run: python -m sightlog.schemas schemas"


def test_no_schema_is_left_of_a_contract_that_is_gone() -> None:
    assert {path.stem for path in SCHEMAS.glob("*.json")} == {*CONTRACTS, ASYNCAPI}


def test_a_structured_event_follows_its_schema() -> None:
    value, _headers = new_upload(b"jpeg", source="/x", tags=("a",), metadata={"n": 1}).to_kafka(structured=True)
    schema = json.loads((SCHEMAS / "image.uploaded.v1.json").read_text())
    jsonschema.validate(json.loads(value), schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**json.loads(value), "type": "image.painted.v1"}, schema)


@pytest.mark.parametrize(
    ("name", "event"),
    [
        ("image.updated.v1", new_update(source="/x", subject="image", tags=(), metadata={"n": {"m": [1]}})),
        ("image.deleted.v1", new_deletion(source="/x", subject="image")),
    ],
)
def test_updates_and_deletions_follow_their_schemas(name: str, event: ImageEvent) -> None:
    value, _headers = event.to_kafka(structured=True)
    schema = json.loads((SCHEMAS / f"{name}.json").read_text())
    jsonschema.validate(json.loads(value), schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**json.loads(value), "type": "image.uploaded.v1"}, schema)
