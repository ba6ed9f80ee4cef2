"""Request and reply over topics, spoken by a plain Kafka client."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Sequence
from typing import Any

import pytest
from confluent_kafka import Consumer, Producer, TopicPartition

from agents.index.cursor_key import cursor_key
from agents.index.cursors import Cursors, Page
from agents.settings import AgentSettings
from models.manifest import load_manifest
from sightlog.client import Client
from sightlog.consuming import consumer_at_end
from sightlog.dead_letters import DeadLetter
from sightlog.errors import SearchFailed
from sightlog.filters import SearchFilters
from sightlog.follow import Follower
from sightlog.search import MAX_REQUEST, SearchRequest
from stack.local import LocalStack


@pytest.fixture
def replies(settings: AgentSettings) -> Any:
    consumer = consumer_at_end(settings.kafka, settings.topics.replies)
    yield consumer
    consumer.close()


def ask(settings: AgentSettings, body: Any, headers: dict[str, bytes]) -> None:
    ask_all(settings, [(body if isinstance(body, bytes) else json.dumps(body).encode(), headers)])


def ask_all(settings: AgentSettings, requests: Sequence[tuple[bytes, dict[str, bytes]]]) -> None:
    """All on one partition, in this order."""
    producer = Producer({"bootstrap.servers": settings.kafka, "message.max.bytes": 8 * 1024 * 1024})
    for value, headers in requests:
        producer.produce(settings.topics.requests, value, headers=dict(headers), partition=0)
    assert producer.flush(20) == 0


def reply_to(consumer: Consumer, correlation_id: bytes, seconds: float = 20) -> tuple[int, Any] | None:
    """Partition and body of the reply with a correlation id."""
    found = replies_to(consumer, {correlation_id}, seconds)
    return found.get(correlation_id)


def replies_to(consumer: Consumer, wanted: set[bytes], seconds: float = 20) -> dict[bytes, tuple[int, Any]]:
    """Partition and body of the replies with these correlation ids, as they come."""
    end, found = time.monotonic() + seconds, dict[bytes, tuple[int, Any]]()
    while time.monotonic() < end and found.keys() != wanted:
        message = consumer.poll(0.2)
        if message is None or message.error() is not None:
            continue
        correlation_id = dict(message.headers() or [])["kafka_correlationId"]
        if correlation_id in wanted:
            found[bytes(correlation_id)] = (message.partition() or 0, json.loads(message.value() or b""))
    return found


def address(caller: str = "", *, partition: int = 0, seconds: float = 60) -> dict[str, bytes]:
    """Headers of a request with a correlation id of its own."""
    return {
        "kafka_replyTopic": b"search.replies",
        "kafka_replyPartition": partition.to_bytes(4, "big"),
        "kafka_correlationId": uuid.uuid4().bytes,
        "deadline": str(int((time.time() + seconds) * 1000)).encode(),
        **({"caller": caller.encode()} if caller else {}),
    }


def ends_of_all_topics(settings: AgentSettings) -> dict[tuple[str, int], int]:
    """How many records there are in each partition of each topic of Sightlog."""
    consumer = Consumer({"bootstrap.servers": settings.kafka, "group.id": uuid.uuid4().hex})
    try:
        topics = consumer.list_topics(timeout=10).topics
        return {
            (name, number): consumer.get_watermark_offsets(TopicPartition(name, number), timeout=10)[1]
            for name, topic in topics.items()
            for number in topic.partitions
            if not name.startswith("__")
        }
    finally:
        consumer.close()


def test_a_reply_goes_to_the_partition_and_correlation_id_of_the_request(
    settings: AgentSettings, replies: Consumer
) -> None:
    opaque = b"\x00\xff" + uuid.uuid4().bytes
    headers = {
        "kafka_replyTopic": b"search.replies",
        "kafka_replyPartition": (11).to_bytes(4, "big"),
        "kafka_correlationId": opaque,
        "deadline": str(int((time.time() + 60) * 1000)).encode(),
    }
    ask(settings, {"text": "a red circle", "k": 3}, headers)
    answered = reply_to(replies, opaque, 60)
    assert answered is not None
    partition, body = answered
    assert "error" not in body
    assert partition == 11
    assert len(body["model_digest"]) == 64


def test_a_request_past_its_deadline_is_never_answered(settings: AgentSettings, replies: Consumer) -> None:
    late, punctual = uuid.uuid4().bytes, uuid.uuid4().bytes
    address = {"kafka_replyTopic": b"search.replies", "kafka_replyPartition": (0).to_bytes(4, "big")}
    past = str(int((time.time() - 1) * 1000)).encode()
    ask(settings, {"text": "late"}, {**address, "kafka_correlationId": late, "deadline": past})
    ask(settings, {"text": "punctual"}, {**address, "kafka_correlationId": punctual})
    assert reply_to(replies, punctual) is not None
    assert reply_to(replies, late, seconds=1) is None


def test_a_reply_cannot_be_sent_to_any_other_topic(settings: AgentSettings) -> None:
    with Follower(settings) as follower:
        ask(settings, {"text": "x"}, {"kafka_replyTopic": b"images", "kafka_correlationId": b"1"})
        letters = [o for _key, o in follower.outcomes_at_hand() if isinstance(o, DeadLetter)]
    assert [letter.code for letter in letters] == ["reply_topic_refused"]


def test_errors_are_replies_with_a_code(client: Client) -> None:
    with pytest.raises(SearchFailed, match="unknown_class: dog; the model knows circle"):
        client.search(SearchRequest(text="x", filters=SearchFilters(classes=("dog",))), timeout=20)


def hostile(settings: AgentSettings) -> dict[str, tuple[bytes, str]]:
    """Requests that nobody should send, each with the code of its answer."""
    manifest = load_manifest(settings.model_folder)
    page = Page(pit="cGl0", target="images", k=10, offset=10)
    key = cursor_key(settings)
    genuine = Cursors(key, 60, manifest.digest).token(page)
    cursors = {
        "a cursor that is none": ("x" * 100, "bad_cursor"),
        "a cursor signed by somebody else": (Cursors(b"k" * 32, 60, manifest.digest).token(page), "bad_cursor"),
        "a cursor that was changed": (genuine[:-8] + "AAAAAAAA", "bad_cursor"),
        "a cursor of another model": (Cursors(key, 60, "e" * 64).token(page), "bad_cursor"),
        "an expired cursor": (Cursors(key, -1, manifest.digest).token(page), "expired_cursor"),
    }
    vector = "AACAPw=="
    bodies: dict[str, tuple[Any, str]] = {
        "nothing": (b"", "bad_request"),
        "no JSON": (b"\xff\xfe{", "bad_request"),
        "no object": (b"[1, 2]", "bad_request"),
        "no question": ({}, "bad_request"),
        "deep lists": (b"[" * 40_000, "bad_request"),
        "deep objects": (b'{"text": ' + b'{"a": ' * 20_000 + b"1" + b"}" * 20_001, "bad_request"),
        "deep where nobody looks": (b'{"text": "x", "a": ' + b"[" * 5000 + b"]" * 5000 + b"}", "bad_request"),
        "very many values": (b'{"text": "x", "a": [' + b"1," * 60_000 + b"1]}", "too_large"),
        "very many bytes": (b'{"text": "x", "a": "' + b"x" * MAX_REQUEST + b'"}', "too_large"),
        "long text": ({"text": "x" * 2001}, "bad_request"),
        "half characters": (b'{"text": "\\ud800"}', "bad_request"),
        "two questions": ({"text": "x", "image_id": "y"}, "bad_request"),
        "only negative clauses": ({"clauses": [{"text": "x", "weight": -1}]}, "bad_request"),
        "clauses that cancel out": ({"clauses": [{"text": "x"}, {"text": "x", "weight": -1}]}, "contradictory"),
        "an empty range": ({"text": "x", "filters": {"min_width": 2, "max_width": 1}}, "bad_request"),
        "wanted and not wanted": ({"text": "x", "filters": {"tags": {"any": ["a"], "none": ["a"]}}}, "bad_request"),
        "an unknown class": ({"text": "x", "filters": {"classes": ["dragon"]}}, "unknown_class"),
        "an unknown image": ({"image_id": "nowhere"}, "unknown_image"),
        "an unknown object": ({"object_id": "nowhere#1"}, "unknown_object"),
        "a vector of another model": ({"vector": vector, "model_digest": "e" * 64}, "model_mismatch"),
        "a vector of another length": ({"vector": vector, "model_digest": manifest.digest}, "model_mismatch"),
        "no picture": ({"image": "AAAA"}, "unsupported_format"),
        "a file of the server": ({"dataref": "file:///etc/passwd"}, "source_not_allowed"),
        "an address of its network": ({"dataref": "http://127.0.0.1:9200/"}, "source_not_allowed"),
        "too many hits": ({"text": "x", "k": 1001}, "bad_request"),
        **{name: ({"cursor": cursor}, code) for name, (cursor, code) in cursors.items()},
    }
    return {
        name: (body if isinstance(body, bytes) else json.dumps(body).encode(), code)
        for name, (body, code) in bodies.items()
    }


def test_every_hostile_request_gets_its_error_and_nothing_is_written_elsewhere(
    stack: LocalStack, settings: AgentSettings, replies: Consumer, client: Client
) -> None:
    process = stack.pid("worker-search")
    before = ends_of_all_topics(settings)
    asked = {name: (value, code, address()) for name, (value, code) in hostile(settings).items()}
    ask_all(settings, [(value, headers) for value, _code, headers in asked.values()])
    names = {headers["kafka_correlationId"]: name for name, (_value, _code, headers) in asked.items()}
    answers = {names[which]: body for which, (_, body) in replies_to(replies, set(names), 60).items()}
    codes = {name: answers.get(name, {}).get("error", {}).get("code") for name in asked}
    assert codes == {name: code for name, (_value, code, _headers) in asked.items()}
    assert all(
        (answer["error"]["message"] and "hits" not in answer) or not answer["hits"] for answer in answers.values()
    )
    grown = {topic for (topic, _), end in ends_of_all_topics(settings).items() if end != before.get((topic, _), 0)}
    assert grown == {settings.topics.requests, settings.topics.replies}
    assert stack.pid("worker-search") == process, "the same process serves on"
    assert client.search(SearchRequest(text="a red circle"), timeout=20).error is None


@pytest.mark.parametrize(
    "wrong",
    [
        {"kafka_replyTopic": b"images"},
        {"kafka_replyTopic": b"search.requests"},
        {"kafka_replyTopic": b"search.replies/../images"},
        {"kafka_replyTopic": b"\xff"},
        {"kafka_replyTopic": b""},
        {"kafka_replyTopic": b"search.replies.nobody"},
        {"kafka_correlationId": b""},
        {"kafka_correlationId": b"x" * 100_000},
        {"kafka_replyPartition": b"1"},
        {"kafka_replyPartition": b"\xff\xff\xff\xff"},
        {"kafka_replyPartition": (4711).to_bytes(4, "big")},
        {"deadline": b"tomorrow"},
    ],
    ids=lambda wrong: " ".join(f"{name}={content[:20]!r}" for name, content in wrong.items()),
)
def test_a_request_that_cannot_be_answered_is_a_dead_letter(
    settings: AgentSettings, replies: Consumer, wrong: dict[str, bytes]
) -> None:
    right = address()
    before = ends_of_all_topics(settings)
    with Follower(settings) as follower:
        ask_all(settings, [(b'{"text": "x"}', {**address(), **wrong}), (b'{"text": "x"}', right)])
        assert reply_to(replies, right["kafka_correlationId"]) is not None, "who comes behind it is answered"
        end, letters = time.monotonic() + 20, list[DeadLetter]()
        while not letters and time.monotonic() < end:
            letters = [one for _key, one in follower.outcomes_at_hand() if isinstance(one, DeadLetter)]
    assert [letter.code in ("no_reply_address", "reply_topic_refused") for letter in letters] == [True]
    after = ends_of_all_topics(settings)
    grown = {topic for (topic, number), end in after.items() if end != before.get((topic, number), 0)}
    assert grown == {settings.topics.requests, settings.topics.replies, settings.topics.dead}


def test_a_burst_of_one_caller_does_not_delay_another_beyond_its_deadline(
    settings: AgentSettings, replies: Consumer, client: Client
) -> None:
    client.search(SearchRequest(text="a red circle"), timeout=20)
    burst = [address("greedy", seconds=50) for _ in range(5000)]
    modest = address("modest", partition=1, seconds=8)
    value = json.dumps({"text": "a red circle", "k": 100}).encode()
    ask_all(settings, [*((value, headers) for headers in burst), (value, modest)])
    answered = reply_to(replies, modest["kafka_correlationId"])
    assert answered is not None, "the deadline of one who asks once is kept"
    assert "error" not in answered[1]


def test_of_a_burst_too_many_are_refused_and_all_are_answered(settings: AgentSettings, replies: Consumer) -> None:
    burst = {headers["kafka_correlationId"]: headers for headers in (address("hasty") for _ in range(5000))}
    ask_all(settings, [(b'{"text": "a red circle"}', headers) for headers in burst.values()])
    answers = replies_to(replies, set(burst), 60)
    codes = [body.get("error", {}).get("code") for _, body in answers.values()]
    assert len(codes) == 5000
    assert set(codes) == {None, "too_many_requests"}
    assert codes.count(None) >= settings.search_waiting
