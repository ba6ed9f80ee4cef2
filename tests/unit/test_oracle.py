"""The oracle itself, on cases that can be checked by hand."""

from __future__ import annotations

import math
from datetime import datetime, timezone
from typing import Any

import numpy as np
import pytest

from agents.index.question import VectorQuestion
from sightlog.documents import Detection, EmbeddingDocument, ImageChange, ImageDeletion, ImageUpdate, ModelRef
from sightlog.filters import SearchFilters
from sightlog.search import SearchRequest
from tests.oracle import Oracle, split_words

MODEL = ModelRef(name="tiny", digest="a" * 64)
AT = datetime(2026, 1, 31, tzinfo=timezone.utc)
EAST = VectorQuestion(np.array([1, 0], np.float32))


def image(id_: str, degrees: float = 0, *detections: tuple[str, float, float], **facts: Any) -> EmbeddingDocument:
    """Detections: class, confidence, degrees; the box of the n-th is n tenths of the width, and the whole height."""
    described: dict[str, Any] = {"version": 1, "uploaded_at": AT, "width": 100, "height": 50} | facts
    return EmbeddingDocument(
        image_id=id_,
        event_id="event",
        event_source="/test",
        sha256="0" * 64,
        size_bytes=1,
        model=MODEL,
        vector=at(degrees),
        detections=tuple(
            Detection(
                ordinal=ordinal,
                class_name=name,
                confidence=confidence,
                box=(0, 0, 10 * (ordinal + 1), 50),
                box_normalised=(0, 0, (ordinal + 1) / 10, 1),
                vector=at(angle),
            )
            for ordinal, (name, confidence, angle) in enumerate(detections)
        ),
        **described,
    )


def at(degrees: float) -> Any:
    return np.array([math.cos(math.radians(degrees)), math.sin(math.radians(degrees))], np.float32)


def found(
    changes: list[EmbeddingDocument] | list[ImageChange], question: VectorQuestion | None = EAST, **asked: Any
) -> list[str]:
    wanted: dict[str, Any] = {"text": "east"} if question is not None else {}
    answer = Oracle(changes).answer(SearchRequest(**wanted, **asked), question)
    return [hit.id for hit in answer.hits]


def kept(filters: dict[str, Any], *images: EmbeddingDocument, target: str = "images") -> set[str]:
    return set(found(list(images), target=target, filters=SearchFilters.model_validate(filters)))


def test_nearest_come_first_and_ties_by_id() -> None:
    images = [image("far", 90), image("b", 10), image("a", -10), image("near", 5)]
    assert found(images) == ["near", "a", "b", "far"]
    hits = Oracle(images).answer(SearchRequest(text="east"), EAST).hits
    assert hits[-1].cosine == pytest.approx(0, abs=1e-7)
    assert hits[-1].score == pytest.approx(0.5)
    assert hits[0].relevance is None


def test_relevance_is_the_score_of_a_calibrated_model() -> None:
    calibrated = VectorQuestion(at(0), slope=10, intercept=-5)
    images = [image("same"), image("half", 60), image("none", 90)]
    answer = Oracle(images).answer(SearchRequest(text="east", min_relevance=0.4), calibrated)
    assert [(hit.id, round(hit.score, 4)) for hit in answer.hits] == [("same", 0.9933), ("half", 0.5)]
    assert not answer.no_good_match
    far = Oracle(images).answer(SearchRequest(text="east"), VectorQuestion(at(180), slope=10, intercept=-5))
    assert far.no_good_match
    assert len(far.hits) == 3


