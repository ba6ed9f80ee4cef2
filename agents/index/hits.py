"""From documents of the indices to hits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from agents.index.question import VectorQuestion
from sightlog.search import Hit, Target

_OF_BOTH = (
    "image_id", "dataref", "filename", "event_source", "width", "height", "tags", "captured_at", "uploaded_at",
    "metadata",
)  # fmt: skip
_OF_OBJECTS = ("class", "confidence", "box")


class Entry(NamedTuple):
    """A document that was found, without what it holds."""

    id: str
    score: float
    cosine: float | None
    lexical: float | None


def source_fields(target: Target, vectors: bool) -> list[str]:
    """Fields of a document that a hit shows."""
    return [*_OF_BOTH, *(_OF_OBJECTS if target == "objects" else ()), *(("vector",) if vectors else ())]


def cosine_of(score: float) -> float:
    """OpenSearch scores cosine similarity as (1 + cosine) / 2, in float32."""
    return min(max(2 * score - 1, -1.0), 1.0)


def hit_of(target: Target, entry: Entry, source: Mapping[str, Any], question: VectorQuestion | None) -> Hit:
    """The hit of a document."""
    is_object = target == "objects"
    return Hit(
        image_id=source["image_id"],
        score=entry.score,
        relevance=None if question is None or entry.cosine is None else question.relevance(entry.cosine),
        cosine=entry.cosine,
        lexical_score=entry.lexical,
        source=source.get("dataref") or source.get("filename") or source["event_source"],
        object_id=entry.id if is_object else None,
        class_name=source["class"] if is_object else None,
        confidence=source["confidence"] if is_object else None,
        box=source["box"] if is_object else None,
        width=source["width"],
        height=source["height"],
        tags=source.get("tags", ()),
        captured_at=source.get("captured_at"),
        uploaded_at=source["uploaded_at"],
        metadata=source.get("metadata", {}),
        vector=source.get("vector"),
    )
