"""The search agent's metrics: served where a setting says so, and without a word of any caller."""

from __future__ import annotations

import socket
import urllib.error
import urllib.request
from types import SimpleNamespace
from typing import Any

import pytest

from agents.metrics import SearchMetrics
from agents.settings import AgentSettings
from sightlog.search import SearchError, SearchReply


def metrics() -> SearchMetrics:
    turns: Any = SimpleNamespace(waiting=7, callers=2)
    texts: Any = SimpleNamespace(hits=3, misses=1)
    return SearchMetrics(turns, texts)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def page(port: int) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
        return str(answer.read().decode())


def test_prometheus_reads_counters_and_what_waits() -> None:
    counted, port = metrics(), free_port()
    counted.answered(SearchReply(), 0.003)
    counted.answered(SearchReply(error=SearchError(code="unavailable", message="no result within 4.5 s")), 4.5)
    counted.late()
    with counted.served(port):
        lines = page(port).splitlines()
    for line in (
        'sightlog_search_requests_total{outcome="found"} 1.0',
        'sightlog_search_requests_total{outcome="late"} 1.0',
        'sightlog_search_errors_total{code="unavailable"} 1.0',
        'sightlog_search_texts_total{cache="hit"} 3.0',
        'sightlog_search_texts_total{cache="miss"} 1.0',
        "sightlog_search_waiting 7.0",
        "sightlog_search_callers 2.0",
        'sightlog_search_seconds_bucket{le="0.004"} 1.0',
        "sightlog_search_seconds_count 2.0",
    ):
        assert line in lines


def test_nothing_is_served_unless_a_port_is_set() -> None:
    assert AgentSettings.load().metrics_port is None
    with metrics().served(None):
        pass


def test_the_port_is_free_again_afterwards() -> None:
    port = free_port()
    for _ in range(2):
        with metrics().served(port):
            assert page(port)
    with pytest.raises(urllib.error.URLError):
        page(port)
