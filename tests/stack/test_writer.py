"""What the index writer promises, on the real OpenSearch; the unit tests hold the fake to the same behaviours."""

from __future__ import annotations

from typing import Any

import pytest

from agents.index.connection import connect, ensure_indices
from agents.index.mappings import ModelIdentity, index_name
from agents.settings import AgentSettings, IndexSettings
from sightlog.errors import ConfigurationError
from tests.index_behaviours import BEHAVIOURS, Behaviour

MODEL = ModelIdentity("tiny", "a" * 64, 8, ("circle", "square", "star"))
INDEX = IndexSettings(images="behaviour-images", objects="behaviour-objects")


@pytest.fixture
async def opensearch(settings: AgentSettings) -> Any:
    async with connect(settings.opensearch) as client:
        await ensure_indices(client, INDEX, MODEL)
        yield client


@pytest.mark.parametrize("behaviour", BEHAVIOURS, ids=lambda behaviour: behaviour.__name__)
async def test_behaviour(behaviour: Behaviour, opensearch: Any) -> None:
    await behaviour(opensearch, INDEX, MODEL)


async def test_indices_of_another_model_are_refused(opensearch: Any) -> None:
    other = ModelIdentity("other", "b" * 64, 8, MODEL.classes)
    with pytest.raises(ConfigurationError, match="holds vectors of model tiny"):
        await ensure_indices(opensearch, INDEX, other)


async def test_a_switch_moves_the_aliases_and_back(opensearch: Any) -> None:
    index = IndexSettings(images="switched-images", objects="switched-objects", model_change="switch")
    other = ModelIdentity("other", "b" * 64, 16, MODEL.classes)
    await ensure_indices(opensearch, index, MODEL)
    for model in (other, other, MODEL):
        await ensure_indices(opensearch, index, model)
        ((name, body),) = (await opensearch.indices.get_mapping(index=index.images)).items()
        assert name == index_name(index.images, model)
        assert body["mappings"]["properties"]["vector"]["dimension"] == model.dim
    assert await opensearch.indices.exists(index=index_name(index.images, other))


async def test_indices_are_hnsw_with_cosine_and_the_settings(opensearch: Any) -> None:
    for alias in (INDEX.images, INDEX.objects):
        ((name, body),) = (await opensearch.indices.get(index=alias)).items()
        vector = body["mappings"]["properties"]["vector"]
        assert name.startswith(f"{alias}-")
        assert vector["space_type"] == "cosinesimil"
        assert vector["method"]["name"] == "hnsw"
        assert vector["method"]["parameters"] == {"m": 16, "ef_construction": 512}
        assert body["settings"]["index"]["number_of_shards"] == "2"
        assert body["settings"]["index"]["number_of_replicas"] == "0"