CLASSES = (
    image("dogs", 0, ("dog", 0.9, 0), ("dog", 0.6, 0)),
    image("dog", 0, ("dog", 0.5, 0)),
    image("pair", 0, ("dog", 0.7, 0), ("cat", 0.3, 0)),
    image("cat", 0, ("cat", 0.8, 0)),
    image("empty"),
)


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        ({}, {"dogs", "dog", "pair", "cat", "empty"}),
        ({"classes": ["dog"]}, {"dogs", "dog", "pair"}),
        ({"classes": ["dog", "cat"]}, {"dogs", "dog", "pair", "cat"}),
        ({"classes": {"all": ["dog", "cat"]}}, {"pair"}),
        ({"classes": {"none": ["dog"]}}, {"cat", "empty"}),
        ({"classes": {"any": ["dog"], "none": ["cat"]}}, {"dogs", "dog"}),
        ({"classes": {"any": ["dog"], "min_count": 2}}, {"dogs"}),
        ({"classes": {"min_count": 2}}, {"dogs", "pair"}),
        ({"classes": {"min_count": 2, "none": ["cat"]}}, {"dogs"}),
        ({"classes": ["dog"], "min_confidence": 0.6}, {"dogs", "pair"}),
        ({"classes": {"any": ["dog"], "min_count": 2}, "min_confidence": 0.7}, set()),
        ({"classes": {"all": ["dog", "cat"]}, "min_confidence": 0.4}, set()),
        ({"min_confidence": 0.75}, {"dogs", "cat"}),
        ({"min_confidence": 0}, {"dogs", "dog", "pair", "cat"}),
        ({"classes": {"none": ["cat"]}, "min_confidence": 0.5}, {"dogs", "dog", "pair", "empty"}),
    ],
    ids=str,
)
def test_classes_of_images(filters: dict[str, Any], expected: set[str]) -> None:
    assert kept(filters, *CLASSES) == expected


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        ({"classes": ["dog"]}, {"dogs#0", "dogs#1", "dog#0", "pair#0"}),
        ({"classes": {"all": ["cat"]}}, {"pair#1", "cat#0"}),
        ({"classes": {"none": ["dog"]}}, {"pair#1", "cat#0"}),
        ({"classes": {"none": ["dog"]}, "min_confidence": 0.5}, {"cat#0"}),
        ({"min_confidence": 0.7}, {"dogs#0", "pair#0", "cat#0"}),
        ({"min_area": 0.15}, {"dogs#1", "pair#1"}),
        ({"max_area": 0.1, "classes": ["cat"]}, {"cat#0"}),
    ],
    ids=str,
)
def test_classes_and_areas_of_objects(filters: dict[str, Any], expected: set[str]) -> None:
    assert kept(filters, *CLASSES, target="objects") == expected


def test_some_box_of_an_image_is_within_both_limits() -> None:
    boxes = [("dog", 0.9, 0.0)] * 3  # a tenth, two and three tenths of the picture
    assert kept({"min_area": 0.15, "max_area": 0.25}, image("three", 0, *boxes), image("one", 0, *boxes[:1])) == {
        "three"
    }
    assert kept({"min_area": 0.11, "max_area": 0.19}, image("three", 0, *boxes)) == set()


TAGGED = (image("ab", tags=("a", "b")), image("b", tags=("b",)), image("no"))


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        (["a", "b"], {"ab"}),
        ({"any": ["a", "c"]}, {"ab"}),
        ({"none": ["a"]}, {"b", "no"}),
        ({"any": ["b"], "none": ["a"]}, {"b"}),
    ],
    ids=str,
)
def test_tags(filters: Any, expected: set[str]) -> None:
    assert kept({"tags": filters}, *TAGGED) == expected


def test_times_include_their_beginning_and_not_their_end() -> None:
    later = datetime(2026, 2, 1, tzinfo=timezone.utc)
    images = (image("first", captured_at=AT), image("second", captured_at=later), image("never"))
    assert kept({"captured_from": AT, "captured_to": later}, *images) == {"first"}
    assert kept({"captured_from": later}, *images) == {"second"}
    assert kept({"uploaded_to": AT}, *images) == set()


def test_sizes_include_both_ends() -> None:
    images = (image("small", width=10), image("large", width=20))
    assert kept({"min_width": 10, "max_width": 10}, *images) == {"small"}
    assert kept({"min_width": 11}, *images) == {"large"}
    assert kept({"max_height": 49}, *images) == set()


METADATA = {"n": 5, "s": "5", "yes": True, "gps": {"lat": -1.5}, "list": [1, [7, "x"]], "parts": [{"no": 1}, {"no": 3}]}


@pytest.mark.parametrize(
    ("condition", "holds"),
    [
        ({"field": "n", "equals": 5.0}, True),
        ({"field": "n", "equals": "5"}, False),
        ({"field": "s", "equals": 5}, False),
        ({"field": "yes", "equals": True}, True),
        ({"field": "yes", "equals": 1}, False),
        ({"field": "yes", "at_least": 0}, False),
        ({"field": "gps.lat", "at_least": -1.5, "below": 0}, True),
        ({"field": "gps.lat", "below": -1.5}, False),
        ({"field": "gps", "equals": -1.5}, False),
        ({"field": "list", "equals": 7}, True),
        ({"field": "list", "at_least": 2, "below": 7}, False),
        ({"field": "list", "at_least": "a"}, True),
        ({"field": "parts.no", "equals": 3}, True),
        ({"field": "s", "at_least": "4", "below": "5"}, False),
        ({"field": "missing", "below": "z"}, False),
    ],
    ids=str,
)
def test_metadata(condition: dict[str, Any], holds: bool) -> None:
    assert bool(kept({"metadata": [condition]}, image("one", metadata=METADATA))) is holds


