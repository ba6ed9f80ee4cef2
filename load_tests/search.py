"""`bench search`: a search through the topics against the same search without them, taken in turns."""

from __future__ import annotations

import asyncio
import time
import uuid
from typing import Any

import numpy as np
from agents.index.queries import IndexSearcher
from rich.console import Console

from agents.app import model_identity
from agents.index.connection import connect
from agents.inference.client import TritonClient
from agents.settings import AgentSettings
from load_tests.publishing import publish_and_wait
from load_tests.running import cpu_seconds, forget, machine, stack_for_bench, warm_up
from models.manifest import load_manifest
from models.photos import STREAM_SEED, STREAM_SIZES, photos
from models.scenes import COLOURS, PATTERNS, SHAPES
from models.tokenizer import ClipTokenizer
from sightlog.client import Client
from sightlog.search import SearchRequest
from stack.local import LocalStack

#: Every kind of query; one round of each is a part of the warm-up.
_TEXTS = [f"a {pattern} {colour} {shape}" for pattern in PATTERNS for colour in COLOURS for shape in SHAPES]


def measure(console: Console, count: int = 100, rounds: int = 500) -> dict[str, Any]:
    """Medians of one search at a time; both ways in turns, so that both see the same machine.

    Triton has embedded every query before it counts, and answers it from its cache both ways.
    """
    tag = f"bench-search-{uuid.uuid4().hex[:8]}"
    with stack_for_bench(console) as (stack, settings):
        try:
            publish_and_wait(console, settings, photos(count, STREAM_SEED, STREAM_SIZES), tag)
            topic_ms, direct_ms = asyncio.run(_both_ways(stack, settings, rounds))
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


async def _both_ways(stack: LocalStack, settings: AgentSettings, rounds: int) -> tuple[list[float], list[float]]:
    manifest = load_manifest(settings.model_folder)
    tokenizer = ClipTokenizer(manifest.clip.context_length)
    async with TritonClient(settings.triton, manifest.digest) as triton, connect(settings.opensearch) as opensearch:
        searcher = IndexSearcher(opensearch, settings.index, model_identity(manifest))
        with Client(settings) as client:

            async def both(text: str) -> tuple[float, float]:
                request = SearchRequest(text=text, target="objects")
                started = time.perf_counter()
                vector = await triton.embed_text(tokenizer.encode([text])[0])
                await searcher.search(request, vector, 10)
                between = time.perf_counter()
                client.search(request)
                return (time.perf_counter() - between) * 1000, (between - started) * 1000

            for _ in warm_up(lambda: cpu_seconds(stack, "kafka", "opensearch")):
                for text in _TEXTS:
                    await both(text)
            measured = [await both(_TEXTS[number % len(_TEXTS)]) for number in range(rounds)]
    return [topic for topic, _ in measured], [direct for _, direct in measured]
