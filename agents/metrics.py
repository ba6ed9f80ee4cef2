"""What the search agent counts, as Prometheus reads it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from prometheus_client import CollectorRegistry, Counter, Histogram, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from agents.delivery.fair import Turns
from agents.query.text_cache import TextCache
from sightlog.search import SearchReply

#: Seconds; a search takes some milliseconds, and a request waits up to a minute.
_BUCKETS = (0.002, 0.004, 0.008, 0.016, 0.032, 0.064, 0.125, 0.25, 0.5, 1, 2, 5, 10, 30, 60)

OUTCOMES = ("found", "no_good_match", "error", "late", "dead_letter")


class _Present(Collector):
    """What others know at the moment when it is asked for."""

    def __init__(self, turns: Turns, texts: TextCache) -> None:
        self._turns = turns
        self._texts = texts

    def collect(self) -> Iterable[Metric]:
        texts = CounterMetricFamily(
            "sightlog_search_texts", "Texts by whether their vector was known (hit) or not (miss)", labels=["cache"]
        )
        texts.add_metric(["hit"], self._texts.hits)
        texts.add_metric(["miss"], self._texts.misses)
        yield texts
        waiting, callers = self._turns.waiting, self._turns.callers
        yield GaugeMetricFamily("sightlog_search_waiting", "Requests that wait for their turn", value=waiting)
        yield GaugeMetricFamily("sightlog_search_callers", "Callers that wait for their turn", value=callers)


class SearchMetrics:
    """Counters in a registry of their own. Labels are outcomes and codes of this program, never words of a caller."""

    def __init__(self, turns: Turns, texts: TextCache) -> None:
        self.registry = CollectorRegistry()
        requests = Counter(
            "sightlog_search_requests", "Requests that have ended, and how", ["outcome"], registry=self.registry
        )
        self._requests = {outcome: requests.labels(outcome) for outcome in OUTCOMES}
        self._errors = Counter(
            "sightlog_search_errors", "Replies and dead letters with a code", ["code"], registry=self.registry
        )
        self._partial = Counter(
            "sightlog_search_partial", "Replies for which a part of the index did not answer", registry=self.registry
        )
        self._seconds = Histogram(
            "sightlog_search_seconds",
            "From receipt of a request until its reply was confirmed",
            buckets=_BUCKETS,
            registry=self.registry,
        )
        self.registry.register(_Present(turns, texts))

    def answered(self, reply: SearchReply, seconds: float) -> None:
        """A reply was confirmed `seconds` after its request was received."""
        outcome = "error" if reply.error else "no_good_match" if reply.no_good_match else "found"
        self._requests[outcome].inc()
        self._seconds.observe(seconds)
        if reply.error:
            self._errors.labels(reply.error.code).inc()
        if reply.partial:
            self._partial.inc()

    def late(self) -> None:
        """A request was dropped because its deadline had passed."""
        self._requests["late"].inc()

    def dead_letter(self, code: str) -> None:
        """A request whose caller cannot be told is a dead letter."""
        self._requests["dead_letter"].inc()
        self._errors.labels(code).inc()

    @contextmanager
    def served(self, port: int | None) -> Iterator[None]:
        """Serve `/metrics` on a port; nothing where it is None."""
        if port is None:
            yield
            return
        server, thread = start_http_server(port, registry=self.registry)
        try:
            yield
        finally:
            server.shutdown()
            server.server_close()
            thread.join()
