"""The long run of searches: what it asks, how it paces, and whether it would see something grow."""

from __future__ import annotations

import http.server
import os
import threading
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from agents.settings import AgentSettings
from load_tests import soak_search
from load_tests.cli import bench
from load_tests.search_callers import Callers, Load
from load_tests.search_mix import FOUND, SHARES, Ask, Mix, perform
from load_tests.soak_search import Watch, worker_metrics
from load_tests.trend import Series, slope_per_hour
from sightlog.errors import NoReply, PublishFailed, SearchFailed
from sightlog.search import SearchReply, SearchRequest
from stack.errors import NotRunningError

PICTURES = {f"image-{number}": b"jpeg" for number in range(5)}


def mix(seed: int = 1) -> Mix:
    return Mix("tag", PICTURES, ["image-0#0"], seed)


class FakeClient:
    """Answers with what it is given, or raises it; a list of replies one after the other."""

    def __init__(self, *answers: Any) -> None:
        self._answers = list(answers)
        self.asked: list[tuple[SearchRequest, float | None]] = []
        self._lock = threading.Lock()

    def search(self, request: SearchRequest, *, timeout: float | None = None) -> SearchReply:
        with self._lock:
            self.asked.append((request, timeout))
            answer = self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]
        if isinstance(answer, Exception):
            raise answer
        assert isinstance(answer, SearchReply)
        return answer


def test_all_kinds_are_asked_about_as_often_as_they_should_be() -> None:
    made = mix()
    asked = Counter(made.next().kind for _ in range(4000))
    assert set(asked) == set(SHARES)
    for kind, share in SHARES.items():
        assert asked[kind] / 4000 == pytest.approx(share, abs=0.03)


def test_the_same_seed_asks_the_same() -> None:
    one, same, other = mix(), mix(), mix(2)
    first = [one.next() for _ in range(200)]
    assert first == [same.next() for _ in range(200)]
    assert first != [other.next() for _ in range(200)]


def test_most_texts_come_again_and_many_come_once() -> None:
    made = mix()
    texts = Counter(ask.request.text for ask in (made.next() for _ in range(4000)) if ask.kind == "text")
    assert sum(texts.values()) - len(texts) > 0.4 * sum(texts.values())
    assert sum(count == 1 for count in texts.values()) > 100


@pytest.mark.parametrize(
    ("answer", "outcome"),
    [
        (SearchReply(), "found"),
        (SearchReply(no_good_match=True), "no_good_match"),
        (SearchFailed("unknown_class", "x"), "unknown_class"),
        (NoReply("x"), "no_reply"),
        (PublishFailed("x"), "PublishFailed"),
    ],
)
def test_what_becomes_of_a_search_has_a_name(answer: Any, outcome: str) -> None:
    assert perform(FakeClient(answer), Ask("text", SearchRequest(text="x"))) == outcome  # type: ignore[arg-type]


def test_pages_are_turned_as_far_as_there_are_any_and_no_further_than_wanted() -> None:
    client = FakeClient(SearchReply(cursor="1"), SearchReply(cursor="2"), SearchReply())
    ask = Ask("pages", SearchRequest(text="x", pages=True), pages=2)
    perform(client, ask)  # type: ignore[arg-type]
    assert [request.cursor for request, _ in client.asked] == [None, "1"]
    perform(client, ask)  # type: ignore[arg-type]
    assert [request.cursor for request, _ in client.asked[2:]] == [None]


def test_outcomes_that_were_not_expected_stand_out() -> None:
    load = Load()
    load.add(Ask("text", SearchRequest(text="x")), "found", 1)
    load.add(Ask("mistake", SearchRequest(text="x"), ("unknown_class",)), "unknown_class", 1)
    load.add(Ask("text", SearchRequest(text="x")), "unavailable", 1)
    assert load.figures()["unexpected"] == {"text: unavailable": 1}
    assert load.figures()["outcomes"] == {"found": 1, "unknown_class": 1, "unavailable": 1}


def test_percentiles_come_from_buckets() -> None:
    load = Load()
    for ms in range(1, 1001):
        load.add(Ask("text", SearchRequest(text="x")), FOUND[0], ms)
    assert load.percentile(50) == pytest.approx(500, rel=0.03)
    assert load.percentile(99) == pytest.approx(990, rel=0.03)


