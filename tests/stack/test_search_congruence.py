"""The oracle and the real OpenSearch get the same documents and the same requests, and must give the same answers."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest

from agents.app import model_identity
from agents.index.connection import connect, ensure_indices
from agents.index.cursors import Cursors
from agents.index.found import Found
from agents.index.question import VectorQuestion
from agents.index.searcher import IndexSearcher
from agents.index.writer import IndexWriter
from agents.settings import AgentSettings, IndexSettings
from load_tests.running import free_port_offset
from models.manifest import load_manifest
from sightlog.search import Hit, SearchRequest
from stack.local import LocalStack
from stack.settings import StackSettings
from tests.oracle import Answer, Expected, Oracle
from tests.random_searches import Searches, changes

#: With fewer than 1,000 objects, so that fused orders reach to the last of them, with and without pages.
IMAGES = 270
REQUESTS = 200
SEED = 20
TIMEOUT = 60.0
#: Cosines nearer than this may change places in float32.
_CLOSE = 2e-6


@pytest.fixture(scope="module")
def opensearch(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """URL of an OpenSearch of our own, with nothing else around it."""
    alone = LocalStack(
        tmp_path_factory.mktemp("opensearch"),
        port_offset=free_port_offset(),
        workers=False,
        settings=StackSettings(components=("opensearch",)),
    )
    alone.up()
    yield AgentSettings.load(data_dir=alone.data_dir).opensearch
    alone.down(wipe=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where embeddings are kept from one use to the next."""
    return tmp_path_factory.mktemp("embeddings")


@pytest.fixture(scope="module")
def world(opensearch: str, folder: Path) -> Oracle:
    """Everything is in the index `images` and its objects; the oracle has read the same."""
    manifest = load_manifest()
    uploads, later = changes(IMAGES, folder, manifest)

    async def write() -> None:
        async with connect(opensearch) as client:
            index, model = IndexSettings.load(), model_identity(manifest)
            await ensure_indices(client, index, model)
            writer = IndexWriter(client, index, model)
            for part in (uploads, later):
                await writer.write(part)
            # How rare a word is, OpenSearch counts with replaced documents until they are flushed and merged away.
            both = f"{index.images},{index.objects}"
            await client.indices.flush(index=both, params={"force": "true"})
            await client.indices.forcemerge(index=both, params={"max_num_segments": 1})

    asyncio.run(write())
    return Oracle([*uploads, *later])


@pytest.fixture
def cursors() -> Cursors:
    return Cursors(b"k" * 32, 600, load_manifest().digest)


@pytest.fixture
async def searcher(opensearch: str, cursors: Cursors) -> AsyncIterator[IndexSearcher]:
    async with connect(opensearch) as client:
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


def assert_same(request: SearchRequest, hits: Sequence[Hit], expected: Answer, where: str) -> None:
    """The same ids in the same order; documents of one score may stand for each other."""
    wanted = expected.hits if request.pages else expected.hits[: request.k]
    by_id = {hit.id: hit for hit in expected.hits}
    ids = [_id(hit) for hit in hits]
    assert len(set(ids)) == len(ids), f"repeated: {where}"
    assert set(ids) <= set(by_id), f"never expected {set(ids) - set(by_id)}: {where}"
    # Weighted scores of two documents may be as near as float32 is coarse; ranks are exact.
    close = 1e-6 if request.fusion == "weighted" else 1e-12
    differing = [
        place
        for place, (id_, one) in enumerate(zip(ids, wanted, strict=False))
        if abs(by_id[id_].score - one.score) > close
    ]
    assert not differing, (
        f"at {differing[0]} of {len(wanted)} {ids[differing[0]]}, not {wanted[differing[0]].id}: {where}"
    )
    assert len(ids) == len(wanted), where
    for hit in hits:
        _assert_like(hit, by_id[_id(hit)], request, where)


def _assert_like(hit: Hit, expected: Expected, request: SearchRequest, where: str) -> None:
    image, detection = expected.thing.image, expected.thing.detection
    for name, value in (
        ("score", expected.score),
        ("cosine", expected.cosine),
        ("relevance", expected.relevance),
        ("lexical_score", expected.lexical),
    ):
        assert getattr(hit, name) == (None if value is None else pytest.approx(value, abs=2e-5)), f"{name}: {where}"
    assert (hit.image_id, hit.width, hit.height) == (image.image_id, image.width, image.height), where
    assert (hit.tags, hit.metadata, hit.uploaded_at) == (image.tags, image.metadata, image.uploaded_at), where
    assert hit.captured_at == image.captured_at, where
    if detection is not None:
        assert (hit.class_name, hit.box) == (detection.class_name, detection.box), where
        assert hit.confidence == pytest.approx(detection.confidence), where
    assert (hit.vector is not None) == request.include_vectors, where
    if hit.vector is not None:
        np.testing.assert_allclose(hit.vector, (detection or image).vector, atol=1e-6)


def assert_same_facts(request: SearchRequest, found: Found, expected: Answer, where: str) -> None:
    facets = {name: {one.value: one.count for one in counts} for name, counts in found.facets.items()}
    assert facets == expected.facets, where
    for name, counts in found.facets.items():
        by_name = name.endswith("month")
        assert list(counts) == sorted(counts, key=lambda one: (0 if by_name else -one.count, one.value)), where
    assert found.no_good_match == expected.no_good_match, where
    assert not found.partial, where
    if not request.pages:
        assert found.cursor is None, where


def _id(hit: Hit) -> str:
    return hit.object_id or hit.image_id


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
