"""From a search request to what OpenSearch is asked, and from its answers to what was found."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import numpy as np
import pytest
from opensearchpy.exceptions import ConnectionTimeout, NotFoundError, TransportError

from agents.delivery.failures import DependencyDown
from agents.index.cursors import Cursors
from agents.index.found import Found
from agents.index.mappings import ModelIdentity
from agents.index.question import VectorQuestion
from agents.index.searcher import IndexSearcher
from agents.settings import IndexSettings
from sightlog.errors import ContractError
from sightlog.search import FacetCount, SearchRequest

MODEL = ModelIdentity("tiny", "a" * 64, 2, ("circle", "star"))
SETTINGS = IndexSettings(images="pictures", objects="things", ef_search=100, oversampling=1.5)
TIMEOUT = 60.0
#: Relevance 0.5 at a cosine of 0.5.
CALIBRATED = VectorQuestion(np.array([1, 0], np.float32), slope=8.0, intercept=-4.0)
PLAIN = VectorQuestion(np.array([1, 0], np.float32))
FACTS = {"event_source": "/camera", "width": 10, "height": 20, "uploaded_at": "2024-05-01T00:00:00+00:00"}
OBJECT = {"class": "star", "confidence": 0.5, "box": [0, 0, 1, 1]}


class SmallIndex:
    """What the searcher needs of OpenSearch, over scores by id: nearness, words, ids, points in time.

    Filters are not looked at. A point in time sees the scores that there were.
    """

    def __init__(self, near: dict[str, float], words: dict[str, float] | None = None, **source: Any) -> None:
        self.indices = self
        self.near = near
        self.words = words or {}
        self.source = source
        self.asked: list[tuple[dict[str, Any], dict[str, Any]]] = []
        self.requests = 0
        self.extra: dict[str, Any] = {}
        self.failure: Exception | None = None
        self.pits: dict[str, tuple[dict[str, float], dict[str, float]]] = {}

    async def msearch(self, body: bytes, params: Any) -> Any:
        self.requests += 1
        if self.failure is not None:
            raise self.failure
        lines = [json.loads(line) for line in body.splitlines()]
        searches = list(zip(lines[::2], lines[1::2], strict=True))
        self.asked += searches
        return {"responses": [self._answer(search) | self.extra for _header, search in searches]}

    async def create_pit(self, index: str, params: Any) -> Any:
        if self.failure is not None:
            raise self.failure
        self.pits[f"pit-{len(self.pits)}"] = dict(self.near), dict(self.words)
        return {"pit_id": f"pit-{len(self.pits) - 1}"}

    async def delete_pit(self, body: Any) -> None:
        for pit in body["pit_id"]:
            del self.pits[pit]

    async def get_mapping(self, index: str) -> Any:
        raise NotFoundError(404, "index_not_found_exception", {})

    async def mget(self, body: Any) -> Any:
        (wanted,) = body["docs"]
        if wanted["_id"] == "gone":
            return {"docs": [{"error": {"type": "index_not_found_exception"}}]}
        found = wanted["_id"] in self.near
        return {"docs": [{"_source": {"vector": [0.6, 0.8]}, "found": True} if found else {"found": False}]}

    def _answer(self, body: dict[str, Any]) -> dict[str, Any]:
        near, words = self.near, self.words
        if "pit" in body:
            if body["pit"]["id"] not in self.pits:
                return {"status": 404, "error": {"type": "search_phase_execution_exception"}}
            near, words = self.pits[body["pit"]["id"]]
        ((kind, query),) = body["query"].items()
        if kind == "ids":
            shown = body.get("post_filter", body["query"])["ids"]["values"]
            hits = [{"_id": id_, "_source": self._source(id_)} for id_ in reversed(shown) if id_ in near | words]
            counted = [{"key": "many", "doc_count": len(query["values"])}]
            return {
                "hits": {"hits": hits},
                "aggregations": {name: {"buckets": counted} for name in body.get("aggs", {})},
            }
        scores = {"knn": near, "script_score": near, "bool": words, "match_none": {}}[kind]
        found = sorted(scores.items(), key=lambda one: -one[1])[: body["size"]]
        if body["_source"] is False:
            return {"hits": {"hits": [{"_score": score, "fields": _fields(id_)} for id_, score in found]}}
        return {"hits": {"hits": [{"_id": i, "_score": score, "_source": self._source(i)} for i, score in found]}}

    def _source(self, id_: str) -> dict[str, Any]:
        return {**FACTS, **(OBJECT if "#" in id_ else {}), "image_id": id_.partition("#")[0], **self.source}


def _fields(id_: str) -> dict[str, Any]:
    image_id, _, ordinal = id_.partition("#")
    return {"image_id": [image_id]} | ({"ordinal": [int(ordinal)]} if ordinal else {})


def images(*cosines: float) -> dict[str, float]:
    return {f"image-{number:05}": (1 + cosine) / 2 for number, cosine in enumerate(cosines)}


def searcher(index: SmallIndex, **settings: Any) -> IndexSearcher:
    cursors = Cursors(b"k" * 32, 60, MODEL.digest)
    return IndexSearcher(index, SETTINGS.model_copy(update=settings), MODEL, cursors)  # type: ignore[arg-type]


async def search(index: SmallIndex, question: VectorQuestion | None = PLAIN, **request: Any) -> Found:
    asked = {"text": "x"} if question else {}
    return await searcher(index).search(SearchRequest(**asked, **request), question, TIMEOUT)


def ids(found: Found) -> list[str]:
    return [hit.object_id or hit.image_id for hit in found.hits]


async def test_plain_search_is_one_request_with_the_filters_inside() -> None:
    index = SmallIndex(images(0.9, 0.8))
    await search(index, k=7, filters={"tags": ["a"]})
    ((header, body),) = index.asked
    knn = body["query"]["knn"]["vector"]
    assert (header, body["size"], knn["k"], knn["vector"]) == ({"index": "pictures-aaaaaaaaaaaa"}, 7, 7, [1.0, 0.0])
    assert knn["filter"] == {"bool": {"filter": [{"terms": {"tags": ["a"]}}]}}
    assert set(body["query"]) == {"knn"}


@pytest.mark.parametrize(("k", "beam"), [(1, 100), (66, 100), (67, 101), (1000, 1500)])
async def test_beam_is_always_sent_and_wider_than_what_is_wanted(k: int, beam: int) -> None:
    index = SmallIndex({"image#0": 0.9})
    await search(index, k=k, target="objects")
    ((header, body),) = index.asked
    assert header["index"] == "things-aaaaaaaaaaaa"
    assert body["query"]["knn"]["vector"]["method_parameters"] == {"ef_search": beam}


async def test_exact_search_compares_every_vector_that_fulfils_the_filters() -> None:
    index = SmallIndex(images(0.9))
    found = await search(index, exact=True, filters={"min_width": 3})
    query = index.asked[0][1]["query"]["script_score"]
    assert query["script"]["params"] == {"field": "vector", "query_value": [1.0, 0.0], "space_type": "cosinesimil"}
    clauses = query["query"]["bool"]["filter"]
    assert clauses == [{"exists": {"field": "vector"}}, {"bool": {"filter": [{"range": {"width": {"gte": 3}}}]}}]
    assert found.hits[0].cosine == pytest.approx(0.9)


@pytest.mark.parametrize("request_", [{}, {"pages": True}, {"facets": ["tags"]}, {"lexical": "a"}], ids=str)
async def test_vectors_come_only_when_asked_for(request_: dict[str, Any]) -> None:
    index = SmallIndex(images(0.9), vector=[1.0, 0.0])
    await search(index, **request_)
    assert not any("vector" in (body["_source"] or ()) for _, body in index.asked)
    found = await search(index, include_vectors=True, **request_)
    assert index.asked[-1][1]["_source"][-1] == "vector"
    assert found.hits[0].vector is not None
    assert found.hits[0].vector.tobytes() == np.array([1, 0], "<f4").tobytes()


async def test_hits_are_ordered_by_score_and_then_by_id() -> None:
    found = await search(SmallIndex({"b": 0.75, "c": 0.9, "a": 0.75}))
    assert ids(found) == ["c", "a", "b"]
    assert [(hit.score, hit.cosine) for hit in found.hits[1:]] == [(0.75, 0.5)] * 2


async def test_relevance_of_a_calibrated_model_is_the_score() -> None:
    found = await search(SmallIndex(images(0.5, 0.9)), CALIBRATED)
    assert [hit.cosine for hit in found.hits] == pytest.approx([0.9, 0.5])
    assert [hit.relevance for hit in found.hits] == pytest.approx([1 / (1 + np.exp(-3.2)), 0.5])
    assert [hit.score for hit in found.hits] == [hit.relevance for hit in found.hits]
    assert (await search(SmallIndex(images(0.5)))).hits[0].relevance is None


async def test_rounding_makes_no_impossible_cosine() -> None:
    found = await search(SmallIndex({"a": 1.0000001, "b": -1e-8}))
    assert [hit.cosine for hit in found.hits] == [1.0, -1.0]


@pytest.mark.parametrize("request_", [{}, {"pages": True}, {"facets": ["tags"]}, {"lexical": "a"}], ids=str)
async def test_hits_below_the_wanted_relevance_are_left_out(request_: dict[str, Any]) -> None:
    index = SmallIndex(images(0.9, 0.6, 0.4), words={"image-00002": 3.0, "image-00001": 2.0})
    assert sorted(ids(await search(index, CALIBRATED, min_relevance=0.5, **request_))) == ["image-00000", "image-00001"]
    assert len((await search(index, CALIBRATED, min_relevance=0.0, **request_)).hits) == 3


async def test_what_is_not_relevant_takes_no_place_in_the_fusion() -> None:
    index = SmallIndex(images(0.9, 0.4), words={"image-00001": 3.0, "image-00000": 2.0})
    (hit,) = (await search(index, CALIBRATED, min_relevance=0.5, lexical="a")).hits
    assert hit.score == pytest.approx(1 / 61)


@pytest.mark.parametrize("question", [None, PLAIN])
async def test_relevance_cannot_be_wanted_of_a_model_without_calibration(question: VectorQuestion | None) -> None:
    request = SearchRequest(text="x", min_relevance=0.1)
    with pytest.raises(ContractError) as refused:
        await searcher(SmallIndex({})).search(request, question, 1)
    assert refused.value.code == "not_calibrated"


@pytest.mark.parametrize("request_", [{}, {"pages": True}, {"facets": ["tags"]}, {"lexical": "a"}], ids=str)
async def test_no_good_match_is_said(request_: dict[str, Any]) -> None:
    for cosines, question, expected in (
        ((0.4,), CALIBRATED, True),
        ((), CALIBRATED, True),
        ((0.6, 0.4), CALIBRATED, False),
        ((0.4,), PLAIN, False),
    ):
        assert (await search(SmallIndex(images(*cosines)), question, **request_)).no_good_match == expected
    high = await search(SmallIndex(images(0.6)), CALIBRATED, min_relevance=0.99, **request_)
    assert (high.hits, high.no_good_match) == ((), False), "there is a good one, if not as good as was wanted"


async def test_words_alone_are_one_request_scored_over_all_shards() -> None:
    index = SmallIndex({}, words={"b": 2.0, "a": 2.0, "c": 3.0})
    found = await search(index, None, lexical="Red_Star red", filters={"tags": ["a"]})
    assert ids(found) == ["c", "a", "b"]
    first = found.hits[0]
    assert (first.score, first.lexical_score, first.cosine, first.relevance) == (3.0, 3.0, None, None)
    ((header, body),) = index.asked
    assert header["search_type"] == "dfs_query_then_fetch"
    assert body["query"]["bool"]["must"] == [{"match": {"words": {"query": "red star"}}}]
    assert body["query"]["bool"]["filter"] == [{"bool": {"filter": [{"terms": {"tags": ["a"]}}]}}]
    assert not found.no_good_match
    assert (await search(index, None, lexical="?!")).hits == ()


async def test_nearness_and_words_are_asked_together_and_fused() -> None:
    index = SmallIndex(images(0.9, 0.8, 0.1), words={"image-00002": 5.0, "elsewhere": 1.0})
    found = await search(index, lexical="a b", k=3)
    assert index.requests == 2
    (_, near), (_, words), (_, shown) = index.asked
    assert near["size"] == words["size"] == 1000
    assert near["_source"] is words["_source"] is False
    assert near["query"]["knn"]["vector"]["k"] == 1000
    assert shown["query"]["ids"]["values"] == ids(found) == ["image-00002", "image-00000", "elsewhere"]
    assert [(hit.cosine, hit.lexical_score) for hit in found.hits] == [
        (pytest.approx(0.1), 5.0),
        (pytest.approx(0.9), None),
        (None, 1.0),
    ]
    assert found.hits[0].score == pytest.approx(0.5 / 63 + 0.5 / 61)
    weighted = await search(index, lexical="a", fusion="weighted", lexical_weight=0.25, k=1)
    assert weighted.hits[0].score == pytest.approx(0.75)


async def test_groups_look_at_as_many_objects_as_it_takes() -> None:
    crowd = {f"crowd#{number}": 0.9 - number / 1e6 for number in range(1500)}
    others = {f"image-{number}#3": 0.5 - number / 100 for number in range(5)}
    index = SmallIndex(crowd | others)
    found = await search(index, target="objects", group="image", k=4)
    assert ids(found) == ["crowd#0", "image-0#3", "image-1#3", "image-2#3"]
    assert [body["size"] for _, body in index.asked] == [1000, 4000, 4]
    assert len((await search(index, target="objects", group="image", k=9)).hits) == 6


async def test_facets_count_what_was_found_and_come_with_the_hits() -> None:
    index = SmallIndex(images(*np.linspace(0.9, 0.1, 1200)))
    found = await search(index, k=3, facets=["classes", "captured_month"])
    assert (len(found.hits), index.requests) == (3, 2)
    assert found.facets == {
        "classes": (FacetCount(value="many", count=1000),),
        "captured_month": (FacetCount(value="many", count=1000),),
    }
    body = index.asked[-1][1]
    assert body["size"] == 3
    assert body["aggs"]["classes"]["terms"]["field"] == "classes"
    assert body["aggs"]["captured_month"]["date_histogram"]["field"] == "captured_at"
    await search(SmallIndex({}), facets=["classes"])
    counted = (await search(index, CALIBRATED, facets=["tags"], min_relevance=0.5)).facets["tags"]
    assert counted[0].count == 600
    assert (await search(SmallIndex({}), facets=["tags"])).facets == {"tags": ()}


async def pages(made: IndexSearcher, found: Found) -> list[Found]:
    """The first page and those after it."""
    every = [found]
    while every[-1].cursor is not None:
        every.append(await made.turn_page(made._cursors.read(every[-1].cursor), TIMEOUT))
    return every


async def test_pages_go_on_without_gaps_and_repeats_whatever_is_written() -> None:
    index = SmallIndex(images(*np.linspace(0.9, 0.1, 25)))
    made = searcher(index)
    first = await made.search(SearchRequest(text="x", k=10, pages=True), PLAIN, TIMEOUT)
    index.near = {"newer": 1.0} | images(*np.linspace(0.1, 0.9, 25))
    every = await pages(made, first)
    assert [id_ for found in every for id_ in ids(found)] == [f"image-{number:05}" for number in range(25)]
    assert [len(found.hits) for found in every] == [10, 10, 5]


async def test_order_is_found_once_and_the_next_pages_read_documents_only() -> None:
    index = SmallIndex(images(*np.linspace(0.9, 0.1, 25)))
    made = searcher(index)
    await pages(made, await made.search(SearchRequest(text="x", k=10, pages=True), PLAIN, TIMEOUT))
    assert [body["size"] for _, body in index.asked] == [1000, 10, 10, 5]
    assert all(header == {} and body["pit"]["id"] == "pit-0" for header, body in index.asked)


@pytest.mark.parametrize("request_", [{}, {"lexical": "a"}, {"min_relevance": 0.3}, {"exact": True}], ids=str)
async def test_any_worker_goes_on_with_a_page(request_: dict[str, Any]) -> None:
    index = SmallIndex(images(*np.linspace(0.9, 0.1, 25)), words={"image-00020": 2.0, "image-00003": 1.0})
    first, other = searcher(index), searcher(index, windows_kept=0)
    found = await first.search(SearchRequest(text="x", k=4, pages=True, **request_), CALIBRATED, TIMEOUT)
    of_first, of_other = await pages(first, found), await pages(other, found)
    assert [found.hits for found in of_first] == [found.hits for found in of_other]


@pytest.mark.parametrize("k", [6, 20])
@pytest.mark.parametrize("kept", [0, 32])
async def test_pages_look_deeper_when_they_come_there_and_show_nothing_twice(
    k: int, kept: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A deeper look at the graph may find what the first look missed: it comes after what was shown."""
    monkeypatch.setattr("agents.index.windows.DEPTH", 20)
    monkeypatch.setattr("agents.index.windows.MAX_RESULTS", 200)
    index = SmallIndex(images(*np.linspace(0.9, 0.1, 240)))
    missed = "image-00010"

    def short_sighted(body: dict[str, Any], answer: Any = index._answer) -> Any:
        found = answer(body | {"size": body["size"] + 1})
        if body["size"] < 200:
            found["hits"]["hits"] = [
                h for h in found["hits"]["hits"] if h.get("fields", {}).get("image_id") != [missed]
            ]
        found["hits"]["hits"] = found["hits"]["hits"][: body["size"]]
        return found

    index._answer = short_sighted  # type: ignore[method-assign]
    made = searcher(index, windows_kept=kept)
    first = await made.search(SearchRequest(text="x", k=k, pages=True), PLAIN, TIMEOUT)
    assert max(body["size"] for _, body in index.asked) == (20 if k == 6 else 200)
    every = [id_ for found in await pages(made, first) for id_ in ids(found)]
    assert len(every) == len(set(every)) == 200
    assert every.index(missed) == 20
    assert set(every) == {f"image-{number:05}" for number in range(200)}