def test_updates_and_deletions_are_joined_by_version_in_whatever_order_they_come() -> None:
    rest: dict[str, Any] = {"event_id": "event", "event_source": "/test"}
    changes: list[ImageChange] = [
        ImageUpdate(image_id="a", version=3, updated_at=AT, tags=("new",), **rest),
        image("a", version=2, tags=("old",), metadata={"n": 1}),
        ImageDeletion(image_id="b", version=2, deleted_at=AT, **rest),
        image("b", version=1),
        ImageUpdate(image_id="c", version=9, updated_at=AT, tags=("new",), **rest),
        ImageDeletion(image_id="d", version=1, deleted_at=AT, **rest),
        image("d", version=2),
    ]
    assert sorted(found(changes)) == ["a", "d"]
    assert found(changes, filters=SearchFilters.model_validate({"tags": ["new"]})) == ["a"]
    assert found(changes, filters=SearchFilters.model_validate({"metadata": [{"field": "n", "equals": 1}]})) == ["a"]


def test_words_are_letters_and_digits_without_case() -> None:
    assert split_words("My_Beach-Trip.JPG straße 2026/x") == ["my", "beach", "trip", "jpg", "strasse", "2026", "x"]
    assert split_words("東京Tower") == ["東", "京", "tower"]


WORDS = [
    image("one", filename="beach.jpg"),
    image("two", filename="beach.jpg", tags=("beach",), metadata={"where": ["sunny", {"x": "place"}]}),
    image("three", filename="sunny.jpg"),
    image("four", filename="x.png"),
]


def test_rarer_words_count_more_and_repeated_ones_a_little_more() -> None:
    assert found(WORDS, None, lexical="beach") == ["two", "one"]
    assert found(WORDS, None, lexical="beach SUNNY, png") == ["two", "four", "one", "three"]
    assert found(WORDS, None, lexical="nothing") == []
    (hit,) = Oracle(WORDS).answer(SearchRequest(lexical="png"), None).hits
    # One of four has it, once: ln(1 + 3.5 / 1.5) / (1 + 1.2).
    assert hit.score == hit.lexical == pytest.approx(math.log(1 + 3.5 / 1.5) / 2.2)
    assert hit.cosine is None


def test_rareness_is_counted_over_everything_whatever_the_filters() -> None:
    request = SearchRequest(lexical="png", filters=SearchFilters(min_width=100, max_width=100))
    narrow = [*WORDS, image("five", filename="y.png", width=1)]
    (hit,) = Oracle(narrow).answer(request, None).hits
    assert hit.score == pytest.approx(math.log(1 + 3.5 / 2.5) / 2.2)


def test_class_of_an_object_is_one_of_its_words() -> None:
    images = [image("one", 0, ("dog", 0.9, 0), ("cat", 0.9, 0), filename="x.png")]
    assert found(images, None, lexical="cat", target="objects") == ["one#1"]
    assert found(images, None, lexical="cat") == []


def test_ranks_are_fused() -> None:
    images = [image("near", 0), image("middle", 10, tags=("sun",)), image("far", 20, tags=("sun", "sun"))]
    answer = Oracle(images).answer(SearchRequest(text="east", lexical="sun", lexical_weight=0.25), EAST)
    assert {hit.id: hit.score for hit in answer.hits} == pytest.approx(
        {
            "near": 0.75 / 61,
            "middle": 0.75 / 62 + 0.25 / 62,
            "far": 0.75 / 63 + 0.25 / 61,
        }
    )
    assert [hit.id for hit in answer.hits] == ["middle", "far", "near"]
    assert answer.hits[2].lexical is None


def test_scores_are_fused() -> None:
    images = [image("near", 0), image("middle", 60, tags=("sun",)), image("far", 90, tags=("sun", "sun"))]
    asked = SearchRequest(text="east", lexical="sun", fusion="weighted", lexical_weight=0.4)
    scores = {hit.id: hit.score for hit in Oracle(images).answer(asked, EAST).hits}
    assert scores == pytest.approx({"near": 0.6, "middle": 0.3, "far": 0.4}, abs=1e-6)


def test_best_object_of_each_image_stands_for_it() -> None:
    images = [
        image("a", 0, ("dog", 0.9, 50), ("dog", 0.8, 5)),
        image("b", 0, ("dog", 0.9, 1), ("cat", 0.8, 2)),
    ]
    assert found(images, target="objects", group="image") == ["b#0", "a#1"]
    assert found(
        images, target="objects", group="image", filters=SearchFilters.model_validate({"classes": ["cat"]})
    ) == ["b#1"]


def test_facets_count_each_hit_once() -> None:
    images = [
        image("a", 0, ("dog", 0.9, 0), ("dog", 0.8, 0), tags=("x", "y"), captured_at=AT),
        image("b", 0, ("dog", 0.9, 0), ("cat", 0.8, 0), tags=("x",)),
    ]
    asked = SearchRequest(text="east", facets=("classes", "tags", "captured_month", "uploaded_month"))
    assert Oracle(images).answer(asked, EAST).facets == {
        "classes": {"dog": 2, "cat": 1},
        "tags": {"x": 2, "y": 1},
        "captured_month": {"2026-01": 1},
        "uploaded_month": {"2026-01": 2},
    }
