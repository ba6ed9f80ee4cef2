"""The clients for threads and for asyncio, against a broker in memory."""

from __future__ import annotations

import asyncio
import gc
import io
import pickle
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sightlog.async_client import AsyncClient
from sightlog.causes import CAUSES, Fate
from sightlog.client import Client
from sightlog.errors import (
    BadCursor,
    BadPicture,
    BadRequest,
    ExpiredCursor,
    ModelMismatch,
    NoReply,
    NotIndexed,
    SearchFailed,
    SightlogError,
    TooManyRequests,
    Unavailable,
    search_failed,
)
from sightlog.questions import Asked, request_of
from sightlog.search import MAX_IMAGE, Clause, SearchReply, SearchRequest
from tests.forking import forked
from tests.unit.fake_kafka import FakeBroker, FakeConsumer, FakeProducer, broker
from tests.unit.search_agent_double import AgentDouble, hit, pages_of, refuses

__all__ = ["broker"]

ROOT = Path(__file__).parents[2]


@pytest.fixture
def agent(broker: FakeBroker) -> AgentDouble:
    return AgentDouble(broker, lambda request: SearchReply(hits=(hit(request.text or "?"),)))


@pytest.fixture
def client(broker: FakeBroker) -> Iterator[Client]:
    with Client() as made:
        yield made


# What is asked.


def test_a_text_and_keywords_become_one_request(client: Client, agent: AgentDouble) -> None:
    reply = client.search("a star", target="objects", k=3, filters={"tags": ["a"], "min_width": 5}, min_relevance=None)
    assert [found.image_id for found in reply.hits] == ["a star"]
    (asked,) = agent.asked
    assert (asked.text, asked.target, asked.k, asked.min_relevance) == ("a star", "objects", 3, None)
    assert (asked.filters.tags.all, asked.filters.min_width) == (("a",), 5)


def test_a_request_is_asked_as_it_is(client: Client, agent: AgentDouble) -> None:
    request = SearchRequest(text="x", facets=("tags",), exact=True)
    client.search(request)
    assert agent.asked == [request]
    with pytest.raises(TypeError, match="k beside it"):
        client.search(request, k=5)


def test_every_field_of_a_request_but_the_cursor_is_a_keyword() -> None:
    assert {*Asked.__annotations__, "cursor"} == set(SearchRequest.model_fields)


@pytest.mark.parametrize("as_what", [bytes, bytearray, memoryview, io.BytesIO])
def test_a_picture_may_be_bytes_or_an_open_file(as_what: Any, client: Client, agent: AgentDouble) -> None:
    client.search(image=as_what(b"jpeg"))
    assert agent.asked[0].image == b"jpeg"


def test_a_picture_may_be_a_path_also_in_a_clause(client: Client, agent: AgentDouble, tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"jpeg")
    client.search(image=tmp_path / "a.jpg")
    client.search(image=str(tmp_path / "a.jpg"))
    client.search(clauses=[{"image": tmp_path / "a.jpg"}, Clause(text="people", weight=-1)])
    assert [request.image for request in agent.asked] == [b"jpeg", b"jpeg", None]
    assert [(part.image, part.text, part.weight) for part in agent.asked[2].clauses] == [
        (b"jpeg", None, 1),
        (None, "people", -1),
    ]


def test_a_picture_that_is_too_large_empty_text_or_elsewhere_is_refused_before_it_is_sent(tmp_path: Path) -> None:
    (tmp_path / "large.jpg").write_bytes(b"x" * (MAX_IMAGE + 1))
    for picture, code in (
        (tmp_path / "large.jpg", "too_large"),
        (b"", "empty"),
        (io.StringIO("x"), "unsupported_source"),
        ("https://example.org/a.jpg", "unsupported_source"),
    ):
        with pytest.raises(BadPicture) as refused:
            request_of(None, {"image": picture})
        assert refused.value.code == code
    with pytest.raises(FileNotFoundError):
        request_of(None, {"image": tmp_path / "nowhere.jpg"})


@pytest.mark.parametrize(
    ("asked", "why"),
    [
        ({}, "give one of text"),
        ({"text": "a", "image": b"b"}, "give one of"),
        ({"text": "a", "k": 0}, "k: "),
        ({"text": "a", "filters": {"clases": ["dog"]}}, "SearchFilters has no clases"),
        ({"clauses": [{"text": "a", "wieght": -1}]}, "Clause has no wieght"),
        ({"text": "a", "filters": {"tags": {"any": ["x"], "none": ["x"]}}}, "wanted and not wanted"),
    ],
)
def test_a_question_that_does_not_fit_is_refused_before_it_is_sent(asked: dict[str, Any], why: str) -> None:
    with pytest.raises(BadRequest, match=why) as refused:
        request_of(None, asked)
    assert refused.value.code == "bad_request"


