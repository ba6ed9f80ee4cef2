"""From the conditions of a request to filter clauses of OpenSearch, the same for images and for objects."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from agents.index.tokens import fact, fact_range, ranked_range
from sightlog.errors import ContractError
from sightlog.filters import ClassFilter, MetadataFilter, SearchFilters
from sightlog.search import Target

_MOST_PIXELS = 2**31 - 1

Query = dict[str, Any]


def filter_query(target: Target, filters: SearchFilters, classes: Sequence[str]) -> Query | None:
    """The query that the documents fulfil, without scores; None if there are no conditions.

    `classes`: those that the model knows. Raises ContractError `unknown_class`.
    """
    _check_classes(filters.classes, classes)
    met, unmet = _class_clauses(target, filters.classes, filters.min_confidence)
    met += [_terms("tags", [tag]) for tag in filters.tags.all]
    if filters.tags.any:
        met.append(_terms("tags", filters.tags.any))
    if filters.tags.none:
        unmet.append(_terms("tags", filters.tags.none))
    met += _range("captured_at", gte=filters.captured_from, lt=filters.captured_to)
    met += _range("uploaded_at", gte=filters.uploaded_from, lt=filters.uploaded_to)
    met += map(_metadata_clause, filters.metadata)
    met += _range("width", gte=_pixels(filters.min_width), lte=_pixels(filters.max_width))
    met += _range("height", gte=_pixels(filters.min_height), lte=_pixels(filters.max_height))
    # An image has the areas of all its boxes, and one of them must be within both limits.
    met += _range("area", gte=filters.min_area, lte=filters.max_area)
    clauses = {name: queries for name, queries in (("filter", met), ("must_not", unmet)) if queries}
    return {"bool": clauses} if clauses else None


def _check_classes(asked: ClassFilter, classes: Sequence[str]) -> None:
    if unknown := sorted({*asked.any, *asked.all, *asked.none}.difference(classes)):
        raise ContractError("unknown_class", f"{', '.join(unknown)}; the model knows {', '.join(classes)}")


def _class_clauses(target: Target, asked: ClassFilter, min_confidence: float | None) -> tuple[list[Query], list[Query]]:
    """What must hold, and what must not."""
    if target == "objects":
        # The one detection that an object is must be that sure, whatever it must not be.
        met = [] if min_confidence is None else [_detected(None, 1, min_confidence)]
        met += [_terms("class", [name]) for name in asked.all]
        met += [_terms("class", asked.any)] if asked.any else []
        return met, [_terms("class", asked.none)] if asked.none else []
    if min_confidence is None and asked.min_count == 1:
        met = [_terms("classes", [name]) for name in asked.all]
        met += [_terms("classes", asked.any)] if asked.any else []
        return met, [_terms("classes", asked.none)] if asked.none else []
    met = [_detected(name, asked.min_count, min_confidence) for name in dict.fromkeys(asked.all)]
    if asked.any:
        met.append(_one_of(_detected(name, asked.min_count, min_confidence) for name in dict.fromkeys(asked.any)))
    elif not asked.all and (asked.min_count > 1 or not asked.none):
        met.append(_detected(None, asked.min_count, min_confidence))
    return met, [_detected(name, 1, min_confidence) for name in dict.fromkeys(asked.none)]


def _detected(class_name: str | None, count: int, min_confidence: float | None) -> Query:
    return {"range": {"ranked": ranked_range(class_name, count, min_confidence or 0.0)}}


def _metadata_clause(asked: MetadataFilter) -> Query:
    if asked.equals is not None:
        return _terms("facts", [fact(asked.field, asked.equals)])
    return {"range": {"facts": fact_range(asked.field, asked.at_least, asked.below)}}


def _pixels(limit: int | None) -> int | None:
    """Within what OpenSearch takes as an integer; no image is larger."""
    return None if limit is None else min(limit, _MOST_PIXELS)


def _one_of(queries: Iterable[Query]) -> Query:
    return {"bool": {"should": list(queries), "minimum_should_match": 1}}


def _terms(field: str, values: Sequence[str]) -> Query:
    return {"terms": {field: list(values)}}


def _range(field: str, **limits: Any) -> list[Query]:
    given = {name: limit for name, limit in limits.items() if limit is not None}
    return [{"range": {field: given}}] if given else []
