"""The search agent: a reply before the deadline, a dead letter, or a counted miss; never a late reply."""

from __future__ import annotations

import asyncio
import time
from datetime import datetime
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from agents.delivery.failures import DependencyDown, ItemBroken, NoSuchPlace, NotYet
from agents.delivery.fair import Job, Turns
from agents.delivery.outbox import Outbox
from agents.index.cursors import Cursors, Page
from agents.index.found import Found
from agents.metrics import SearchMetrics
from agents.query.answers import Answers
from agents.query.vectors import Vectors
from agents.search import Search
from agents.settings import AgentSettings
from models.manifest import load_manifest
from sightlog.dead_letters import DeadLetter
from sightlog.errors import ConfigurationError, ContractError
from sightlog.reply_address import CALLER, CORRELATION_ID, DEADLINE, REPLY_PARTITION, REPLY_TOPIC
from sightlog.search import MAX_REQUEST, FacetCount, Hit, SearchReply, SearchRequest
from tests.unit.deliveries import FakeProducer, Sent, record

MANIFEST = load_manifest()
ADDRESS: dict[str, bytes | None] = {
    REPLY_TOPIC: b"search.replies",
    CORRELATION_ID: b"\xff\x00id",
    REPLY_PARTITION: b"\x00\x00\x00\x02",
}
HIT = Hit(image_id="image-1", score=0.75, cosine=0.5, source="/s", width=1, height=1, uploaded_at=datetime(2024, 5, 1))
PAGE = Page(pit="pit", target="images", k=10, offset=10)


class FakeTriton:
    def __init__(self, *failures: Exception) -> None:
        self.failures = list(failures)
        self.always: Exception | None = None
        self.calls: list[Any] = []
        self.pictures: list[bytes] = []

    async def infer_image(self, data: bytes, timeout: float) -> Any:
        self.pictures.append(data)
        if self.failures:
            raise self.failures.pop(0)
        return SimpleNamespace(embedding=np.ones(MANIFEST.clip.dim, np.float32))

    async def embed_text(self, tokens: Any, timeout: float) -> Any:
        assert timeout * 1e6 < 2**63, "Triton takes microseconds in 64 bits"
        self.calls.append(tokens)
        if self.always is not None:
            raise self.always
        if self.failures:
            raise self.failures.pop(0)
        return np.ones(MANIFEST.clip.dim, np.float32)

    async def read_reference(self, uri: str) -> bytes:
        raise NotYet("source_missing", uri)


class FakeSearcher:
    """Finds one hit, unless the test says otherwise."""

    def __init__(self) -> None:
        self.searches: list[tuple[Any, Any, float]] = []
        self.pages: list[Page] = []
        self.failures: list[Exception] = []
        self.found = Found((HIT,))
        self.gate = asyncio.Event()
        self.gate.set()

    async def search(self, request: SearchRequest, question: Any, timeout: float) -> Found:
        self.searches.append((request, question, timeout))
        await self.gate.wait()
        if self.failures:
            raise self.failures.pop(0)
        return self.found

    async def turn_page(self, page: Page, timeout: float) -> Found:
        self.pages.append(page)
        return self.found

    async def vector_of(self, kind: str, id_: str) -> Any:
        raise ContractError(f"unknown_{kind}", id_)


