"""What the index writer promises, on the real OpenSearch; the unit tests hold the fake to the same behaviours."""

from __future__ import annotations

import asyncio
import uuid
from typing import Any

import pytest

from agents.delivery.retry import Backoff
from agents.index.connection import connect, ensure_indices
from agents.index.cursors import Cursors
from agents.index.known import KnownImages
from agents.index.mappings import ModelIdentity, index_name
from agents.index.pace import BulkLimits
from agents.index.question import VectorQuestion
from agents.index.searcher import IndexSearcher
from agents.index.writer import IndexWriter, Written
from agents.settings import AgentSettings, IndexSettings
from sightlog.documents import EmbeddingDocument
from sightlog.errors import ConfigurationError
from sightlog.filters import SearchFilters
from sightlog.search import SearchRequest
from tests.index_behaviours import BEHAVIOURS, Behaviour, assert_holds, deletion, embedding, new_id, update

MODEL = ModelIdentity("tiny", "a" * 64, 8, ("circle", "square", "star"))
#: Refreshed often, because every write waits for it.
INDEX = IndexSettings(images="behaviour-images", objects="behaviour-objects", refresh_interval="100ms")


@pytest.fixture
async def opensearch(settings: AgentSettings) -> Any:
    async with connect(settings.opensearch) as client:
        await ensure_indices(client, INDEX, MODEL)
        yield client


@pytest.mark.parametrize("behaviour", BEHAVIOURS, ids=lambda behaviour: behaviour.__name__)
async def test_behaviour(behaviour: Behaviour, opensearch: Any) -> None:
    await behaviour(opensearch, INDEX, MODEL)


async def test_no_search_finds_what_is_deleted_or_not_uploaded_yet(opensearch: Any) -> None:
    writer, kept, gone, pending = IndexWriter(opensearch, INDEX, MODEL), new_id(), new_id(), new_id()
    tag = f"tag-{gone}"
    await writer.write([embedding(MODEL, id_, objects=2, tags=(tag,)) for id_ in (kept, gone)])
    await writer.write([deletion(gone, 2), update(pending, 2, tags=(tag,))])
    searcher = IndexSearcher(opensearch, INDEX, MODEL, Cursors(b"k" * 32, 60, MODEL.digest))
    question = VectorQuestion(embedding(MODEL, "any").vector)
    for target in ("images", "objects"):
        for filters in (SearchFilters(), SearchFilters(tags=(tag,))):
            request = SearchRequest(text="any", target=target, k=1000, filters=filters)
            found = {hit.image_id for hit in (await searcher.search(request, question, 30)).hits}
            assert kept in found
            assert not {gone, pending} & found
    everything = {"query": {"match_all": {}}, "size": 1000}
    for alias in (INDEX.images, INDEX.objects):
        hits = (await opensearch.search(index=alias, body=everything))["hits"]["hits"]
        assert not {gone, pending} & {hit["_source"]["image_id"] for hit in hits}
        for image_id, expected in ((kept, True), (gone, False), (pending, False)):
            query = {"query": {"term": {"image_id": image_id}}}
            assert bool((await opensearch.count(index=alias, body=query))["count"]) == expected


async def test_what_was_seen_in_the_same_bytes_is_found(opensearch: Any) -> None:
    documents = [embedding(MODEL, new_id(), objects=n, sha256=uuid.uuid4().hex * 2) for n in (0, 3)]
    gone = embedding(MODEL, new_id(), sha256=uuid.uuid4().hex * 2)
    await IndexWriter(opensearch, INDEX, MODEL).write([*documents, *[gone] * 2, deletion(gone.image_id, 2)])
    known = KnownImages(opensearch, INDEX, MODEL)
    found = await asyncio.gather(*(known.find(document.sha256) for document in (*documents, gone)))
    assert found[2] is None
    for document, seen in zip(documents, found, strict=False):
        assert seen is not None
        assert seen.embedding.tobytes() == document.vector.tobytes()
        assert seen.object_embeddings.tobytes() == b"".join(d.vector.tobytes() for d in document.detections)
        assert [MODEL.classes[number] for number in seen.class_ids] == [d.class_name for d in document.detections]


async def test_a_node_that_refuses_bulks_gets_smaller_ones_until_all_is_written(opensearch: Any) -> None:
    """Bulks under way may take a tenth of the heap; of these a few have more."""
    heap = (await opensearch.nodes.stats(metric="jvm"))["nodes"]
    (node,) = heap.values()
    limit = node["jvm"]["mem"]["heap_max_in_bytes"] // 10
    metadata = {f"note-{number}": "n" * 30_000 for number in range(10)}
    documents = [embedding(MODEL, new_id(), objects=2, metadata=metadata) for _ in range(2 * limit // 900_000)]
    batches = [documents[start : start + 16] for start in range(0, len(documents), 16)]
    limits = BulkLimits(images=16, bytes=limit // 4, bulks=16)
    writer = IndexWriter(opensearch, INDEX, MODEL, limits, Backoff(0.05, 0.2))
    shares = []

    async def write(batch: list[EmbeddingDocument]) -> None:
        assert await writer.write(batch) == [Written()] * len(batch)
        shares.append(writer.pace.share)

    await asyncio.gather(*map(write, batches))
    assert min(shares) < 1
    for document in documents[:: len(documents) // 5]:
        await assert_holds(opensearch, INDEX, document)


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
