"""From a search request to what OpenSearch is asked, and from its answer to hits."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from agents.index.queries import IndexSearcher
from opensearchpy.exceptions import ConnectionTimeout, NotFoundError, TransportError

from agents.delivery.failures import DependencyDown
from agents.index.mappings import ModelIdentity
from agents.settings import IndexSettings
from sightlog.errors import ContractError
from sightlog.filters import SearchFilters
from sightlog.search import SearchRequest

MODEL = ModelIdentity("tiny", "a" * 64, 4, ("circle", "traffic light", "star"))
VECTOR = np.ones(4, np.float32)
SETTINGS = IndexSettings(images="pictures", objects="things", ef_search=100)


class OneAnswer:
    """Remembers what it was asked."""

    def __init__(self, answer: dict[str, Any] | Exception) -> None:
        self.answer = answer
        self.asked: dict[str, Any] = {}

    @property
    def indices(self) -> Any:
        return self

    async def get_mapping(self, index: str) -> dict[str, Any]:
        raise NotFoundError(404, "index_not_found_exception", {})

    async def search(self, **asked: Any) -> dict[str, Any]:
        self.asked = asked
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


def searcher(answer: dict[str, Any] | Exception | None = None) -> IndexSearcher:
    return IndexSearcher(OneAnswer({} if answer is None else answer), SETTINGS, MODEL)  # type: ignore[arg-type]


def clauses(target: str, **filters: Any) -> list[dict[str, Any]]:
    return searcher().filter_clauses(target, SearchFilters(**filters))


def test_no_filters_are_no_clauses() -> None:
    assert clauses("images") == clauses("objects") == []


@pytest.mark.parametrize("target", ["images", "objects"])
def test_every_tag_must_be_there(target: str) -> None:
    assert clauses(target, tags=("a", "b")) == [{"term": {"tags": "a"}}, {"term": {"tags": "b"}}]


@pytest.mark.parametrize("target", ["images", "objects"])
@pytest.mark.parametrize("field", ["captured", "uploaded"])
def test_times_are_from_inclusive_to_exclusive(target: str, field: str) -> None:
    first, last = "2024-05-01T00:00:00Z", "2024-06-01T00:00:00Z"
    (clause,) = clauses(target, **{f"{field}_from": first, f"{field}_to": last})
    limits = clause["range"][f"{field}_at"]
    assert {name: time.isoformat() for name, time in limits.items()} == {
        "gte": "2024-05-01T00:00:00+00:00",
        "lt": "2024-06-01T00:00:00+00:00",
    }
    (clause,) = clauses(target, **{f"{field}_to": last})
    assert list(clause["range"][f"{field}_at"]) == ["lt"]


def test_object_must_have_one_of_the_classes_and_be_that_sure() -> None:
    assert clauses("objects", classes=("star", "circle"), min_confidence=0.5) == [
        {"terms": {"class": ["star", "circle"]}},
        {"range": {"confidence": {"gte": 0.5}}},
    ]


def test_image_must_have_a_class_detected() -> None:
    assert clauses("images", classes=("star",)) == [{"terms": {"classes": ["star"]}}]


def test_image_must_have_a_detection_of_those_classes_that_is_that_sure() -> None:
    assert clauses("images", classes=("star", "traffic light"), min_confidence=0.5) == [
        {
            "bool": {
                "should": [
                    {"range": {"class_confidence.star": {"gte": 0.5}}},
                    {"range": {"class_confidence.traffic_light": {"gte": 0.5}}},
                ],
                "minimum_should_match": 1,
            }
        }
    ]


def test_image_must_have_any_detection_that_is_that_sure() -> None:
    assert clauses("images", min_confidence=0.0) == [{"range": {"max_confidence": {"gte": 0.0}}}]


@pytest.mark.parametrize("target", ["images", "objects"])
def test_unknown_class_is_refused_with_those_that_are_known(target: str) -> None:
    with pytest.raises(ContractError, match=r"dog, zebra; the model knows circle, traffic light, star") as refused:
        clauses(target, classes=("zebra", "star", "dog"))
    assert refused.value.code == "unknown_class"


async def test_filters_are_inside_the_nearest_neighbour_search() -> None:
    made = searcher()
    await made.search(SearchRequest(text="x", k=7, filters=SearchFilters(tags=("a",))), VECTOR, 1.5)
    asked = made._client.asked  # type: ignore[attr-defined]
    knn = asked["body"]["query"]["knn"]["vector"]
    assert (asked["index"], asked["body"]["size"], knn["k"]) == ("pictures-aaaaaaaaaaaa", 7, 7)
    assert knn["filter"] == {"bool": {"filter": [{"term": {"tags": "a"}}]}}
    assert asked["params"]["request_timeout"] == 1.5
    assert set(asked["body"]["query"]) == {"knn"}


@pytest.mark.parametrize(("k", "beam"), [(1, 100), (100, 100), (1000, 1000)])
async def test_beam_is_always_sent_and_holds_all_hits(k: int, beam: int) -> None:
    made = searcher()
    await made.search(SearchRequest(text="x", k=k, target="objects"), VECTOR, 1)
    asked = made._client.asked  # type: ignore[attr-defined]
    assert asked["index"] == "things-aaaaaaaaaaaa"
    assert asked["body"]["query"]["knn"]["vector"]["method_parameters"] == {"ef_search": beam}


FACTS = {
    "image_id": "image",
    "event_source": "/camera",
    "width": 10,
    "height": 20,
    "uploaded_at": "2024-05-01T00:00:00+00:00",
}


def answer(**source: Any) -> dict[str, Any]:
    return {"hits": {"hits": [{"_id": "image#2", "_score": 0.75, "_source": FACTS | source}]}}


async def test_hit_carries_score_and_raw_cosine() -> None:
    (hit,) = await searcher(answer()).search(SearchRequest(text="x"), VECTOR, 1)
    assert (hit.image_id, hit.score, hit.cosine, hit.object_id, hit.box) == ("image", 0.75, 0.5, None, None)


async def test_object_hit_says_which_object() -> None:
    found = answer(**{"class": "star", "confidence": 0.9, "box": [1.0, 2.0, 3.0, 4.0], "tags": ["a"]})
    (hit,) = await searcher(found).search(SearchRequest(text="x", target="objects"), VECTOR, 1)
    assert (hit.object_id, hit.class_name, hit.confidence) == ("image#2", "star", 0.9)
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
    (hit,) = await searcher(answer(**facts)).search(SearchRequest(text="x"), VECTOR, 1)
    assert hit.source == source


async def test_nothing_found_is_no_hits() -> None:
    assert await searcher({}).search(SearchRequest(text="x"), VECTOR, 1) == ()
    assert await searcher({"hits": {"hits": []}}).search(SearchRequest(text="x"), VECTOR, 1) == ()


@pytest.mark.parametrize(
    "failure",
    [
        ConnectionTimeout("TIMEOUT", "slow", OSError()),
        TransportError(429, "rejected", {}),
        TransportError(503, "none", {}),
        NotFoundError(404, "index_not_found_exception", {}),
    ],
    ids=lambda failure: type(failure).__name__ + str(failure.args[0]),
)
async def test_opensearch_that_cannot_answer_now_is_down(failure: Exception) -> None:
    with pytest.raises(DependencyDown):
        await searcher(failure).search(SearchRequest(text="x"), VECTOR, 1)
