"""Searches on the real OpenSearch: what it makes of filters and words, in time, and of what it will not do.

That the answers are right, `test_search_congruence.py` shows against an oracle.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator
from typing import Any

import numpy as np
import pytest

from agents.index.connection import connect, ensure_indices
from agents.index.cursors import Cursors
from agents.index.mappings import ModelIdentity
from agents.index.question import VectorQuestion
from agents.index.searcher import IndexSearcher
from agents.index.writer import IndexWriter
from agents.settings import IndexSettings
from sightlog.errors import ContractError
from sightlog.filters import SearchFilters
from sightlog.search import SearchRequest
from tests.index_behaviours import embedding, new_id, update

MODEL = ModelIdentity("tiny", "d" * 64, 64, tuple(f"class-{number}" for number in range(80)))
INDEX = IndexSettings(images="searched-images", objects="searched-objects", refresh_interval="100ms")
TIMEOUT = 60.0


@pytest.fixture
async def opensearch(lone_opensearch: str) -> AsyncIterator[Any]:
    async with connect(lone_opensearch) as client:
        await ensure_indices(client, INDEX, MODEL)
        yield client


@pytest.fixture
async def searcher(opensearch: Any) -> IndexSearcher:
    return IndexSearcher(opensearch, INDEX, MODEL, Cursors(b"k" * 32, 60, MODEL.digest))


@pytest.fixture
async def writer(opensearch: Any) -> IndexWriter:
    return IndexWriter(opensearch, INDEX, MODEL)


def question(seed: int = 0, dim: int = MODEL.dim) -> VectorQuestion:
    vector = np.random.default_rng(seed).standard_normal(dim).astype(np.float32)
    return VectorQuestion(vector / np.linalg.norm(vector))


async def test_small_filtered_sets_are_searched_exactly(
    opensearch: Any, searcher: IndexSearcher, writer: IndexWriter
) -> None:
    """Vectors without any structure, on which a graph is at its worst."""
    tag = f"crowd-{uuid.uuid4().hex}"
    rng = np.random.default_rng(4)
    vectors = rng.standard_normal((4000, MODEL.dim)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    documents = [
        embedding(
            MODEL,
            f"{tag}-{number:04}",
            objects=0,
            vector=vector,
            tags=(tag, *(f"{tag}-{share}" for share in (20, 100, 400) if number % share == 0)),
        )
        for number, vector in enumerate(vectors)
    ]
    for start in range(0, len(documents), 500):
        await writer.write(documents[start : start + 500])
    await opensearch.indices.forcemerge(index=INDEX.images, params={"max_num_segments": 1})
    for share in (20, 100, 400):
        few = np.arange(0, len(vectors), share)
        for seed in range(10):
            asked = question(seed)
            nearest = few[np.argsort(-(vectors[few] @ asked.vector))[:10]]
            request = SearchRequest(text="x", k=10, filters=SearchFilters.model_validate({"tags": [f"{tag}-{share}"]}))
            found = await searcher.search(request, asked, TIMEOUT)
            assert [hit.image_id for hit in found.hits] == [f"{tag}-{number:04}" for number in nearest]
            everything = request.model_copy(update={"filters": SearchFilters(), "exact": True, "k": 1})
            (best,) = (await searcher.search(everything, asked, TIMEOUT)).hits
            assert best.cosine == pytest.approx((vectors @ asked.vector).max(), abs=1e-6)


async def test_filters_and_words_follow_updates(searcher: IndexSearcher, writer: IndexWriter) -> None:
    image_id, before, after = new_id(), f"x{uuid.uuid4().hex}", f"y{uuid.uuid4().hex}"
    await writer.write([embedding(MODEL, image_id, objects=2, tags=(before,), metadata={"serial": before})])

    async def finds(value: str) -> list[int]:
        counts = []
        for target in ("images", "objects"):
            filters = {"metadata": [{"field": "serial", "equals": value}]}
            for request in (
                SearchRequest(lexical=f"No_{value.upper()}", target=target),
                SearchRequest(text="x", target=target, filters=filters),
            ):
                found = await searcher.search(request, question() if request.text else None, TIMEOUT)
                assert {hit.image_id for hit in found.hits} <= {image_id}
                counts.append(len(found.hits))
        return counts

    assert await finds(before) == [1, 1, 2, 2]
    await writer.write([update(image_id, 2, tags=(), metadata={"serial": [after]})])
    assert (await finds(before), await finds(after)) == ([0, 0, 0, 0], [1, 1, 2, 2])


async def test_hostile_metadata_can_be_found_by_the_rest_of_it(searcher: IndexSearcher, writer: IndexWriter) -> None:
    mark = uuid.uuid4().hex
    metadata = {"mark": mark, **{f"key-{number}": "v" * 40_000 for number in range(20)}, "n" * 40_000: {"deep": ["x"]}}
    await writer.write([embedding(MODEL, mark, objects=1, metadata=metadata)])
    for target in ("images", "objects"):
        conditions = [{"field": "mark", "equals": mark}, {"field": "key-7", "at_least": "v" * 256}]
        filters = SearchFilters.model_validate({"metadata": conditions})
        found = await searcher.search(SearchRequest(text="x", target=target, filters=filters), question(), TIMEOUT)
        assert [hit.metadata == metadata for hit in found.hits] == [True]


@pytest.mark.parametrize("target", ["images", "objects"])
async def test_as_many_conditions_as_a_request_may_have_are_answered(searcher: IndexSearcher, target: str) -> None:
    names = [f"{number}-{'t' * 1000}" for number in range(256)]
    filters = {
        "tags": {"any": names, "all": [f"a{name}" for name in names[:128]], "none": [f"n{name}" for name in names]},
        "classes": {"any": list(MODEL.classes[:40]), "none": list(MODEL.classes[40:])},
        "min_confidence": 0.5,
        "metadata": [{"field": f"{number}" + "f" * 250, "at_least": "a" * 256, "below": "b"} for number in range(16)],
        "captured_from": "0001-01-01T00:00:00Z",
        "captured_to": "9999-12-31T23:59:59Z",
        "uploaded_from": "0001-01-01T00:00:00Z",
        "uploaded_to": "9999-12-31T23:59:59Z",
        "min_width": 2**60,
        "max_width": 2**80,
        "max_area": 1,
    }
    words = " ".join(f"word{number}" for number in range(200))
    for lexical in (None, words):
        request = SearchRequest.model_validate({"text": "x", "target": target, "filters": filters, "lexical": lexical})
        found = await searcher.search(request, question(), TIMEOUT)
        assert (found.hits, found.partial) == ((), False)


async def test_searches_together_fail_each_for_itself(opensearch: Any, searcher: IndexSearcher) -> None:
    """One of them cannot be carried out, one cannot even be read."""
    wrong = (question(dim=3), VectorQuestion(np.full(MODEL.dim, np.nan, np.float32)))
    asked = [question(1), *wrong, question(2)]
    request = SearchRequest(text="x")
    found = await asyncio.gather(*(searcher.search(request, one, TIMEOUT) for one in asked), return_exceptions=True)
    for refused in found[1:3]:
        assert isinstance(refused, ContractError)
        assert refused.code == "bad_request"
    assert [type(one).__name__ for one in found] == ["Found", "ContractError", "ContractError", "Found"]


async def test_node_holds_no_more_points_in_time_than_it_may(
    opensearch: Any, searcher: IndexSearcher, writer: IndexWriter
) -> None:
    await writer.write([embedding(MODEL, new_id(), version=number, objects=0) for number in range(1, 4)])

    async def held() -> int:
        (node,) = (await opensearch.nodes.stats(metric="indices", index_metric="search"))["nodes"].values()
        return int(node["indices"]["search"]["point_in_time_current"])

    await opensearch.delete_all_pits()
    request = SearchRequest(text="x", k=1, pages=True)
    (await opensearch.cluster.put_settings(body={"persistent": {"search.max_open_pit_context": 2}}))
    try:
        assert (await searcher.search(request, question(), TIMEOUT)).cursor
        asked = [searcher.search(request, question(), TIMEOUT) for _ in range(3)]
        with pytest.raises(ContractError) as refused:
            await asyncio.gather(*asked)
        assert refused.value.code == "too_many_cursors"
        before = await held()
        assert before
        found = await searcher.search(SearchRequest(text="x", k=5), question(), TIMEOUT)
        assert found.hits, "searches without pages need no point in time"
    finally:
        await opensearch.cluster.put_settings(body={"persistent": {"search.max_open_pit_context": None}})
        await opensearch.delete_all_pits()
    everything = SearchRequest(text="x", k=1000, pages=True, filters=SearchFilters.model_validate({"tags": ["none"]}))
    assert (await searcher.search(everything, question(), TIMEOUT)).cursor is None
    await asyncio.gather(*searcher._closing)
    assert await held() == 0, "nobody reads on, so nothing is held"


async def test_vectors_are_those_that_were_indexed(searcher: IndexSearcher, writer: IndexWriter) -> None:
    document = embedding(MODEL, new_id(), objects=2)
    await writer.write([document])
    assert (await searcher.vector_of("image", document.image_id)).tobytes() == document.vector.tobytes()
    of_object = await searcher.vector_of("object", f"{document.image_id}#1")
    assert of_object.tobytes() == document.detections[1].vector.tobytes()
    await writer.write([update("pending", 1, tags=("a",))])
    for kind, id_ in (("image", "pending"), ("image", f"{document.image_id}#1"), ("object", f"{document.image_id}#2")):
        with pytest.raises(ContractError) as refused:
            await searcher.vector_of(kind, id_)  # type: ignore[arg-type]
        assert refused.value.code == f"unknown_{kind}"