async def test_depth_of_a_fusion_is_one_for_all_pages() -> None:
    index = SmallIndex(images(*np.linspace(0.9, 0.1, 3000)), words={"image-02000": 1.0})
    found = await search(index, k=10, pages=True, lexical="a")
    assert [body["size"] for _, body in index.asked] == [10_000, 10_000, 10]
    assert ids(found)[0] == "image-02000"


async def test_nothing_is_looked_for_below_the_wanted_relevance() -> None:
    index = SmallIndex(images(*np.linspace(0.9, 0.1, 3000)))
    made = searcher(index)
    wanted = SearchRequest(text="x", k=200, pages=True, min_relevance=0.9)
    every = await pages(made, await made.search(wanted, CALIBRATED, TIMEOUT))
    assert [len(found.hits) for found in every] == [200, 200, 70]
    assert [body["size"] for _, body in index.asked] == [1000, 200, 200, 70]


async def test_pages_of_groups_show_each_image_once() -> None:
    objects = {f"image-{n % 400:03}#{n // 400}": 0.9 - n / 10_000 for n in range(2000)}
    index = SmallIndex(objects)
    made = searcher(index)
    request = SearchRequest(text="x", k=150, pages=True, target="objects", group="image")
    every = [id_ for found in await pages(made, await made.search(request, PLAIN, TIMEOUT)) for id_ in ids(found)]
    assert every == [f"image-{n:03}#0" for n in range(400)]


