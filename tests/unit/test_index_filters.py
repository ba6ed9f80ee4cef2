"""From the conditions of a request to filter clauses."""

from __future__ import annotations

from typing import Any

import pytest

from agents.index.filters import filter_query
from agents.index.tokens import fact, fact_range, ranked_range
from sightlog.errors import ContractError
from sightlog.filters import SearchFilters

CLASSES = ("circle", "traffic light", "star")
BOTH = pytest.mark.parametrize("target", ["images", "objects"])


def query(target: Any, **filters: Any) -> Any:
    return filter_query(target, SearchFilters.model_validate(filters), CLASSES)


def met(target: Any, **filters: Any) -> list[Any]:
    (verb, clauses), *others = query(target, **filters)["bool"].items()
    assert (verb, others) == ("filter", [])
    return list(clauses)


def unmet(target: Any, **filters: Any) -> list[Any]:
    (verb, clauses), *others = query(target, **filters)["bool"].items()
    assert (verb, others) == ("must_not", [])
    return list(clauses)


def detected(name: str | None, count: int, least: float) -> dict[str, Any]:
    return {"range": {"ranked": ranked_range(name, count, least)}}


@BOTH
def test_no_conditions_are_no_filter(target: str) -> None:
    assert query(target) is None


@BOTH
def test_tags_are_all_any_or_none_of_those_named(target: str) -> None:
    assert met(target, tags=["a", "b"]) == [{"terms": {"tags": ["a"]}}, {"terms": {"tags": ["b"]}}]
    assert met(target, tags={"any": ["a", "b"]}) == [{"terms": {"tags": ["a", "b"]}}]
    assert unmet(target, tags={"none": ["a", "b"]}) == [{"terms": {"tags": ["a", "b"]}}]


@BOTH
@pytest.mark.parametrize("field", ["captured", "uploaded"])
def test_times_are_from_inclusive_to_exclusive(target: str, field: str) -> None:
    first, last = "2024-05-01T00:00:00Z", "2024-06-01T00:00:00Z"
    (clause,) = met(target, **{f"{field}_from": first, f"{field}_to": last})
    limits = clause["range"][f"{field}_at"]
    assert {name: time.isoformat() for name, time in limits.items()} == {
        "gte": "2024-05-01T00:00:00+00:00",
        "lt": "2024-06-01T00:00:00+00:00",
    }
    (clause,) = met(target, **{f"{field}_to": last})
    assert list(clause["range"][f"{field}_at"]) == ["lt"]


@BOTH
def test_sizes_and_areas_are_within_both_limits(target: str) -> None:
    assert met(target, min_width=1, max_width=2, min_height=3, max_height=4, min_area=0.0, max_area=0.5) == [
        {"range": {"width": {"gte": 1, "lte": 2}}},
        {"range": {"height": {"gte": 3, "lte": 4}}},
        {"range": {"area": {"gte": 0.0, "lte": 0.5}}},
    ]


@BOTH
def test_sizes_beyond_all_measure_are_still_integers(target: str) -> None:
    for limit in (2**31, 2**80):
        assert met(target, min_width=limit) == [{"range": {"width": {"gte": 2**31 - 1}}}]
        assert met(target, max_height=limit) == [{"range": {"height": {"lte": 2**31 - 1}}}]


@BOTH
def test_metadata_is_equal_or_within_a_range(target: str) -> None:
    asked = [
        {"field": "a.b", "equals": False},
        {"field": "c", "at_least": 1.5, "below": 2},
        {"field": "d", "below": "x"},
    ]
    assert met(target, metadata=asked) == [
        {"terms": {"facts": [fact("a.b", False)]}},
        {"range": {"facts": fact_range("c", 1.5, 2.0)}},
        {"range": {"facts": fact_range("d", None, "x")}},
    ]


def test_image_has_classes_detected() -> None:
    assert met("images", classes=["star", "circle"]) == [{"terms": {"classes": ["star", "circle"]}}]
    assert met("images", classes={"all": ["star", "circle"]}) == [
        {"terms": {"classes": ["star"]}},
        {"terms": {"classes": ["circle"]}},
    ]
    assert unmet("images", classes={"none": ["star"]}) == [{"terms": {"classes": ["star"]}}]


def test_image_has_as_many_detections_that_are_that_sure() -> None:
    asked: dict[str, Any] = {"classes": {"all": ["star"], "min_count": 3}, "min_confidence": 0.5}
    assert met("images", **asked) == [detected("star", 3, 0.5)]
    asked = {"classes": {"any": ["star", "circle"], "min_count": 2}}
    either = [detected("star", 2, 0.0), detected("circle", 2, 0.0)]
    assert met("images", **asked) == [{"bool": {"should": either, "minimum_should_match": 1}}]


def test_image_has_any_detections_where_no_class_is_named() -> None:
    assert met("images", min_confidence=0.5) == [detected(None, 1, 0.5)]
    assert met("images", min_confidence=0.0) == [detected(None, 1, 0.0)]
    assert met("images", classes={"min_count": 2}) == [detected(None, 2, 0.0)]


def test_image_has_no_detection_of_a_class_that_is_that_sure() -> None:
    assert unmet("images", classes={"none": ["star"]}, min_confidence=0.5) == [detected("star", 1, 0.5)]
    asked = query("images", classes={"none": ["star"], "min_count": 2})["bool"]
    assert asked == {"filter": [detected(None, 2, 0.0)], "must_not": [detected("star", 1, 0.0)]}


def test_object_has_one_of_the_classes_and_is_that_sure() -> None:
    assert met("objects", classes=["star", "circle"], min_confidence=0.5) == [
        detected(None, 1, 0.5),
        {"terms": {"class": ["star", "circle"]}},
    ]
    assert met("objects", classes={"all": ["star"]}) == [{"terms": {"class": ["star"]}}]
    assert query("objects", classes={"none": ["star"]}, min_confidence=0.5)["bool"] == {
        "filter": [detected(None, 1, 0.5)],
        "must_not": [{"terms": {"class": ["star"]}}],
    }


@BOTH
@pytest.mark.parametrize("how", ["any", "all", "none"])
def test_unknown_class_is_refused_with_those_that_are_known(target: str, how: str) -> None:
    with pytest.raises(ContractError, match=r"zebra; the model knows circle, traffic light, star") as refused:
        query(target, classes={how: ["zebra"]})
    assert refused.value.code == "unknown_class"