def test_a_keyword_that_is_spelled_wrong_is_never_ignored(client: Client) -> None:
    with pytest.raises(TypeError, match="min_relevence"):
        client.search("a", min_relevence=0.5)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="twice"):
        client.search("a", text="b")


def test_similar_compares_like_with_like(client: Client, agent: AgentDouble) -> None:
    client.similar(object_id="image-1#2")
    client.similar(image_id="image-1", k=2)
    client.similar(image=b"jpeg", target="objects")
    assert [request.target for request in agent.asked] == ["objects", "images", "objects"]
    for references in ({}, {"image_id": "a", "object_id": "b"}, {"text": "a"}):
        with pytest.raises(TypeError, match="give one of image"):
            client.similar(**references)  # type: ignore[arg-type]


def test_a_request_larger_than_a_record_is_a_typed_error(client: Client, agent: AgentDouble) -> None:
    clauses = [Clause(image=b"x" * MAX_IMAGE), Clause(image=b"y" * MAX_IMAGE)]
    with pytest.raises(BadRequest, match="too_large"):
        client.search(clauses=clauses)
    assert client._connection.waiting == 0


# What comes back.


def test_replies_reach_who_asked_from_many_threads_over_one_connection(client: Client, agent: AgentDouble) -> None:
    texts = [f"text {number}" for number in range(200)]
    with ThreadPoolExecutor(32) as pool:
        found = list(pool.map(lambda text: client.search(text, timeout=20).hits[0].image_id, texts))
    assert found == texts
    assert (FakeProducer.made, FakeConsumer.made) == (1, 1)
    assert client._connection.waiting == 0
    assert len({address.correlation_id for address in agent.addresses}) == 200


def test_the_request_says_until_when_and_on_whose_behalf(broker: FakeBroker, agent: AgentDouble) -> None:
    import time

    with Client(caller="gateway user 7") as client:
        client.search("x", timeout=7)
    (address,) = agent.addresses
    assert (address.topic, address.caller) == ("search.replies", "gateway user 7")
    assert address.deadline_ms is not None
    assert 0 < address.deadline_ms - time.time() * 1000 <= 7000


def test_who_gets_no_reply_is_told_and_forgotten(client: Client, agent: AgentDouble) -> None:
    agent.answer = lambda _request: None
    for _ in range(20):
        with pytest.raises(NoReply, match="search worker"):
            client.search("x", timeout=0.01)
    assert client._connection.waiting == 0


def test_a_reply_that_comes_after_the_timeout_harms_nobody(client: Client, agent: AgentDouble) -> None:
    agent.answer = lambda _request: None
    with pytest.raises(NoReply):
        client.search("late", timeout=0.01)
    late = agent.addresses[0]
    agent.broker.write(
        late.topic, b"{}", headers=[("kafka_correlationId", late.correlation_id)], partition=late.partition or 0
    )
    agent.answer = lambda _request: SearchReply(hits=(hit("in time"),))
    assert client.search("x").hits[0].image_id == "in time"


def test_replies_to_others_and_records_without_headers_are_passed_over(client: Client, agent: AgentDouble) -> None:
    client.search("x")
    partition = agent.addresses[0].partition or 0
    for headers in ([], [("kafka_correlationId", b"of another")], [("other", b"")]):
        agent.broker.write("search.replies", b"not JSON", headers=headers, partition=partition)
    assert client.search("y").hits[0].image_id == "y"


def test_no_broker_is_an_error_and_the_next_call_tries_again(client: Client, agent: AgentDouble) -> None:
    agent.broker.down = True
    with pytest.raises(SightlogError, match="no answer from Kafka"):
        client.search("x")
    agent.broker.down = False
    assert client.search("x").hits


def test_a_broker_that_went_away_is_not_taken_for_a_missing_worker(client: Client, agent: AgentDouble) -> None:
    client.search("x")
    agent.broker.down = True
    with pytest.raises(NoReply, match="did not take the request"):
        client.search("y", timeout=0.05)


def test_closing_ends_what_still_waits_and_every_thread(broker: FakeBroker, agent: AgentDouble) -> None:
    agent.answer = lambda _request: None
    client = Client()
    with ThreadPoolExecutor(1) as pool:
        waits = pool.submit(client.search, "x", timeout=60)
        while not agent.asked:
            pass
        client.close()
        with pytest.raises(NoReply, match="closed"):
            waits.result(10)
    assert FakeConsumer.alive == 0
    assert not [thread.name for thread in threading.enumerate() if thread.name.startswith("sightlog")]
    with pytest.raises(SightlogError, match="closed"):
        client.search("x")


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        ("contradictory", BadRequest),
        ("unknown_object", NotIndexed),
        ("undecodable", BadPicture),
        ("source_not_allowed", BadPicture),
        ("model_mismatch", ModelMismatch),
        ("bad_cursor", BadCursor),
        ("expired_cursor", ExpiredCursor),
        ("unavailable", Unavailable),
        ("too_many_requests", TooManyRequests),
        ("a code of a later version", SearchFailed),
    ],
)
def test_error_replies_are_raised_as_what_they_are(
    code: str, kind: type[SearchFailed], client: Client, agent: AgentDouble
) -> None:
    agent.answer = refuses(code)
    with pytest.raises(SearchFailed, match=f"{code}: because") as failed:
        client.search("x")
    assert type(failed.value) is kind
    assert (failed.value.code, failed.value.message) == (code, "because")
    copied = pickle.loads(pickle.dumps(failed.value))
    assert (type(copied), copied.code, copied.message) == (kind, code, "because")


