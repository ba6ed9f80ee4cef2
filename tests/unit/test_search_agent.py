"""The search agent: a reply before the deadline, a dead letter, or a counted miss; never a late reply."""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any

import numpy as np
import orjson
import pytest
from opensearchpy.exceptions import NotFoundError

from agents.delivery.failures import DependencyDown, ItemBroken
from agents.delivery.outbox import Outbox
from agents.search import Search
from agents.settings import AgentSettings
from models.manifest import load_manifest
from sightlog.dead_letters import DeadLetter
from sightlog.reply_address import CORRELATION_ID, DEADLINE, REPLY_PARTITION, REPLY_TOPIC
from sightlog.search import SearchReply, SearchRequest
from tests.unit.deliveries import FakeProducer, Sent, record

MANIFEST = load_manifest()
ADDRESS: dict[str, bytes | None] = {
    REPLY_TOPIC: b"search.replies",
    CORRELATION_ID: b"\xff\x00id",
    REPLY_PARTITION: b"\x00\x00\x00\x02",
}
FOUND = {
    "_id": "image-1",
    "_score": 0.75,
    "_source": {
        "image_id": "image-1",
        "event_source": "/s",
        "width": 1,
        "height": 1,
        "uploaded_at": "2024-05-01T00:00:00Z",
    },
}


class FakeTriton:
    def __init__(self, *failures: Exception) -> None:
        self.failures = list(failures)
        self.always: Exception | None = None
        self.calls: list[tuple[Any, float]] = []
        self.pictures: list[bytes] = []
        self.seen = np.ones(MANIFEST.clip.dim, np.float32)

    async def infer_image(self, data: bytes, timeout: float) -> Any:
        self.pictures.append(data)
        if self.failures:
            raise self.failures.pop(0)
        return SimpleNamespace(embedding=self.seen)

    async def embed_text(self, tokens: Any, timeout: float) -> Any:
        self.calls.append((tokens, timeout))
        if self.always is not None:
            raise self.always
        if self.failures:
            raise self.failures.pop(0)
        return np.ones(MANIFEST.clip.dim, np.float32)


class FakeOpenSearch:
    def __init__(self, digest: str = MANIFEST.digest) -> None:
        self.indices = self
        self.digest = digest
        self.searches: list[dict[str, Any]] = []
        self.failures: list[Exception] = []

    async def get_mapping(self, index: str) -> dict[str, Any]:
        return {f"{index}-1": {"mappings": {"_meta": {"model_name": "tiny", "model_digest": self.digest}}}}

    async def search(self, **asked: Any) -> dict[str, Any]:
        self.searches.append(asked)
        if self.failures:
            raise self.failures.pop(0)
        return {"hits": {"hits": [FOUND]}}


class Bench:
    """A search agent between fakes of everything."""

    def __init__(
        self, triton: FakeTriton | None = None, opensearch: FakeOpenSearch | None = None, **settings: Any
    ) -> None:
        self.settings = AgentSettings.load(**({"retry_first": 1e-3, "retry_limit": 1e-3} | settings))
        self.triton, self.opensearch = triton or FakeTriton(), opensearch or FakeOpenSearch()
        self.producer = FakeProducer()
        outbox = Outbox(
            "search",
            self.producer,  # type: ignore[arg-type]
            dead_topic=self.settings.topics.dead,
            dead_inline_limit=100,
            backoff=self.settings.backoff,
        )
        self.agent = Search(self.settings, MANIFEST, self.triton, self.opensearch, outbox)  # type: ignore[arg-type]

    async def ask(
        self,
        value: bytes = b'{"text":"a red star"}',
        *,
        sent_ms: int | None = None,
        headers: dict[str, bytes | None] | None = None,
    ) -> None:
        changed = {name: content for name, content in (ADDRESS | (headers or {})).items() if content is not None}
        sent_ms = now_ms() if sent_ms is None else sent_ms
        await self.agent.reply([record(value, changed.items(), b"key", topic="search.requests", timestamp_ms=sent_ms)])

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


def now_ms() -> int:
    return int(time.time() * 1000)


async def test_reply_goes_where_the_request_says() -> None:
    bench = Bench()
    await bench.ask()
    assert (bench.sent.partition, bench.sent.headers) == (2, [(CORRELATION_ID, b"\xff\x00id")])
    (hit,) = bench.reply.hits
    assert (hit.image_id, hit.cosine, bench.reply.model_digest) == ("image-1", 0.5, MANIFEST.digest)
    assert bench.reply.took_ms > 0
    tokens, _timeout = bench.triton.calls[0]
    assert (tokens.shape, tokens[0]) == ((MANIFEST.clip.context_length,), 49406)


