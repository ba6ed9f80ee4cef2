"""`bench quality`: unseen scenes through the whole stream, found again with words through the topics."""

from __future__ import annotations

import uuid
from typing import Any

from rich.console import Console

from agents.settings import AgentSettings
from load_tests.publishing import publish_and_wait
from load_tests.retrieval import best_first, retrieval_quality
from load_tests.running import forget, stack_for_bench
from models.photos import QUALITY_SEED, QUALITY_SIZES, photos
from models.scenes import Kind, caption_of
from sightlog.client import Client
from sightlog.filters import SearchFilters
from sightlog.search import SearchRequest


def measure(console: Console, count: int = 80) -> dict[str, Any]:
    """R@1 and mAP over photos, one query for each kind of object that is present, each photo by its best object."""
    tag = f"bench-quality-{uuid.uuid4().hex[:8]}"
    made = photos(count, QUALITY_SEED, QUALITY_SIZES)
    with stack_for_bench(console) as (_stack, settings):
        try:
            outcome = publish_and_wait(console, settings, made, tag)
            image_ids = list(outcome.receipts)
            kinds = sorted({thing.kind for photo in made for thing in photo.objects})
            relevant = [
                {i for i, photo in zip(image_ids, made, strict=True) if any(t.kind == kind for t in photo.objects)}
                for kind in kinds
            ]
            quality = retrieval_quality(_rankings(settings, tag, kinds), relevant)
        finally:
            forget(settings, tag)
    truth = sum(len(photo.objects) for photo in made)
    return {
        "images": count,
        "queries": quality.queries,
        "objects_found_per_object_drawn": round(sum(r.objects for r in outcome.receipts.values()) / truth, 3),
        "r_at_1": round(quality.r_at_1, 4),
        "map": round(quality.map, 4),
    }


def _rankings(settings: AgentSettings, tag: str, kinds: list[Kind]) -> list[list[str]]:
    rankings = []
    with Client(settings) as client:
        for kind in kinds:
            request = SearchRequest(
                text=f"a photo of a {caption_of(kind)}", target="objects", k=1000, filters=SearchFilters(tags=(tag,))
            )
            best: dict[str, float] = {}
            for hit in client.search(request, timeout=30).hits:
                best[hit.image_id] = max(hit.score, best.get(hit.image_id, -1.0))
            rankings.append(best_first(best))
    return rankings