async def test_orders_kept_for_pages_are_few() -> None:
    index = SmallIndex(images(*np.linspace(0.9, 0.1, 25)))
    made = searcher(index, windows_kept=2)
    founds = [await made.search(SearchRequest(text="x", k=4, pages=True), PLAIN, TIMEOUT) for _ in range(3)]
    before = len(index.asked)
    for found in founds[::-1]:
        assert found.cursor
        await made.turn_page(made._cursors.read(found.cursor), TIMEOUT)
    assert [body["size"] for _, body in index.asked[before:]] == [4, 4, 1000, 4]


async def test_pages_have_their_facets_with_the_first() -> None:
    index = SmallIndex(images(*np.linspace(0.9, 0.1, 25)))
    made = searcher(index)
    found = await made.search(SearchRequest(text="x", k=10, pages=True, facets=["tags"]), PLAIN, TIMEOUT)
    assert found.facets["tags"][0].count == 25
    assert [dict(page.facets) for page in (await pages(made, found))[1:]] == [{}, {}]


async def test_point_in_time_is_let_go_when_nothing_follows() -> None:
    index = SmallIndex(images(0.9, 0.8))
    made = searcher(index)
    found = await made.search(SearchRequest(text="x", k=2, pages=True), PLAIN, TIMEOUT)
    await asyncio.sleep(0)
    assert (found.cursor, index.pits) == (None, {})
    found = await made.search(SearchRequest(text="x", k=1, pages=True), PLAIN, TIMEOUT)
    await asyncio.sleep(0)
    assert found.cursor
    assert index.pits