def test_paced_callers_ask_at_their_rate_and_stop() -> None:
    client, before = FakeClient(SearchReply()), threading.active_count()
    started = time.monotonic()
    with Callers(client, mix(), 4).paced(200) as load:  # type: ignore[arg-type]
        while load.done < 60:
            time.sleep(0.005)
        took = time.monotonic() - started
    assert took >= 59 / 200
    assert load.done == sum(1 for request, _ in client.asked if request.cursor in (None, "forged"))
    assert threading.active_count() == before


def test_a_bug_on_a_caller_s_thread_is_not_lost() -> None:
    client = FakeClient(ZeroDivisionError("a bug"))
    with pytest.raises(ZeroDivisionError), Callers(client, mix(), 2).paced(1000):  # type: ignore[arg-type]
        time.sleep(0.05)


def test_growth_shows_in_the_slope_and_noise_does_not() -> None:
    noise = np.random.default_rng(0).normal(0, 3, 300)
    seconds = np.arange(300) * 12.0
    flat = slope_per_hour(seconds.tolist(), (200 + noise).tolist())
    growing = slope_per_hour(seconds.tolist(), (200 + noise + seconds / 3600 * 20).tolist())
    assert flat == pytest.approx(0, abs=2)
    assert growing == pytest.approx(20, abs=2)


def test_what_happens_while_caches_fill_does_not_count() -> None:
    series = Series()
    for second in range(100):
        series.add(second, 500.0 if second < 20 else 200.0)
    assert series.summary() == {"first": 200.0, "last": 200.0, "highest": 200.0, "slope_per_hour": 0.0}


def test_one_sample_has_no_slope() -> None:
    series = Series()
    series.add(0, 5)
    assert series.summary()["slope_per_hour"] is None


@pytest.fixture
def metrics_port() -> Iterator[int]:
    class Page(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b'# HELP a b\nsightlog_search_waiting 3.0\nsightlog_search_errors_total{code="x"} 1.0\n')

        def log_message(self, *_: Any) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Page) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server.server_address[1]
        server.shutdown()
        thread.join()


def test_what_waits_in_a_worker_is_read_from_its_metrics(metrics_port: int) -> None:
    assert worker_metrics(metrics_port) == {"sightlog_search_waiting": 3.0}


def test_a_worker_without_metrics_has_none(metrics_port: int) -> None:
    assert worker_metrics(None) == {}
    assert worker_metrics(1) == {}


class FakeStack:
    """A search worker with a new process each time, which is missing while it is started again."""

    def __init__(self, *pids: int | None) -> None:
        self._pids = iter(pids)

    def pid(self, name: str) -> int:
        assert name == "search"
        pid = next(self._pids)
        if pid is None:
            raise NotRunningError("search is not running")
        return pid


class FakeConnection:
    waiting = 3


def test_a_worker_that_is_started_again_is_counted_and_missed_in_between(monkeypatch: pytest.MonkeyPatch) -> None:
    async def points_in_time(_settings: Any) -> float | None:
        return None

    monkeypatch.setattr(soak_search, "_points_in_time", points_in_time)
    client, own = FakeClient(), os.getpid()
    client._connection = FakeConnection()  # type: ignore[attr-defined]
    stack = FakeStack(own, None, os.getppid())
    watch = Watch(stack, AgentSettings(), client)  # type: ignore[arg-type]
    for second in range(3):
        watch.look(second)
    figures = watch.figures()
    assert figures["worker_restarts"] == 1
    assert figures["worker_rss_mib"]["highest"] > 1
    assert figures["client_waiting"]["last"] == 3
    assert "points_in_time" not in figures


def test_what_still_waits_at_the_end_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    async def points_in_time(_settings: Any) -> float:
        return 7.0

    monkeypatch.setattr(soak_search, "_points_in_time", points_in_time)
    client = FakeClient()
    client._connection = FakeConnection()  # type: ignore[attr-defined]
    watch = Watch(FakeStack(os.getpid()), AgentSettings(), client)  # type: ignore[arg-type]
    assert watch.left(0) == {"client_waiting": 3}


def test_minutes_are_for_the_long_run_alone() -> None:
    refused = CliRunner().invoke(bench, ["quality", "--minutes", "1"])
    assert refused.exit_code == 2
    assert "--minutes is for soak-search" in refused.output