class Bench:
    """A search agent between fakes of everything."""

    def __init__(self, triton: FakeTriton | None = None, **settings: Any) -> None:
        self.settings = AgentSettings.load(**({"retry_first": 1e-3, "retry_limit": 1e-3} | settings))
        self.triton, self.searcher = triton or FakeTriton(), FakeSearcher()
        self.producer = FakeProducer()
        backoff = self.settings.backoff
        outbox = Outbox(
            "search",
            self.producer,  # type: ignore[arg-type]
            dead_topic=self.settings.topics.dead,
            dead_inline_limit=100,
            backoff=backoff,
        )
        self.cursors = Cursors(b"k" * 32, 60, MANIFEST.digest)
        vectors = Vectors(MANIFEST, self.triton, self.triton, self.triton, self.searcher, backoff, 10)
        answers = Answers(vectors, self.searcher, self.cursors, MANIFEST.digest, backoff)
        self.turns = Turns(self.settings.search_waiting_limits)
        self.metrics = SearchMetrics(self.turns, vectors.texts)
        self.agent = Search(self.settings, answers, outbox, self.metrics)

    async def ask(
        self,
        value: bytes = b'{"text":"a red star"}',
        *,
        sent_ms: int | None = None,
        headers: dict[str, bytes | None] | None = None,
    ) -> None:
        """One request, by the way that it takes when nobody else asks."""
        job = self.job(value, sent_ms=sent_ms, headers=headers)
        await (job.refuse() if job.caller is None else job.work(lambda: None))

    def job(
        self,
        value: bytes = b'{"text":"a red star"}',
        *,
        sent_ms: int | None = None,
        headers: dict[str, bytes | None] | None = None,
    ) -> Job:
        changed = {name: content for name, content in (ADDRESS | (headers or {})).items() if content is not None}
        sent_ms = now_ms() if sent_ms is None else sent_ms
        return self.agent.job(record(value, changed.items(), b"key", topic="search.requests", timestamp_ms=sent_ms))

    @property
    def sent(self) -> Sent:
        (sent,) = self.producer.sent_to("search.replies")
        return sent

    @property
    def reply(self) -> SearchReply:
        return SearchReply.from_kafka(self.sent.value)

    @property
    def letters(self) -> list[DeadLetter]:
        return [DeadLetter.from_kafka(one.value) for one in self.producer.sent_to("images.dead")]

    def error(self) -> str:
        assert self.reply.error is not None
        assert self.reply.hits == ()
        return self.reply.error.code

    def count(self, outcome: str) -> float:
        return self.metrics.registry.get_sample_value("sightlog_search_requests_total", {"outcome": outcome}) or 0


def now_ms() -> int:
    return int(time.time() * 1000)


async def test_reply_goes_where_the_request_says() -> None:
    bench = Bench()
    await bench.ask()
    assert (bench.sent.partition, bench.sent.headers) == (2, [(CORRELATION_ID, b"\xff\x00id")])
    (hit,) = bench.reply.hits
    assert (hit.image_id, hit.cosine, bench.reply.model_digest) == ("image-1", 0.5, MANIFEST.digest)
    assert bench.reply.took_ms > 0
    (tokens,) = bench.triton.calls
    assert (tokens.shape, tokens[0]) == ((MANIFEST.clip.context_length,), 49406)


async def test_reply_without_a_named_partition_goes_to_any() -> None:
    bench = Bench()
    await bench.ask(headers={REPLY_PARTITION: None})
    assert bench.sent.partition is None


@pytest.mark.parametrize("deadline", [b"-1", b"0", b"1", b"1700000000000"])
async def test_request_past_its_deadline_is_dropped_and_counted(deadline: bytes) -> None:
    bench = Bench()
    await bench.ask(headers={DEADLINE: deadline})
    assert (bench.count("late"), bench.producer.sent, bench.triton.calls) == (1, [], [])


async def test_request_without_a_deadline_has_the_agents_own() -> None:
    bench = Bench(search_deadline=5)
    await bench.ask(sent_ms=now_ms() - 5001)
    assert (bench.count("late"), bench.producer.sent) == (1, [])
    await bench.ask()
    assert bench.reply.hits


@pytest.mark.parametrize("deadline", [b"9" * 15, b"9" * 25, b"9" * 400], ids=len)
async def test_deadline_beyond_all_measure_does_not_break_the_agent(deadline: bytes) -> None:
    """A client that counts in nanoseconds, or an attacker: Triton and the event loop must get a finite time."""
    bench = Bench()
    await bench.ask(headers={DEADLINE: deadline})
    assert bench.reply.hits
    ((_request, _question, timeout),) = bench.searcher.searches
    assert timeout <= 60


