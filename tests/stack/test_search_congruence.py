"""The oracle and the real OpenSearch get the same documents and the same requests, and must give the same answers."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import numpy as np
import pytest

from agents.app import model_identity
from agents.index.connection import connect, ensure_indices
from agents.index.cursors import Cursors
from agents.index.found import Found
from agents.index.mappings import ModelIdentity
from agents.index.pace import BulkLimits
from agents.index.question import VectorQuestion
from agents.index.searcher import IndexSearcher
from agents.index.writer import IndexWriter
from agents.settings import IndexSettings
from models.manifest import load_manifest
from sightlog.documents import EmbeddingDocument
from sightlog.errors import ContractError
from sightlog.search import MAX_RESULTS, Hit, SearchRequest
from tests.index_behaviours import deletion, embedding
from tests.oracle import Answer, Oracle
from tests.random_searches import Searches, changes
from tests.same_answers import assert_same, assert_same_facts

#: With fewer than 1,000 objects, so that fused orders reach to the last of them, with and without pages.
IMAGES = 270
REQUESTS = 200
SEED = 20
TIMEOUT = 60.0
#: Cosines nearer than this may change places in float32.
_CLOSE = 2e-6


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where embeddings are kept from one use to the next."""
    return tmp_path_factory.mktemp("embeddings")


@pytest.fixture(scope="module")
def world(lone_opensearch: str, folder: Path) -> Oracle:
    """Everything is in the index `images` and its objects; the oracle has read the same."""
    manifest = load_manifest()
    uploads, later = changes(IMAGES, folder, manifest)

    async def write() -> None:
        async with connect(lone_opensearch) as client:
            index, model = IndexSettings.load(), model_identity(manifest)
            await ensure_indices(client, index, model)
            writer = IndexWriter(client, index, model)
            # All that happened to an image in one go: how rare a word is, Lucene counts with replaced documents too,
            # until it merges them away.
            await writer.write([*uploads, *later])

    asyncio.run(write())
    return Oracle([*uploads, *later])


@pytest.fixture
def cursors() -> Cursors:
    return Cursors(b"k" * 32, 600, load_manifest().digest)


@pytest.fixture
async def searcher(lone_opensearch: str, cursors: Cursors) -> AsyncIterator[IndexSearcher]:
    async with connect(lone_opensearch) as client:
        yield IndexSearcher(client, IndexSettings.load(), model_identity(load_manifest()), cursors)


async def test_random_requests_get_the_same_answers(
    world: Oracle, searcher: IndexSearcher, cursors: Cursors, folder: Path
) -> None:
    searches = Searches(load_manifest(), folder, SEED)
    covered: Counter[str] = Counter()
    for number in range(REQUESTS):
        request, question, expected = _clear(world, searches)
        where = f"request {number}: {request.model_dump(exclude_defaults=True)} {question}"
        found = await searcher.search(request, question, TIMEOUT)
        assert_same(request, await _all_pages(searcher, cursors, found), expected, where)
        assert_same_facts(request, found, expected, where)
        covered.update(_features(request, question, expected))
    few = {name: covered[name] for name in _FEATURES if covered[name] < 4}
    assert not few, f"hardly asked: {few}"


def _clear(world: Oracle, searches: Searches) -> tuple[SearchRequest, VectorQuestion | None, Answer]:
    """The next request whose answer does not hang on the last bits of a float."""
    while True:
        request, question = searches.next()
        if question is None:
            return request, question, world.answer(request, question)
        everything = request.model_copy(update={"min_relevance": None, "group": None, "lexical": None})
        cosines = np.array([hit.cosine for hit in world.answer(everything, question).hits])
        gaps = np.abs(np.diff(cosines))
        edge = request.min_relevance or -1
        relevances = np.array([question.relevance(cosine) or 0.0 for cosine in cosines])
        if not ((gaps > 1e-12) & (gaps < _CLOSE)).any() and not (np.abs(relevances - edge) < 1e-5).any():
            return request, question, world.answer(request, question)


async def _all_pages(searcher: IndexSearcher, cursors: Cursors, found: Found) -> list[Hit]:
    """The hits of a reply, and of all pages after it."""
    hits = list(found.hits)
    while found.cursor is not None:
        assert found.hits, "an empty page must be the last one"
        found = await searcher.turn_page(cursors.read(found.cursor), TIMEOUT)
        hits += found.hits
    return hits


def _features(request: SearchRequest, question: VectorQuestion | None, expected: Answer) -> Iterator[str]:
    """What a request covers, if anything was found."""
    if not expected.hits:
        yield "nothing found"
        return
    filters = request.filters
    yield request.target
    yield "words" if question is None else "near" if request.lexical is None else request.fusion
    yield "calibrated" if question and question.slope else "not calibrated"
    yield from (
        name for name in ("group", "pages", "exact", "include_vectors", "min_relevance") if getattr(request, name)
    )
    yield from request.facets
    yield from (f"classes.{name}" for name in ("any", "all", "none") if getattr(filters.classes, name))
    yield from (f"tags.{name}" for name in ("any", "all", "none") if getattr(filters.tags, name))
    yield from (name for name in _LIMITS if getattr(filters, name) is not None)
    yield from ("equals" if condition.equals is not None else "range" for condition in filters.metadata)
    if filters.classes.min_count > 1:
        yield "min_count"
    if expected.no_good_match:
        yield "no good match"
    if request.pages and len(expected.hits) > request.k:
        yield "several pages"


