"""Callers on threads: flat out, or paced; what came back, and when, in memory that does not grow."""

from __future__ import annotations

import itertools
import math
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

from load_tests.search_mix import Ask, Mix, perform
from sightlog.client import Client

#: Latencies are counted in buckets, each 2 % wider than the one before, from 0.1 ms on.
_FIRST_MS, _STEP = 0.1, math.log(1.02)
_BUCKETS = 700


class Load:
    """Outcomes and latencies so far. Safe in threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._outcomes: Counter[str] = Counter()
        self._wrong: Counter[str] = Counter()
        self._buckets = [0] * _BUCKETS
        self.done = 0
        #: Seconds by which a search was at most begun late, because all callers were busy.
        self.behind_s = 0.0

    def add(self, ask: Ask, outcome: str, ms: float, behind_s: float = 0.0) -> None:
        """One search, or walk through pages, has ended."""
        bucket = int(math.log(max(ms, _FIRST_MS) / _FIRST_MS) / _STEP)
        with self._lock:
            self.done += 1
            self._outcomes[outcome] += 1
            self._buckets[min(bucket, _BUCKETS - 1)] += 1
            self.behind_s = max(self.behind_s, behind_s)
            if outcome not in ask.expected:
                self._wrong[f"{ask.kind}: {outcome}"] += 1

    def percentile(self, percent: float) -> float:
        """Milliseconds, to 2 %."""
        wanted = self.done * percent / 100
        for bucket, reached in enumerate(itertools.accumulate(self._buckets)):
            if reached >= wanted:
                return _FIRST_MS * math.exp(_STEP * (bucket + 0.5))
        return math.inf

    def figures(self) -> dict[str, Any]:
        """For the report."""
        return {
            "searches": self.done,
            "outcomes": dict(self._outcomes.most_common()),
            "unexpected": dict(self._wrong.most_common()),
            "p50_ms": round(self.percentile(50), 1),
            "p99_ms": round(self.percentile(99), 1),
            "behind_s": round(self.behind_s, 2),
        }


class Callers:
    """Threads that share one client and one mix."""

    def __init__(self, client: Client, mix: Mix, threads: int) -> None:
        self._client, self._mix, self._threads = client, mix, threads
        self._lock = threading.Lock()

    def flat_out(self, seconds: float) -> int:
        """Ask without a pause; how many searches ended in time."""
        load, end = Load(), time.monotonic() + seconds

        def run() -> None:
            while time.monotonic() < end:
                ask = self._next()
                begun = time.monotonic()
                outcome = perform(self._client, ask)
                ended = time.monotonic()
                if ended < end:
                    load.add(ask, outcome, (ended - begun) * 1000)

        with self._running(run):
            pass
        return load.done

    @contextmanager
    def paced(self, rate: float) -> Iterator[Load]:
        """Ask `rate` times a second, at regular times, until the block is left."""
        load, stopped, numbers, start = Load(), threading.Event(), itertools.count(), time.monotonic()

        def run() -> None:
            while not stopped.is_set():
                with self._lock:
                    due, ask = start + next(numbers) / rate, self._mix.next()
                if stopped.wait(max(0.0, due - time.monotonic())):
                    return
                begun = time.monotonic()
                outcome = perform(self._client, ask)
                load.add(ask, outcome, (time.monotonic() - begun) * 1000, begun - due)

        with self._running(run):
            try:
                yield load
            finally:
                stopped.set()

    def _next(self) -> Ask:
        with self._lock:
            return self._mix.next()

    @contextmanager
    def _running(self, run: Callable[[], None]) -> Iterator[None]:
        """Run on all threads within the block, and wait for them at its end; what one raised is raised then."""
        with ThreadPoolExecutor(self._threads) as pool:
            futures = [pool.submit(run) for _ in range(self._threads)]
            yield
        for future in futures:
            future.result()
