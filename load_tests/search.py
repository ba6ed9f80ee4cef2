"""`bench search`: a search through the topics against the same search without them, in the same run."""

from __future__ import annotations

import asyncio
import functools
import time
import uuid
from collections.abc import Sequence
from typing import Any

import numpy as np
from rich.console import Console

from agents.query.answers import Answers, open_answers
from agents.settings import AgentSettings
from load_tests.bare_echo import Floor, floor
from load_tests.running import cpu_seconds, forget, machine, stack_for_bench, warm_up
from load_tests.search_load import THINGS, asking, fill, rush, zipf_mix
from models.manifest import load_manifest
from sightlog.async_client import AsyncClient
from sightlog.client import Client
from stack.local import LocalStack

#: Callers at once, and how the requests of a rush are divided, so that both ways see the same machine.
_CALLERS = 64
_RUSHES = 5
_RUSH = 600
#: Requests of the mix with which the share of known texts is counted, from an empty cache on.
_MIX = 5000
_SECONDS = 30.0


def measure(console: Console, count: int = 100_000, rounds: int = 1000) -> dict[str, Any]:
    """Both ways in turns: one request at a time, then many at once; `count`: vectors in the index.

    Direct means: the same rooms as the search agent's, called in this process. All texts but those of the mix are known
    to both before they count, so that neither asks Triton.
    """
    tag = f"bench-search-{uuid.uuid4().hex[:8]}"
    with stack_for_bench(console) as (stack, settings):
        manifest = load_manifest(settings.model_folder)
        try:
            asyncio.run(fill(settings, manifest, count, tag, console))
            figures = asyncio.run(_figures(stack, settings, rounds, console))
        finally:
            forget(settings, tag)
    return {"vectors": count, "rounds": rounds, **figures, "machine": machine()}


async def _figures(stack: LocalStack, settings: AgentSettings, rounds: int, console: Console) -> dict[str, Any]:
    manifest = load_manifest(settings.model_folder)
    async with open_answers(settings, manifest) as answers, AsyncClient(settings) as many:
        with Client(settings) as client:
            console.print("warming up", style="dim")
            size = 0
            for _ in warm_up(lambda: cpu_seconds(stack, "kafka", "opensearch")):
                for text in THINGS:
                    await answers.find(asking(text), _SECONDS)
                    size = len(client.search(asking(text), timeout=_SECONDS).to_kafka())
            console.print("one at a time", style="dim")
            with floor(settings.kafka, size) as bare:
                figures = await _one_at_a_time(answers, client, bare, rounds)
        console.print(f"{_CALLERS} at once", style="dim")
        figures |= await _at_once(answers, many)
        console.print("a mix of texts", style="dim")
        return figures | await _known_texts(many)


async def _one_at_a_time(answers: Answers, client: Client, bare: Floor, rounds: int) -> dict[str, Any]:
    topic, direct, least = [], [], []
    for number in range(rounds):
        request = asking(THINGS[number % len(THINGS)])
        started = time.perf_counter()
        await answers.find(request, _SECONDS)
        between = time.perf_counter()
        reply = client.search(request, timeout=_SECONDS)
        topic.append(time.perf_counter() - between)
        direct.append(between - started)
        least.append(bare.ask(request.to_kafka()))
        if not reply.hits or not reply.cached:
            raise RuntimeError(f"not what was to be measured: {reply}")
    ways = {"topic": topic, "direct": direct, "floor": least}
    figures = {f"{way}_{name}": value for way, took in ways.items() for name, value in _percentiles(took).items()}
    overhead = {
        f"overhead_{name}": round(value - figures[f"direct_{name}"], 2) for name, value in _percentiles(topic).items()
    }
    return {**overhead, **figures}


def _percentiles(seconds: Sequence[float]) -> dict[str, float]:
    p50, p99 = np.percentile(np.array(seconds) * 1000, [50, 99])
    return {"p50_ms": round(float(p50), 2), "p99_ms": round(float(p99), 2)}


async def _at_once(answers: Answers, client: AsyncClient) -> dict[str, Any]:
    """Requests a second with many callers, both ways in turns; the first turn of each is a warm-up."""
    directly = functools.partial(answers.find, seconds=_SECONDS)
    by_topic = functools.partial(client.search, timeout=_SECONDS)
    requests = [asking(THINGS[number % len(THINGS)]) for number in range(_RUSH)]
    rates: dict[str, list[float]] = {"topic": [], "direct": []}
    for _ in range(_RUSHES + 1):
        rates["direct"].append((await rush(directly, requests, _CALLERS)).rate)
        rates["topic"].append((await rush(by_topic, requests, _CALLERS)).rate)
    topic, direct = (float(np.median(rates[way][1:])) for way in ("topic", "direct"))
    return {
        "callers": _CALLERS,
        "topic_per_s": round(topic, 1),
        "direct_per_s": round(direct, 1),
        "throughput_ratio": round(topic / direct, 3),
    }


async def _known_texts(client: AsyncClient) -> dict[str, Any]:
    """The share of texts for which the search worker had to ask nobody."""
    by_topic = functools.partial(client.search, timeout=_SECONDS)
    done = await rush(by_topic, [asking(text) for text in zipf_mix(_MIX)], _CALLERS)
    hits = sum(reply.cached for reply in done.replies)
    return {"cache_hit_rate": round(hits / len(done.replies), 3), "mix_per_s": round(done.rate, 1)}
