"""Request and reply over topics, spoken by a plain Kafka client."""

from __future__ import annotations

import json
import time
import uuid
from typing import Any

import pytest
from confluent_kafka import Consumer, Producer

from agents.settings import AgentSettings
from sightlog.client import Client, consumer_at_end
from sightlog.dead_letters import DeadLetter
from sightlog.errors import SearchFailed
from sightlog.filters import SearchFilters
from sightlog.follow import Follower
from sightlog.search import SearchRequest


@pytest.fixture
def replies(settings: AgentSettings) -> Any:
    consumer = consumer_at_end(settings.kafka, settings.topics.replies)
    yield consumer
    consumer.close()


def ask(settings: AgentSettings, body: Any, headers: dict[str, bytes]) -> None:
    producer = Producer({"bootstrap.servers": settings.kafka})
    producer.produce(settings.topics.requests, json.dumps(body).encode(), headers=dict(headers))
    assert producer.flush(10) == 0


def reply_to(consumer: Consumer, correlation_id: bytes, seconds: float = 20) -> tuple[int, Any] | None:
    """Partition and body of the reply with a correlation id."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        message = consumer.poll(0.2)
        if message is not None and dict(message.headers() or [])["kafka_correlationId"] == correlation_id:
            return message.partition(), json.loads(message.value())
    return None


def test_a_reply_goes_to_the_partition_and_correlation_id_of_the_request(
    settings: AgentSettings, replies: Consumer
) -> None:
    opaque = b"\x00\xff" + uuid.uuid4().bytes
    headers = {
        "kafka_replyTopic": b"search.replies",
        "kafka_replyPartition": (11).to_bytes(4, "big"),
        "kafka_correlationId": opaque,
        "deadline": str(int((time.time() + 20) * 1000)).encode(),
    }
    ask(settings, {"text": "a red circle", "k": 3}, headers)
    answered = reply_to(replies, opaque)
    assert answered is not None
    partition, body = answered
    assert partition == 11
    assert len(body["model_digest"]) == 64
    assert "error" not in body


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