@pytest.mark.parametrize(
    ("value", "code"),
    [
        (b"", "bad_request"),
        (b"{", "bad_request"),
        (b'{"text":" "}', "bad_request"),
        (b'{"text":"x","k":0}', "bad_request"),
        (b"[" * 40_000, "bad_request"),
        (b'{"text":"x","a":' + b"[" * 5000 + b"]" * 5000 + b"}", "bad_request"),
        (b'{"text":"x","image_id":"y"}', "bad_request"),
        (b'{"clauses":[{"text":"x","weight":-1}]}', "bad_request"),
        (b'{"clauses":[{"text":"x"},{"text":"x","weight":-1}]}', "contradictory"),
        (b'{"text":"x","cursor":"y"}', "bad_request"),
        (b'{"cursor":"y"}', "bad_cursor"),
        (b'{"image_id":"nowhere"}', "unknown_image"),
        (b'{"object_id":"nowhere#1"}', "unknown_object"),
        (b'{"dataref":"file:///nowhere"}', "source_missing"),
        (b'{"vector":"AACAPw==","model_digest":"' + b"e" * 64 + b'"}', "model_mismatch"),
        (b'{"text":"x","a":"' + b"x" * MAX_REQUEST + b'"}', "too_large"),
        (b'{"text":"x","a":[' + b"1," * 60_000 + b"1]}", "too_large"),
    ],
)
async def test_bad_request_is_told_so(value: bytes, code: str) -> None:
    bench = Bench()
    await bench.ask(value)
    assert bench.error() == code
    assert (bench.letters, bench.count("late")) == ([], 0)


@pytest.mark.parametrize(
    "topic", [b"images", b"search.replies.", b"Xsearch.replies", b"search-replies", b"images.dead"]
)
async def test_reply_into_another_topic_is_refused(topic: bytes) -> None:
    bench = Bench()
    await bench.ask(headers={REPLY_TOPIC: topic})
    (letter,) = bench.letters
    assert (letter.code, letter.stage, letter.key) == ("reply_topic_refused", "search", b"key")
    assert len(bench.producer.sent) == 1


async def test_reply_into_a_topic_of_the_family_is_sent() -> None:
    bench = Bench()
    await bench.ask(headers={REPLY_TOPIC: b"search.replies.shop"})
    assert len(bench.producer.sent_to("search.replies.shop")) == 1


async def test_request_without_an_address_is_a_dead_letter() -> None:
    bench = Bench()
    await bench.ask(headers={CORRELATION_ID: None})
    assert [letter.code for letter in bench.letters] == ["no_reply_address"]


async def test_dependency_that_comes_back_in_time_is_waited_for() -> None:
    bench = Bench(FakeTriton(DependencyDown("1"), DependencyDown("2")))
    await bench.ask()
    assert bench.reply.hits


async def test_dependency_down_until_the_deadline_is_told_before_it() -> None:
    bench = Bench()
    bench.triton.always = DependencyDown("gone")
    await bench.ask(headers={DEADLINE: str(now_ms() + 2000).encode()})
    assert bench.error() == "unavailable"
    assert bench.count("late") == 0, "the reply is sent while somebody still waits for it"
    assert len(bench.triton.calls) > 1


async def test_index_that_is_down_is_waited_for() -> None:
    bench = Bench()
    bench.searcher.failures = [DependencyDown("no index yet")] * 3
    await bench.ask()
    assert bench.reply.hits


async def test_indices_of_another_model_are_refused() -> None:
    bench = Bench()
    bench.searcher.failures = [ConfigurationError("another model")]
    await bench.ask()
    assert bench.error() == "model_mismatch"


async def test_callers_in_a_hurry_do_not_make_a_dependency_count_as_down() -> None:
    """Their time is up, which says nothing about OpenSearch; nobody else has to wait for it."""
    bench = Bench(retry_first=10, retry_limit=10)
    bench.searcher.gate.clear()
    hurried = [bench.ask(headers={DEADLINE: str(now_ms() + 100).encode()}) for _ in range(5)]
    await asyncio.gather(*hurried)
    bench.producer.sent.clear()
    bench.searcher.gate.set()
    await asyncio.wait_for(bench.ask(), 5)
    assert bench.reply.hits