_LIMITS = (
    *("min_confidence", "captured_from", "captured_to", "uploaded_from", "uploaded_to"),
    *("min_width", "max_width", "min_height", "max_height", "min_area", "max_area"),
)
_FEATURES = (
    *("nothing found", "images", "objects", "words", "near", "rrf", "weighted", "calibrated", "not calibrated"),
    *("group", "pages", "exact", "include_vectors", "min_relevance", "no good match", "several pages"),
    *("classes", "tags", "captured_month", "uploaded_month"),
    *("classes.any", "classes.all", "classes.none", "min_count", "tags.any", "tags.all", "tags.none"),
    *("equals", "range", *_LIMITS),
)


#: Small vectors, so that more than pages go through is quickly written.
SMALL = ModelIdentity("small", "c" * 64, 8, ("circle",))
MANY = IndexSettings(images="many-images", objects="many-objects", refresh_interval="100ms")
NUMBER = MAX_RESULTS + 400


@pytest.fixture(scope="module")
def many(lone_opensearch: str) -> dict[str, EmbeddingDocument]:
    """More images than pages go through, by id; all of them say "common"."""
    images = [embedding(SMALL, f"many-{n:05}", version=n + 1, objects=0, tags=("common",)) for n in range(NUMBER)]

    async def write() -> None:
        async with connect(lone_opensearch) as client:
            await ensure_indices(client, MANY, SMALL)
            writer = IndexWriter(client, MANY, SMALL, BulkLimits(images=2000))
            await writer.write(images)

    asyncio.run(write())
    return {image.image_id: image for image in images}


@pytest.fixture
async def workers(lone_opensearch: str) -> AsyncIterator[tuple[IndexSearcher, IndexSearcher, Cursors]]:
    """Two workers with one key, of which the second keeps nothing from page to page."""
    cursors = Cursors(b"k" * 32, 600, SMALL.digest)
    async with connect(lone_opensearch) as client:
        kept, forgetful = (MANY.model_copy(update={"windows_kept": number}) for number in (32, 0))
        yield (
            IndexSearcher(client, kept, SMALL, cursors),
            IndexSearcher(client, forgetful, SMALL, cursors),
            cursors,
        )


async def test_pages_have_no_gaps_and_no_repeats_while_images_come_and_go(
    many: dict[str, EmbeddingDocument], workers: tuple[IndexSearcher, IndexSearcher, Cursors], lone_opensearch: str
) -> None:
    first, second, cursors = workers
    vector = embedding(SMALL, "question", version=99_999).vector
    near = await first.search(SearchRequest(text="near", k=1000, pages=True), VectorQuestion(vector), TIMEOUT)
    words = await first.search(SearchRequest(lexical="common", k=1000, pages=True), None, TIMEOUT)
    pages = {"near": [near], "words": [words]}
    async with connect(lone_opensearch) as client:
        writer = IndexWriter(client, MANY, SMALL)
        for turn in range(1, 10):
            # Of what was shown, and of what is still to come; and new ones that would be first of all.
            gone = [deletion(f"many-{n:05}", 100_000) for n in range(turn, NUMBER, 200)]
            new = [embedding(SMALL, f"new-{turn}-{n}", tags=("common", "common "), vector=vector) for n in range(20)]
            worker = (first, second)[turn % 2]
            following = [cursors.read(walk[-1].cursor or "") for walk in pages.values()]
            writing = asyncio.create_task(writer.write([*gone, *new]))
            turned = await asyncio.gather(*(worker.turn_page(page, TIMEOUT) for page in following))
            await writing
            for walk, page in zip(pages.values(), turned, strict=True):
                walk.append(page)
    for walk in pages.values():
        assert [len(page.hits) for page in walk] == [1000] * 10
        assert walk[-1].cursor is None
        ids = {hit.image_id for page in walk for hit in page.hits}
        assert len(ids) == MAX_RESULTS
        assert ids <= set(many)
    nearest = np.sort(np.stack([image.vector for image in many.values()]) @ vector)[::-1][:MAX_RESULTS]
    hits = [hit for page in pages["near"] for hit in page.hits]
    np.testing.assert_allclose([hit.cosine or 0.0 for hit in hits], nearest, atol=1e-6)
    np.testing.assert_allclose([many[hit.image_id].vector @ vector for hit in hits], nearest, atol=1e-6)


async def test_cursor_whose_point_in_time_is_gone_is_expired(
    many: dict[str, EmbeddingDocument], workers: tuple[IndexSearcher, IndexSearcher, Cursors], lone_opensearch: str
) -> None:
    first, second, cursors = workers
    found = await first.search(SearchRequest(lexical="common", pages=True), None, TIMEOUT)
    assert found.cursor is not None
    async with connect(lone_opensearch) as client:
        await client.delete_all_pits()
    for worker in (first, second):
        with pytest.raises(ContractError) as refused:
            await worker.turn_page(cursors.read(found.cursor), TIMEOUT)
        assert refused.value.code == "expired_cursor"