def test_every_code_that_refuses_a_search_has_a_class_except_for_a_bug_of_the_worker() -> None:
    codes = {code for code, cause in CAUSES.items() if Fate.REFUSED in cause.fates}
    assert {code for code in codes if type(search_failed(code, "")) is SearchFailed} == {"internal_error"}


# Pages.


def test_pages_and_hits_go_on_to_the_end_without_gaps_or_repeats(client: Client, agent: AgentDouble) -> None:
    agent.answer = pages_of(25)
    assert [len(page.hits) for page in client.pages("x", k=10)] == [10, 10, 5]
    assert [found.image_id for found in client.hits("x", k=7)] == [str(number) for number in range(25)]


def test_pages_are_asked_for_when_they_are_wanted(client: Client, agent: AgentDouble) -> None:
    agent.answer = pages_of(1000)
    assert len(list(islice(client.hits("x", k=10), 15))) == 15
    assert len(agent.asked) == 2
    assert agent.asked[0].pages
    assert agent.asked[1].cursor == "10/10"


def test_a_question_for_pages_that_does_not_fit_fails_when_it_is_asked(client: Client) -> None:
    with pytest.raises(BadRequest):
        client.pages("x", k=0)


# After a fork.


def test_a_forked_child_searches_over_connections_of_its_own(client: Client, agent: AgentDouble) -> None:
    client.search("before")

    def in_child() -> None:
        made = FakeProducer.made, FakeConsumer.made
        assert client._connection.waiting == 0
        assert client.search("in the child", timeout=10).hits[0].image_id == "in the child"
        assert (FakeProducer.made, FakeConsumer.made) == (made[0] + 1, made[1] + 1)
        gc.collect()
        assert (FakeProducer.freed, FakeConsumer.freed) == (0, 0), "what is the parent's is left alone"

    assert forked(in_child, seconds=20) == 0
    assert client.search("after").hits[0].image_id == "after"
    assert (FakeProducer.made, FakeConsumer.made) == (1, 1)


def test_a_fork_while_other_threads_wait_and_hold_locks_leaves_a_usable_child(
    client: Client, agent: AgentDouble
) -> None:
    client.search("before")
    agent.answer = lambda request: None if request.text == "held" else SearchReply(hits=(hit(request.text or ""),))
    with ThreadPoolExecutor(1) as pool:
        held = pool.submit(client.search, "held", timeout=5)
        while len(agent.asked) < 2:
            pass
        with client._connection._lock:
            assert forked(lambda: client.search("in the child", timeout=10), seconds=20) == 0
        client.close()
        assert isinstance(held.exception(10), NoReply)


# asyncio.


async def test_the_async_client_asks_and_pages(broker: FakeBroker, agent: AgentDouble) -> None:
    async with AsyncClient() as client:
        assert (await client.search("a star", k=2)).hits[0].image_id == "a star"
        assert (await client.similar(image_id="image-1")).hits
        agent.answer = pages_of(25)
        assert [len(page.hits) async for page in client.pages("x", k=10)] == [10, 10, 5]
        assert [found.image_id async for found in client.hits("x", k=7)] == [str(number) for number in range(25)]


async def test_a_thousand_coroutines_wait_without_a_thread_each(broker: FakeBroker, agent: AgentDouble) -> None:
    held: list[SearchRequest] = []
    agent.answer = lambda request: held.append(request)
    threads = threading.active_count()
    async with AsyncClient() as client:
        waiting = [asyncio.create_task(client.search(f"text {number}", timeout=60)) for number in range(1000)]
        while len(held) < 1000:
            await asyncio.sleep(0)
        assert client._connection.waiting == 1000
        assert threading.active_count() <= threads + 1
        for request, address in zip(agent.asked, agent.addresses, strict=True):
            reply = SearchReply(hits=(hit(request.text or ""),)).to_kafka()
            headers = [("kafka_correlationId", address.correlation_id)]
            broker.write(address.topic, reply, headers=headers, partition=address.partition or 0)
        found = await asyncio.gather(*waiting)
        assert [reply.hits[0].image_id for reply in found] == [f"text {number}" for number in range(1000)]
        assert not [thread for thread in threading.enumerate() if thread.name.startswith("asyncio")]
        assert client._connection.waiting == 0