async def test_a_search_that_ran_out_of_its_callers_time_is_not_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench()

    async def search(_request: SearchRequest, _question: Any, seconds: float) -> Found:
        bench.searcher.searches.append((_request, _question, seconds))
        await asyncio.sleep(seconds)
        raise DependencyDown("no answer in time")

    monkeypatch.setattr(bench.searcher, "search", search)
    with pytest.raises(asyncio.TimeoutError):
        await asyncio.wait_for(bench.agent.answers.find(SearchRequest(text="star"), 0.02), 5)
    assert len(bench.searcher.searches) == 1


async def test_a_picture_is_seen_as_an_upload_is() -> None:
    bench = Bench()
    await bench.ask(SearchRequest(image=b"\xff\xd8jpeg").to_kafka())
    assert bench.triton.pictures == [b"\xff\xd8jpeg"]
    assert not bench.reply.cached


async def test_what_was_found_is_in_the_reply() -> None:
    bench = Bench()
    counts = {"classes": (FacetCount(value="star", count=3),)}
    bench.searcher.found = Found((HIT,), no_good_match=True, partial=True, facets=counts, cursor="next")  # type: ignore[arg-type]
    await bench.ask()
    reply = bench.reply
    assert (reply.no_good_match, reply.partial, reply.cursor, reply.facets) == (True, True, "next", counts)
    assert bench.count("no_good_match") == 1
    assert bench.metrics.registry.get_sample_value("sightlog_search_partial_total") == 1


async def test_a_text_that_was_asked_before_is_said_to_be_cached() -> None:
    bench = Bench()
    await bench.ask()
    assert not bench.reply.cached
    bench.producer.sent.clear()
    await bench.ask(b'{"text":"A  red star"}')
    assert bench.reply.cached
    assert len(bench.triton.calls) == 1
    value = bench.metrics.registry.get_sample_value
    assert (value("sightlog_search_texts_total", {"cache": "hit"}), len(bench.triton.calls)) == (1, 1)


async def test_a_cursor_turns_the_page_that_it_stands_for() -> None:
    bench = Bench()
    await bench.ask(SearchRequest(cursor=bench.cursors.token(PAGE)).to_kafka())
    assert [(page.pit, page.offset) for page in bench.searcher.pages] == [("pit", 10)]
    assert (bench.searcher.searches, len(bench.reply.hits)) == ([], 1)


def forged(bench: Bench) -> str:
    other = Cursors(b"x" * 32, 60, MANIFEST.digest)
    return other.token(PAGE)


def expired(bench: Bench) -> str:
    return Cursors(b"k" * 32, -1, MANIFEST.digest).token(PAGE)


def of_another_model(bench: Bench) -> str:
    return Cursors(b"k" * 32, 60, "e" * 64).token(PAGE)


@pytest.mark.parametrize(
    ("make", "code"), [(forged, "bad_cursor"), (expired, "expired_cursor"), (of_another_model, "bad_cursor")]
)
async def test_a_cursor_that_is_no_good_is_refused(make: Any, code: str) -> None:
    bench = Bench()
    await bench.ask(SearchRequest(cursor=make(bench)).to_kafka())
    assert bench.error() == code
    assert bench.searcher.pages == []


async def test_a_picture_that_cannot_be_seen_is_told_so() -> None:
    bench = Bench(FakeTriton(ItemBroken("undecodable", "cut off")))
    await bench.ask(SearchRequest(image=b"\xff\xd8").to_kafka())
    assert bench.error() == "undecodable"


async def test_text_that_triton_refuses_is_told_so() -> None:
    bench = Bench(FakeTriton(ItemBroken("empty", "no")))
    await bench.ask()
    assert bench.error() == "empty"


