"""`bench soak-search`: mixed searches for a long time, at a share of capacity; what grows, and how fast."""

from __future__ import annotations

import asyncio
import os
import socket
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psutil
from opensearchpy.exceptions import OpenSearchException
from rich.console import Console

from agents.index.connection import connect
from agents.settings import AgentSettings
from load_tests.publishing import publish_and_wait
from load_tests.running import forget, machine, stack_for_bench
from load_tests.search_callers import Callers
from load_tests.search_mix import Mix
from load_tests.trend import Series
from models.photos import STREAM_SEED, STREAM_SIZES, photos
from sightlog.client import Client
from sightlog.filters import SearchFilters, TagFilter
from sightlog.search import SearchRequest
from stack.errors import NotRunningError
from stack.local import LocalStack
from stack.ports import http_get

#: Requests in flight at most; more than a worker answers at once.
_CALLERS = 48
#: Seconds that the capacity is measured, after as many to warm up.
_CAPACITY_S = 20.0
#: Samples of a run, and seconds between two of them at least.
_SAMPLES, _SHORTEST_S = 720, 2.0
#: Lines of progress.
_LINES = 60
#: After the end: longer than any reply is waited for.
_DRAIN_S = 35.0
_MIB = 2**20


def measure(console: Console, count: int = 200, minutes: float = 60.0, share: float = 0.7) -> dict[str, Any]:
    """Ask for `minutes` at `share` of what the same callers get answered when they never pause.

    Of each series: the median of its first and of its last third, and its slope an hour (Theil and Sen), without the
    first quarter of the run, in which caches fill.
    """
    tag = f"bench-soak-{uuid.uuid4().hex[:8]}"
    with _metrics_asked_for(), stack_for_bench(console) as (stack, settings):
        try:
            made = photos(count, STREAM_SEED, STREAM_SIZES)
            published = publish_and_wait(console, settings, made, tag)
            pictures = dict(zip(published.receipts, (photo.jpeg for photo in made), strict=True))
            with Client(settings) as client:
                mix = Mix(tag, pictures, _objects(client, tag), seed=7)
                return _soaked(console, Callers(client, mix, _CALLERS), Watch(stack, settings, client), minutes, share)
        finally:
            forget(settings, tag)


def _soaked(console: Console, callers: Callers, watch: Watch, minutes: float, share: float) -> dict[str, Any]:
    console.print(f"measuring the capacity for {2 * _CAPACITY_S:g} s", style="dim")
    callers.flat_out(_CAPACITY_S)
    capacity = callers.flat_out(_CAPACITY_S) / _CAPACITY_S
    rate = capacity * share
    console.print(f"{capacity:.0f} searches/s; now {rate:.0f}/s for {minutes:g} minutes", style="dim")
    seconds = minutes * 60
    pause = max(seconds / _SAMPLES, _SHORTEST_S)
    said = started = time.monotonic()
    with callers.paced(rate) as load:
        while (at := time.monotonic() - started) < seconds:
            watch.look(at)
            if time.monotonic() - said > seconds / _LINES:
                said = time.monotonic()
                console.print(f"{at / 60:6.1f} min  {load.done} searches  {watch.last()}", style="dim")
            time.sleep(min(pause, max(0.0, started + seconds - time.monotonic())))
    return {
        "minutes": minutes,
        "capacity_per_s": round(capacity, 1),
        "rate_per_s": round(load.done / seconds, 1),
        **load.figures(),
        **watch.figures(),
        "left_at_end": watch.left(_DRAIN_S),
        "machine": machine(),
    }


def _objects(client: Client, tag: str) -> list[str]:
    ours = SearchFilters(tags=TagFilter(all=(tag,)))
    request = SearchRequest(text="a shape", target="objects", k=200, filters=ours)
    return [hit.object_id for hit in client.search(request, timeout=60).hits if hit.object_id is not None]


class Watch:
    """Looks at what could grow: memory of the search worker and of this process, and what waits in them."""

    def __init__(self, stack: LocalStack, settings: AgentSettings, client: Client) -> None:
        self._stack, self._settings, self._client = stack, settings, client
        self._own = psutil.Process()
        self._pids: set[int] = set()
        self.series: dict[str, Series] = {}

    def look(self, seconds: float) -> None:
        """Take a sample, `seconds` after the start."""
        for name, value in self._now().items():
            if value is not None:
                self.series.setdefault(name, Series()).add(seconds, value)

    def _now(self) -> dict[str, float | None]:
        metrics = worker_metrics(self._settings.metrics_port)
        return {
            "worker_rss_mib": self._worker_rss(),
            "client_rss_mib": self._own.memory_info().rss / _MIB,
            "client_waiting": float(self._client._connection.waiting),
            "worker_waiting": metrics.get("sightlog_search_waiting"),
            "worker_callers": metrics.get("sightlog_search_callers"),
            "points_in_time": asyncio.run(_points_in_time(self._settings)),
        }

    def _worker_rss(self) -> float | None:
        try:
            pid = self._stack.pid("search")
            self._pids.add(pid)
            return float(psutil.Process(pid).memory_info().rss / _MIB)
        except (NotRunningError, psutil.Error):  # it is being started again, which `worker_restarts` tells
            return None

    def last(self) -> str:
        """The newest sample in words."""
        return "  ".join(f"{name} {series.last:.0f}" for name, series in self.series.items())

    def figures(self) -> dict[str, Any]:
        """First, last and slope of each series, and how often the worker was started again."""
        return {name: series.summary() for name, series in self.series.items()} | {
            "worker_restarts": len(self._pids) - 1
        }

    def left(self, patience: float) -> dict[str, float]:
        """What still waits once nobody asks any more, after `patience` seconds at most."""
        end = time.monotonic() + patience
        while True:
            left = {name: value for name, value in self._now().items() if name.endswith("_waiting") and value}
            if not left or time.monotonic() > end:
                return left
            time.sleep(0.2)


def worker_metrics(port: int | None) -> dict[str, float]:
    """Values without labels of a search worker's /metrics, by name; none where it serves none."""
    if port is None:
        return {}
    try:
        _status, body = http_get(port, "/metrics")
    except OSError:
        return {}
    lines = body.decode().splitlines()
    pairs = (line.split(" ") for line in lines if not line.startswith("#") and "{" not in line)
    return {name: float(value) for name, value in pairs}


async def _points_in_time(settings: AgentSettings) -> float | None:
    try:
        async with connect(settings.opensearch) as opensearch:
            stats = await opensearch.nodes.stats(metric="indices", index_metric="search")
    except OpenSearchException:
        return None
    return float(sum(node["indices"]["search"]["point_in_time_current"] for node in stats["nodes"].values()))


@contextmanager
def _metrics_asked_for() -> Iterator[None]:
    """Let a stack that is started here serve its metrics on a free port, unless the environment names one."""
    name = "SIGHTLOG_METRICS_PORT"
    if name in os.environ:
        yield
        return
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        os.environ[name] = str(probe.getsockname()[1])
    try:
        yield
    finally:
        del os.environ[name]
