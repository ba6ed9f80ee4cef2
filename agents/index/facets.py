"""Counts over what was found."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from sightlog.search import FacetCount, FacetName, Target

#: Values of a facet; the rarer ones are left out.
_MOST_VALUES = 100
#: Values that a shard counts; more than documents of a window could well have, so counts are exact.
_MOST_COUNTED = 10_000

_MONTHS: dict[FacetName, str] = {"captured_month": "captured_at", "uploaded_month": "uploaded_at"}


def aggregations(target: Target, facets: Iterable[FacetName]) -> dict[str, Any]:
    """What OpenSearch is to count over the documents of a query."""
    fields = {"classes": "classes" if target == "images" else "class", "tags": "tags"}
    asked: dict[str, Any] = {}
    for name in facets:
        if name in _MONTHS:
            month = {"field": _MONTHS[name], "calendar_interval": "month", "format": "yyyy-MM", "min_doc_count": 1}
            asked[name] = {"date_histogram": month}
        else:
            asked[name] = {"terms": {"field": fields[name], "size": _MOST_VALUES, "shard_size": _MOST_COUNTED}}
    return asked


def counts(facets: Iterable[FacetName], answer: Mapping[str, Any]) -> dict[FacetName, tuple[FacetCount, ...]]:
    """Months in their order, other values by falling count and then by name."""
    return {
        name: tuple(
            FacetCount(value=bucket.get("key_as_string", bucket["key"]), count=bucket["doc_count"])
            for bucket in answer.get(name, {}).get("buckets", ())
        )
        for name in facets
    }