async def test_reply_that_no_record_can_hold_is_told_so() -> None:
    bench = Bench()
    bench.producer.failures = [ItemBroken("record_too_large", "search.replies does not take the record")]
    await bench.ask()
    assert bench.error() == "record_too_large"


async def test_broker_that_does_not_take_the_reply_in_time_makes_it_late() -> None:
    bench = Bench()
    bench.producer.failures = [DependencyDown("no such partition")] * 10_000
    await bench.ask(headers={DEADLINE: str(now_ms() + 100).encode()})
    assert (bench.count("late"), bench.producer.sent) == (1, [])


async def test_a_reply_that_no_record_can_hold_even_as_an_error_is_a_dead_letter() -> None:
    bench = Bench()
    bench.producer.failures = [ItemBroken("record_too_large", "no")] * 2
    await bench.ask()
    assert [letter.code for letter in bench.letters] == ["record_too_large"]
    assert len(bench.producer.sent) == 1


async def test_a_reply_to_a_place_that_does_not_exist_is_a_dead_letter() -> None:
    bench = Bench()
    bench.producer.failures = [NoSuchPlace("search.replies: unknown partition")] * 2
    await bench.ask()
    assert [letter.code for letter in bench.letters] == ["no_reply_address"]


async def test_a_request_that_nobody_thought_of_gets_an_error_and_the_process_lives() -> None:
    bench = Bench()
    bench.searcher.failures = [KeyError("hits")]
    await bench.ask()
    assert bench.error() == "internal_error"


async def test_a_caller_with_too_much_waiting_is_told_so() -> None:
    bench = Bench()
    await bench.job().refuse()
    assert bench.error() == "too_many_requests"
    assert (bench.searcher.searches, bench.triton.calls) == ([], [])


async def test_nobody_is_told_too_late_that_he_asked_too_much(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench()
    tried: list[str] = []

    async def send(topic: str, *_value: Any, **_options: Any) -> None:
        tried.append(topic)  # as the real one, it has the record before anybody can end it

    monkeypatch.setattr(bench.producer, "send", send)
    job = bench.job(headers={DEADLINE: str(now_ms() - 1).encode()})
    assert job.caller is None, "what is late waits for no turn"
    await job.refuse()
    assert (tried, bench.count("late")) == ([], 1)


async def test_a_request_that_is_late_at_its_turn_costs_no_work() -> None:
    bench = Bench()
    job = bench.job(headers={DEADLINE: str(now_ms() + 50).encode()})
    assert job.caller is not None
    await asyncio.sleep(0.06)
    await job.work(lambda: None)
    assert (bench.producer.sent, bench.searcher.searches, bench.count("late")) == ([], [], 1)
    assert bench.metrics.registry.get_sample_value("sightlog_search_texts_total", {"cache": "miss"}) == 0


async def test_the_next_one_begins_while_a_reply_is_on_its_way() -> None:
    bench = Bench()
    left: list[int] = []
    job = bench.job()
    await job.work(lambda: left.append(len(bench.producer.sent)))
    assert left == [0]


async def test_callers_are_told_apart_by_where_their_replies_go_or_by_their_name() -> None:
    bench = Bench()
    here, there = bench.job(), bench.job(headers={REPLY_PARTITION: b"\0\0\0\1"})
    assert here.caller != there.caller
    assert bench.job(headers={CALLER: b"shop"}).caller == "shop"


async def test_a_request_without_an_address_needs_no_turn() -> None:
    assert Bench().job(headers={REPLY_TOPIC: b"images"}).caller is None


async def test_outcomes_are_counted() -> None:
    bench = Bench()
    await bench.ask()
    await bench.ask(b"{")
    await bench.ask(headers={DEADLINE: b"1"})
    await bench.ask(headers={REPLY_TOPIC: b"images"})
    assert [bench.count(name) for name in ("found", "error", "late", "dead_letter")] == [1, 1, 1, 1]
    value = bench.metrics.registry.get_sample_value
    assert value("sightlog_search_errors_total", {"code": "bad_request"}) == 1
    assert value("sightlog_search_seconds_count") == 2