async def test_reply_without_a_named_partition_goes_to_any() -> None:
    bench = Bench()
    await bench.ask(headers={REPLY_PARTITION: None})
    assert bench.sent.partition is None


@pytest.mark.parametrize("deadline", [b"-1", b"0", b"1", b"1700000000000"])
async def test_request_past_its_deadline_is_dropped_and_counted(deadline: bytes) -> None:
    bench = Bench()
    await bench.ask(headers={DEADLINE: deadline})
    assert (bench.agent.late, bench.producer.sent, bench.triton.calls) == (1, [], [])


async def test_request_without_a_deadline_has_the_agents_own() -> None:
    bench = Bench(search_deadline=5)
    await bench.ask(sent_ms=now_ms() - 5001)
    assert (bench.agent.late, bench.producer.sent) == (1, [])
    await bench.ask()
    assert bench.reply.hits


@pytest.mark.parametrize("deadline", [b"9" * 15, b"9" * 25, b"9" * 400], ids=len)
async def test_deadline_beyond_all_measure_does_not_break_the_agent(deadline: bytes) -> None:
    """A client that counts in nanoseconds, or an attacker: Triton and the event loop must get a finite time."""
    bench = Bench()
    await bench.ask(headers={DEADLINE: deadline})
    assert bench.reply.hits
    ((_tokens, timeout),) = bench.triton.calls
    assert timeout * 1e6 < 2**63, "Triton takes microseconds in 64 bits"


@pytest.mark.parametrize(
    ("value", "code"),
    [
        (b"", "bad_request"),
        (b"{", "bad_request"),
        (b'{"text":" "}', "bad_request"),
        (b'{"text":"x","k":0}', "bad_request"),
        (b'{"text":"x","filters":{"classes":["dragon"]}}', "unknown_class"),
    ],
)
async def test_bad_request_is_told_so(value: bytes, code: str) -> None:
    bench = Bench()
    await bench.ask(value)
    assert bench.error() == code
    assert (bench.letters, bench.agent.late) == ([], 0)


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
    assert bench.agent.late == 0, "the reply is sent while somebody still waits for it"
    assert len(bench.triton.calls) > 1


async def test_missing_index_is_waited_for() -> None:
    bench = Bench()
    bench.opensearch.failures = [NotFoundError(404, "index_not_found_exception", {})] * 3
    await bench.ask()
    assert bench.reply.hits


async def test_indices_of_another_model_are_refused() -> None:
    bench = Bench(opensearch=FakeOpenSearch("b" * 64))
    bench.opensearch.failures = [NotFoundError(404, "index_not_found_exception", {})]
    await bench.ask()
    assert bench.error() == "model_mismatch"


async def test_only_the_index_of_its_own_model_is_asked() -> None:
    bench = Bench()
    await bench.ask()
    assert [asked["index"] for asked in bench.opensearch.searches] == [f"images-{MANIFEST.digest[:12]}"]


async def test_a_picture_is_seen_as_an_upload_is() -> None:
    bench = Bench()
    await bench.ask(SearchRequest(image=b"\xff\xd8jpeg").to_kafka())
    assert bench.triton.pictures == [b"\xff\xd8jpeg"]
    assert bench.opensearch.searches[0]["body"]["query"]["knn"]["vector"]["vector"] is bench.triton.seen
    assert bench.reply.hits


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
    assert (bench.agent.late, bench.producer.sent) == (1, [])


async def test_one_request_does_not_keep_its_neighbours_from_their_replies() -> None:
    bench = Bench()
    requests = [
        record(b"", [], timestamp_ms=now_ms()),
        record(b"{", ADDRESS.items(), timestamp_ms=now_ms()),
        record(b'{"text":"x"}', [*ADDRESS.items(), (DEADLINE, b"1")], timestamp_ms=now_ms()),
        record(SearchRequest(text="x").to_kafka(), ADDRESS.items(), timestamp_ms=now_ms()),
    ]
    await bench.agent.reply(requests)
    replies = [orjson.loads(one.value) for one in bench.producer.sent_to("search.replies")]
    assert ["error" in reply for reply in replies] == [True, False]
    assert (len(bench.letters), bench.agent.late) == (1, 1)