async def test_point_in_time_is_let_go_when_the_search_fails_or_is_cancelled() -> None:
    index = SmallIndex(images(0.9, 0.8))
    made = searcher(index)
    index.extra = {"status": 503, "error": {"type": "down"}}
    with pytest.raises(DependencyDown):
        await made.search(SearchRequest(text="x", k=1, pages=True), PLAIN, TIMEOUT)
    await asyncio.sleep(0)
    assert index.pits == {}
    asked = asyncio.create_task(made.search(SearchRequest(text="x", k=1, pages=True), PLAIN, TIMEOUT))
    while not index.pits:
        await asyncio.sleep(0)
    asked.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asked
    for _ in range(3):
        await asyncio.sleep(0)
    assert index.pits == {}


async def test_page_whose_point_in_time_is_gone_has_expired() -> None:
    index = SmallIndex(images(0.9, 0.8))
    made = searcher(index)
    found = await made.search(SearchRequest(text="x", k=1, pages=True), PLAIN, TIMEOUT)
    index.pits.clear()
    assert found.cursor
    with pytest.raises(ContractError) as refused:
        await made.turn_page(made._cursors.read(found.cursor), TIMEOUT)
    assert refused.value.code == "expired_cursor"


async def test_node_that_holds_as_many_points_in_time_as_it_may_is_told() -> None:
    index = SmallIndex(images(0.9, 0.8))
    index.failure = TransportError(429, "rejected_execution_exception", {})
    with pytest.raises(ContractError) as refused:
        await search(index, pages=True)
    assert refused.value.code == "too_many_cursors"


