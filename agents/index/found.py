"""What a search found, before it becomes a reply."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from sightlog.search import FacetCount, FacetName, Hit


@dataclass(frozen=True)
class Found:
    """Hits by falling score, and what is to be said of them; the fields are those of SearchReply."""

    hits: tuple[Hit, ...] = ()
    no_good_match: bool = False
    partial: bool = False
    facets: Mapping[FacetName, tuple[FacetCount, ...]] = field(default_factory=dict)
    cursor: str | None = None
