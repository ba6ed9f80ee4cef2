"""`bench search`: a search through the topics against the same search without them, taken in turns."""

from __future__ import annotations

import asyncio
import time
import uuid
from typing import Any

import numpy as np
from rich.console import Console

from agents.app import model_identity
from agents.index.connection import connect
from agents.index.queries import IndexSearcher
from agents.inference.client import TritonClient
from agents.settings import AgentSettings
from load_tests.publishing import publish_and_wait
from load_tests.running import forget, machine, stack_for_bench
from models.manifest import load_manifest
from models.photos import STREAM_SEED, STREAM_SIZES, photos
from models.scenes import COLOURS, PATTERNS, SHAPES
from models.tokenizer import ClipTokenizer
from sightlog.client import Client
from sightlog.search import SearchRequest

#: Rounds that are not counted, while the virtual machines compile what is hot.
_WARM_UP = 300


def measure(console: Console, count: int = 100, rounds: int = 500) -> dict[str, Any]:
    """Medians of one search at a time; both ways in turns, so that both see the same machine."""
    tag = f"bench-search-{uuid.uuid4().hex[:8]}"
    with stack_for_bench(console) as (_stack, settings):
        try:
            publish_and_wait(console, settings, photos(count, STREAM_SEED, STREAM_SIZES), tag)
            topic_ms, direct_ms = asyncio.run(_both_ways(settings, rounds))
        finally:
            forget(settings, tag)
    topic, direct = np.percentile(topic_ms, [50, 99]), np.percentile(direct_ms, [50, 99])
    return {
        "rounds": rounds,
        "topic_p50_ms": round(float(topic[0]), 2),
        "topic_p99_ms": round(float(topic[1]), 2),
        "direct_p50_ms": round(float(direct[0]), 2),
        "direct_p99_ms": round(float(direct[1]), 2),
        "overhead_p50_ms": round(float(topic[0] - direct[0]), 2),
        "machine": machine(),
    }


async def _both_ways(settings: AgentSettings, rounds: int) -> tuple[list[float], list[float]]:
    manifest = load_manifest(settings.model_folder)
    tokenizer = ClipTokenizer(manifest.clip.context_length)
    kinds = [f"a {p} {c} {s}" for p in PATTERNS for c in COLOURS for s in SHAPES]
    topic_ms, direct_ms = [], []
    async with TritonClient(settings.triton, manifest.digest) as triton, connect(settings.opensearch) as opensearch:
        searcher = IndexSearcher(opensearch, settings.index, model_identity(manifest))
        with Client(settings) as client:

            async def direct(text: str, request: SearchRequest) -> None:
                vector = await triton.embed_text(tokenizer.encode([text])[0])
                await searcher.search(request, vector, 10)

            for number in range(-_WARM_UP, rounds):
                text = kinds[number % len(kinds)]
                request = SearchRequest(text=text, target="objects")
                started = time.perf_counter()
                await direct(text, request)
                between = time.perf_counter()
                client.search(request)
                ended = time.perf_counter()
                if number >= 0:
                    direct_ms.append((between - started) * 1000)
                    topic_ms.append((ended - between) * 1000)
    return topic_ms, direct_ms