async def test_what_is_cancelled_or_too_late_is_forgotten(broker: FakeBroker, agent: AgentDouble) -> None:
    agent.answer = lambda _request: None
    async with AsyncClient() as client:
        waiting = [asyncio.create_task(client.search("x", timeout=60)) for _ in range(10)]
        while client._connection.waiting < 10:
            await asyncio.sleep(0)
        for task in waiting:
            task.cancel()
        assert all(
            isinstance(done, asyncio.CancelledError) for done in await asyncio.gather(*waiting, return_exceptions=True)
        )
        with pytest.raises(NoReply):
            await client.search("x", timeout=0.01)
        assert client._connection.waiting == 0


async def test_one_who_gives_up_while_connecting_does_not_break_it_for_others(
    broker: FakeBroker, agent: AgentDouble
) -> None:
    async with AsyncClient() as client:
        with broker.changed:  # nothing is answered meanwhile
            impatient = asyncio.create_task(client.search("x"))
            patient = asyncio.create_task(client.search("y"))
            await asyncio.sleep(0)
            impatient.cancel()
            await asyncio.sleep(0)
        assert (await patient).hits[0].image_id == "y"


async def test_errors_are_the_same_for_asyncio(broker: FakeBroker, agent: AgentDouble) -> None:
    async with AsyncClient() as client:
        agent.answer = refuses("too_many_requests")
        with pytest.raises(TooManyRequests):
            await client.search("x")
        with pytest.raises(BadRequest):
            await client.search("x", k=0)
        with pytest.raises(BadRequest):
            client.pages("x", k=0)


def test_both_clients_do_the_same() -> None:
    import inspect

    of_threads_alone = {"publish_async", "flush"}
    for name, method in inspect.getmembers(Client, inspect.isfunction):
        if name[0] != "_" and name not in of_threads_alone:
            assert inspect.signature(method).parameters == inspect.signature(getattr(AsyncClient, name)).parameters


# What it needs.


def test_the_clients_need_no_faust_no_triton_no_opensearch_and_import_nothing_of_the_agents() -> None:
    program = """
import sys
for blocked in ("faust", "mode", "aiokafka", "tritonclient", "opensearchpy", "aiohttp", "PIL", "pandas", "agents",
                "models", "stack", "load_tests", "triton_repo", "rich", "click"):
    sys.modules[blocked] = None
import sightlog
assert not [name for name in sys.modules if name.startswith(("confluent_kafka", "pydantic", "numpy"))], "not light"
from sightlog import *
with Client() as client:
    pass
AsyncClient(), SearchRequest(text="x"), Clause(text="x"), SearchFilters(), to_dataframe
"""
    subprocess.run([sys.executable, "-c", program], check=True, cwd=ROOT, timeout=60)


def test_what_sightlog_offers_is_there() -> None:
    import sightlog

    assert [name for name in sightlog.__all__ if getattr(sightlog, name).__name__ != name] == []
    assert set(sightlog.__all__) <= set(dir(sightlog))
    with pytest.raises(AttributeError):
        sightlog.nothing  # noqa: B018


# Tables.


def test_results_become_a_dataframe(client: Client) -> None:
    pandas = pytest.importorskip("pandas")
    found = SearchReply(
        hits=(
            hit("a", relevance=0.9, tags=("x", "y"), metadata={"site": "north"}),
            hit("b", object_id="b#0", **{"class": "star"}, box=(1, 2, 3, 4), captured_at="2026-05-01T12:00:00Z"),
        )
    )
    table = found.to_dataframe()
    assert list(table.image_id) == ["a", "b"]
    assert list(table.x2.dropna()) == [3.0]
    assert list(table.tags) == [["x", "y"], []]
    assert table.metadata[0] == {"site": "north"}
    assert table.class_name[1] == "star"
    assert table.relevance.dtype == np.float64
    assert (table.captured_at.dt.tz is not None, table.captured_at.isna().tolist()) == (True, [True, False])
    assert isinstance(table.uploaded_at[0], pandas.Timestamp)


def test_a_table_of_nothing_has_the_same_columns() -> None:
    pytest.importorskip("pandas")
    empty, full = SearchReply().to_dataframe(), SearchReply(hits=(hit(),)).to_dataframe()
    assert list(empty.columns) == list(full.columns)
    assert str(full.captured_at.dtype).startswith("datetime64"), "also where no hit has one"
    assert (empty.score.dtype, len(empty)) == (np.float64, 0)


def test_a_dataframe_without_pandas_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(SightlogError, match=r"pip install 'sightlog\[notebook\]'"):
        SearchReply(hits=(hit(),)).to_dataframe()
