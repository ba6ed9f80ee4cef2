"""The indices and the documents in them fit together, for any model."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import orjson
import pytest
from opensearchpy.exceptions import NotFoundError, RequestError

from agents.delivery.failures import DependencyDown
from agents.index.connection import check_model, ensure_indices
from agents.index.documents import image_document, object_documents, stored_content
from agents.index.mappings import (
    DERIVED,
    VISIBLE,
    ModelIdentity,
    images_index,
    index_name,
    missing_engine,
    objects_index,
)
from agents.index.state import state_of, state_of_all
from agents.index.tokens import fact, ranked
from agents.settings import IndexSettings
from sightlog.errors import ConfigurationError
from tests.index_behaviours import deletion, embedding, update

MODEL = ModelIdentity("tiny", "a" * 64, 4, ("circle", "traffic light", "v1.5 / b"))
SETTINGS = IndexSettings()
RICH: dict[str, Any] = {
    "tenant": "t",
    "filename": "f",
    "dataref": "file:///f",
    "tags": ("a",),
    "captured_at": "2024-05-01T00:00:00Z",
    "metadata": {"a": 1},
    "content_type": "image/jpeg",
}


def test_every_field_of_the_documents_is_mapped() -> None:
    """The mapping is strict: an unknown field would make every document a dead letter."""
    state = state_of(embedding(MODEL, "image", objects=5, **RICH))
    images = images_index(SETTINGS, MODEL)["mappings"]["properties"]
    image = image_document("image", state)
    assert set(image) <= set(images)
    objects = objects_index(SETTINGS, MODEL)["mappings"]["properties"]
    for source in object_documents(state):
        assert set(source) <= set(objects)
    assert orjson.dumps(image, option=orjson.OPT_SERIALIZE_NUMPY)
    for hidden in (update("image", 2, tags=("a",), metadata={"a": 1}), deletion("image", 2)):
        assert set(image_document("image", state_of(hidden))) <= set(images)


@pytest.mark.parametrize("index", [images_index, objects_index])
def test_index_is_built_as_the_settings_say(index: Any) -> None:
    made = index(IndexSettings(m=8, ef_construction=64, shards=3, replicas=2), MODEL)
    vector = made["mappings"]["properties"]["vector"]
    assert (vector["dimension"], vector["space_type"]) == (4, "cosinesimil")
    assert vector["method"] == {"name": "hnsw", "engine": "lucene", "parameters": {"m": 8, "ef_construction": 64}}
    assert made["settings"]["index"]["number_of_shards"] == 3
    assert made["mappings"]["dynamic"] == "strict"
    assert made["mappings"]["_meta"]["model_digest"] == MODEL.digest
    assert not missing_engine(made)


def test_vector_field_without_an_engine_is_found() -> None:
    made = images_index(SETTINGS, MODEL)
    del made["mappings"]["properties"]["vector"]["method"]["engine"]
    assert missing_engine(made) == ["vector"]


def test_image_knows_what_was_detected() -> None:
    image = image_document("image", state_of(embedding(MODEL, "image", objects=4)))
    assert image["classes"] == list(MODEL.classes)
    assert image["ranked"] == ranked([("circle", 0.9), ("traffic light", 0.89), ("v1.5 / b", 0.88), ("circle", 0.87)])
    assert image["area"] == [pytest.approx(0.04)] * 4
    assert image["object_count"] == 4


def test_image_without_objects_has_nothing_detected() -> None:
    image = image_document("image", state_of(embedding(MODEL, "image", objects=0)))
    assert [image[name] for name in ("object_count", "classes", "ranked", "area")] == [0, [], [], []]


def test_facts_and_words_follow_tags_and_metadata() -> None:
    state = state_of_all([embedding(MODEL, "image", **RICH), update("image", 2, tags=("b",), metadata={"c": "D e"})])
    image, (one,) = image_document("image", state), object_documents(state)
    assert image["facts"] == one["facts"] == [fact("c", "D e")]
    assert (image["words"], one["words"]) == ("f b d e", "f b d e circle")


def test_derived_fields_are_not_kept_and_not_content() -> None:
    for index in (images_index, objects_index):
        assert index(SETTINGS, MODEL)["mappings"]["_source"] == {"excludes": list(DERIVED)}
    image = image_document("image", state_of(embedding(MODEL, "image", **RICH)))
    assert not set(DERIVED) & set(stored_content(image, []).image)


@pytest.mark.parametrize("index", [images_index, objects_index])
def test_no_publisher_decides_on_fields(index: Any) -> None:
    properties = index(SETTINGS, MODEL)["mappings"]["properties"]
    assert properties["metadata"] == {"type": "object", "enabled": False}
    many = replace(MODEL, classes=tuple(f"class-{number}" for number in range(5000)))
    assert len(index(SETTINGS, many)["mappings"]["properties"]) == len(properties) < 50


def test_object_carries_the_facts_of_its_image_and_its_relative_area() -> None:
    (source,) = object_documents(state_of(embedding(MODEL, "image", objects=1, **RICH)))
    assert (source["image_id"], source["tags"], source["metadata"]) == ("image", ("a",), {"a": 1})
    assert source["area"] == pytest.approx(0.04)


def test_absent_facts_are_left_out() -> None:
    image = image_document("image", state_of(embedding(MODEL, "image")))
    assert not {"tenant", "filename", "dataref", "tags", "captured_at", "metadata"} & set(image)


class Indices:
    """The part of a client that creates indices, moves aliases and reads mappings."""

    def __init__(self) -> None:
        self.indices = self
        self.mappings: dict[str, dict[str, Any]] = {}
        self.aliases: dict[str, set[str]] = {}
        self.filters: dict[str, Any] = {}
        self.put: list[set[str]] = []
        self.refusal: Exception | None = None

    async def exists(self, index: str) -> bool:
        return index in self.mappings

    async def create(self, index: str, body: dict[str, Any]) -> None:
        self.mappings[index] = {"mappings": body["mappings"]}

    async def get_alias(self, name: str) -> dict[str, Any]:
        if not self.aliases.get(name):
            raise NotFoundError(404, "alias_missing", {})
        return {index: {} for index in self.aliases[name]}

    async def update_aliases(self, body: dict[str, Any]) -> None:
        for action in body["actions"]:
            ((verb, at),) = action.items()
            held = self.aliases.setdefault(at["alias"], set())
            if "filter" in at:
                self.filters[at["alias"]] = at["filter"]
            (held.add if verb == "add" else held.remove)(at["index"])

    async def get_mapping(self, index: str) -> dict[str, Any]:
        names = [index] if index in self.mappings else await self.get_alias(index)
        return {name: self.mappings[name] for name in names}

    async def put_mapping(self, index: str, body: dict[str, Any]) -> None:
        if self.refusal is not None:
            raise self.refusal
        self.put.append(set(body["properties"]))
        self.mappings[index]["mappings"]["properties"] |= body["properties"]


OTHER = ModelIdentity("large", "b" * 64, 6, MODEL.classes)


async def test_index_of_an_earlier_version_gets_the_fields_that_it_lacks() -> None:
    client: Any = Indices()
    await ensure_indices(client, SETTINGS, MODEL)
    properties = client.mappings["images-aaaaaaaaaaaa"]["mappings"]["properties"]
    whole = dict(properties)
    del properties["tags_version"], properties["hidden"]
    await ensure_indices(client, SETTINGS, MODEL)
    assert properties == whole
    assert client.put == [{"tags_version", "hidden"}], "what is there may not be mapped again"


async def test_index_that_cannot_get_a_field_says_what_to_do() -> None:
    client: Any = Indices()
    await ensure_indices(client, SETTINGS, MODEL)
    del client.mappings["images-aaaaaaaaaaaa"]["mappings"]["properties"]["words"]
    client.refusal = RequestError(400, "mapper_parsing_exception", {})
    with pytest.raises(ConfigurationError, match=r"images-aaaaaaaaaaaa .* no words.*replay images.embedded"):
        await ensure_indices(client, SETTINGS, MODEL)


async def test_image_alias_shows_only_what_is_visible() -> None:
    client: Any = Indices()
    await ensure_indices(client, SETTINGS, MODEL)
    assert client.filters == {"images": VISIBLE}


async def test_missing_indices_are_created_behind_their_aliases() -> None:
    client: Any = Indices()
    with pytest.raises(DependencyDown, match="does not exist yet"):
        await check_model(client, SETTINGS, MODEL)
    await ensure_indices(client, SETTINGS, MODEL)
    assert client.aliases["images"] == {index_name("images", MODEL)} == {"images-aaaaaaaaaaaa"}
    await ensure_indices(client, SETTINGS, MODEL)


async def test_indices_of_another_model_are_refused() -> None:
    client: Any = Indices()
    await ensure_indices(client, SETTINGS, MODEL)
    with pytest.raises(
        ConfigurationError, match=r"images-aaaaaaaaaaaa holds vectors of model tiny.*SIGHTLOG_INDEX_MODEL_CHANGE"
    ):
        await ensure_indices(client, SETTINGS, OTHER)
    assert list(client.mappings) == ["images-aaaaaaaaaaaa", "objects-aaaaaaaaaaaa"]


async def test_a_switch_moves_the_aliases_and_keeps_the_other_models_indices() -> None:
    client: Any = Indices()
    switching = SETTINGS.model_copy(update={"model_change": "switch"})
    await ensure_indices(client, SETTINGS, MODEL)
    await ensure_indices(client, switching, OTHER)
    assert client.aliases == {"images": {"images-bbbbbbbbbbbb"}, "objects": {"objects-bbbbbbbbbbbb"}}
    assert client.mappings["images-bbbbbbbbbbbb"]["mappings"]["properties"]["vector"]["dimension"] == OTHER.dim
    await ensure_indices(client, switching, MODEL)
    assert client.aliases["images"] == {"images-aaaaaaaaaaaa"}
    assert len(client.mappings) == 4