@pytest.mark.parametrize("extra", [{"timed_out": True}, {"_shards": {"failed": 1}}], ids=str)
@pytest.mark.parametrize("request_", [{}, {"pages": True}, {"facets": ["tags"]}, {"lexical": "a"}], ids=str)
async def test_answer_of_a_part_of_the_index_is_partial(extra: dict[str, Any], request_: dict[str, Any]) -> None:
    index = SmallIndex(images(0.9, 0.8))
    assert not (await search(index, **request_)).partial
    index.extra = extra
    found = await search(index, k=1, **request_)
    assert (found.partial, found.cursor) == (True, None)


async def test_partial_order_is_not_kept_for_the_next_page() -> None:
    index = SmallIndex(images(0.9, 0.8, 0.7))
    made = searcher(index)
    found = await made.search(SearchRequest(text="x", k=1, pages=True), PLAIN, TIMEOUT)
    assert found.cursor
    page = made._cursors.read(found.cursor)
    made._windows.forget(page)
    index.extra = {"timed_out": True}
    assert (await made.turn_page(page, TIMEOUT)).partial
    index.extra = {}
    assert not (await made.turn_page(page, TIMEOUT)).partial


async def test_hit_that_was_deleted_meanwhile_is_left_out() -> None:
    index = SmallIndex(images(0.9, 0.8))

    def forgetful(body: dict[str, Any], answer: Any = index._answer) -> Any:
        found = answer(body)
        index.near.pop("image-00000", None)
        return found

    index._answer = forgetful  # type: ignore[method-assign]
    assert ids(await search(index, facets=["tags"])) == ["image-00001"]


