"""The public contracts as JSON Schema, and all topics as AsyncAPI; `python -m sightlog.schemas FOLDER` writes them."""

from __future__ import annotations

import sys
from pathlib import Path

import orjson
from pydantic.json_schema import GenerateJsonSchema

from sightlog import asyncapi
from sightlog.dead_letters import DeadLetter, Resolution
from sightlog.documents import EmbeddingDocument, ImageDeletion, ImageUpdate, IndexReceipt
from sightlog.events import EVENTS
from sightlog.fields import Contract
from sightlog.search import SearchReply, SearchRequest

#: File name -> contract. The names of the image events' schemas are the event types; structured mode has this form.
CONTRACTS: dict[str, type[Contract]] = {
    **EVENTS,
    "embedding-document.v1": EmbeddingDocument,
    "image-update.v1": ImageUpdate,
    "image-deletion.v1": ImageDeletion,
    "index-receipt.v1": IndexReceipt,
    "search-request.v1": SearchRequest,
    "search-reply.v1": SearchReply,
    "dead-letter.v1": DeadLetter,
    "dead-letter-resolution.v1": Resolution,
}

#: File name of the document beside the schemas.
ASYNCAPI = "asyncapi"


def render(contract: type[Contract]) -> bytes:
    """The schema of a contract as it is on the wire, as a JSON file."""
    schema = contract.model_json_schema(by_alias=True, mode="validation")
    document = {"$schema": GenerateJsonSchema.schema_dialect, **schema}
    return orjson.dumps(document, option=orjson.OPT_INDENT_2 | orjson.OPT_SORT_KEYS | orjson.OPT_APPEND_NEWLINE)


def write(folder: Path) -> None:
    """Write all schemas and the AsyncAPI document into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, contract in CONTRACTS.items():
        (folder / f"{name}.json").write_bytes(render(contract))
    (folder / f"{ASYNCAPI}.json").write_bytes(asyncapi.render())


if __name__ == "__main__":
    write(Path(sys.argv[1] if len(sys.argv) > 1 else "schemas"))