async def test_object_hit_says_which_object() -> None:
    source = {"class": "star", "confidence": 0.9, "box": [1.0, 2.0, 3.0, 4.0], "tags": ["a"]}
    (hit,) = (await search(SmallIndex({"image#2": 0.75}, **source), target="objects")).hits
    assert (hit.image_id, hit.object_id, hit.class_name, hit.confidence) == ("image", "image#2", "star", 0.9)
    assert (hit.box, hit.tags) == ((1.0, 2.0, 3.0, 4.0), ("a",))


@pytest.mark.parametrize(
    ("facts", "source"),
    [
        ({"dataref": "file:///a", "filename": "a.jpg"}, "file:///a"),
        ({"filename": "a.jpg"}, "a.jpg"),
        ({}, "/camera"),
    ],
)
async def test_hit_says_where_the_picture_is(facts: dict[str, str], source: str) -> None:
    (hit,) = (await search(SmallIndex(images(0.5), **facts))).hits
    assert hit.source == source


async def test_vector_of_what_is_indexed() -> None:
    made = searcher(SmallIndex({"image": 0.5, "image#1": 0.5}))
    for kind, id_ in (("image", "image"), ("object", "image#1")):
        assert (await made.vector_of(kind, id_)).tolist() == pytest.approx([0.6, 0.8])  # type: ignore[arg-type]
    for kind in ("image", "object"):
        with pytest.raises(ContractError) as refused:
            await made.vector_of(kind, "unknown")  # type: ignore[arg-type]
        assert refused.value.code == f"unknown_{kind}"
    with pytest.raises(DependencyDown):
        await made.vector_of("image", "gone")


async def test_search_that_opensearch_refuses_is_a_bad_request() -> None:
    index = SmallIndex(images(0.9))
    index.extra = {"status": 400, "error": {"type": "x", "root_cause": [{"reason": "too many clauses"}]}}
    with pytest.raises(ContractError, match="too many clauses") as refused:
        await search(index)
    assert refused.value.code == "bad_request"


@pytest.mark.parametrize("pages_", [False, True])
@pytest.mark.parametrize(
    "failure",
    [
        ConnectionTimeout("TIMEOUT", "slow", OSError()),
        TransportError(503, "none", {}),
        NotFoundError(404, "index_not_found_exception", {}),
    ],
    ids=lambda failure: type(failure).__name__,
)
async def test_opensearch_that_cannot_answer_now_is_down(failure: Exception, pages_: bool) -> None:
    index = SmallIndex(images(0.9))
    index.failure = failure
    with pytest.raises(DependencyDown):
        await search(index, pages=pages_)
