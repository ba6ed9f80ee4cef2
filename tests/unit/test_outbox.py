"""What leaves an agent is confirmed; what cannot be published is told apart from what cannot be published now."""

from __future__ import annotations

from dataclasses import replace

import pytest
from confluent_kafka import KafkaError

from agents.delivery.failures import DependencyDown, ItemBroken, NotYet
from agents.delivery.outbox import Outbox
from agents.delivery.producer import _failure
from agents.delivery.records import Record
from agents.delivery.retry import Backoff, until_up
from sightlog.dead_letters import DeadLetter
from sightlog.errors import ContractError
from sightlog.history import HISTORY_HEADER, History
from sightlog.settings import MAX_RECORD_BYTES
from tests.unit.deliveries import FakeProducer, Sent, record

AT_ONCE = Backoff(first=1e-6, limit=1e-6)


def outbox(producer: FakeProducer, inline_limit: int = 100) -> Outbox:
    return Outbox("vision", producer, dead_topic="dead", dead_inline_limit=inline_limit, backoff=AT_ONCE)  # type: ignore[arg-type]


async def test_publish_waits_out_a_broker_that_does_not_answer() -> None:
    producer = FakeProducer(DependencyDown("1"), DependencyDown("2"))
    await outbox(producer).publish("topic", b"value", key=b"key", headers=[("a", b"b")], partition=4)
    (sent,) = producer.sent
    assert (sent.topic, sent.value, sent.key, sent.headers, sent.partition) == (
        "topic",
        b"value",
        b"key",
        [("a", b"b")],
        4,
    )


async def test_publish_raises_what_will_never_be_accepted() -> None:
    with pytest.raises(ItemBroken):
        await outbox(FakeProducer(ItemBroken("record_too_large", "no"))).publish("topic", b"value")


async def test_outbox_opens_and_closes_its_producer() -> None:
    producer = FakeProducer()
    async with outbox(producer):
        assert producer.open
    assert not producer.open


async def test_dead_letter_says_what_why_and_where() -> None:
    producer = FakeProducer(DependencyDown("hiccup"))
    failed = record(b"\xff\x00bytes", [("ce_id", b"1"), ("odd", b"\xff\xfe"), ("odd", b"")], key=b"\xffkey")
    await outbox(producer).bury(failed, ContractError("bad_event", "why"), "image-1")
    (sent,) = producer.sent
    assert (sent.topic, sent.key) == ("dead", b"\xffkey")
    letter = DeadLetter.from_kafka(sent.value)
    assert (letter.code, letter.message, letter.stage, letter.image_id) == ("bad_event", "why", "vision", "image-1")
    assert (letter.origin.topic, letter.origin.partition, letter.origin.offset) == ("images", 3, 41)
    assert letter.origin.timestamp == failed.time
    assert (letter.key, letter.value, letter.value_bytes) == (failed.key, failed.value, len(failed.value or b""))
    assert list(letter.headers) == failed.headers


@pytest.mark.parametrize(("size", "inline"), [(99, True), (100, True), (101, False)])
async def test_dead_letter_carries_the_bytes_up_to_the_limit(size: int, inline: bool) -> None:
    producer = FakeProducer()
    await outbox(producer, inline_limit=100).bury(record(b"x" * size), ItemBroken("undecodable", "no"))
    letter = DeadLetter.from_kafka(producer.sent[0].value)
    assert (letter.value is not None) == inline
    assert letter.value_bytes == size


async def test_tombstone_becomes_a_dead_letter() -> None:
    producer = FakeProducer()
    await outbox(producer).bury(record(None, key=b"k"), ContractError("empty", "nothing"))
    assert DeadLetter.from_kafka(producer.sent[0].value).value_bytes == 0


@pytest.mark.parametrize(
    ("value", "header", "key"),
    [(4, 3, 0), (0, 7, 0), (0, 0, 7), (4, 2, 1)],
    ids=lambda mebibytes: f"{mebibytes}MiB",
)
async def test_dead_letter_of_any_record_that_the_broker_took_fits_into_a_record(
    value: int, header: int, key: int
) -> None:
    """base64 makes bytes a third longer: a letter that is refused would stop its partition for ever."""
    producer, mebibyte = FakeProducer(), 1024 * 1024
    failed = record(b"v" * (value * mebibyte), [("ce_metadata", b"h" * (header * mebibyte))], b"k" * (key * mebibyte))
    await outbox(producer, inline_limit=MAX_RECORD_BYTES // 2).bury(failed, ContractError("bad_event", "why"))
    (sent,) = producer.sent
    assert len(sent.value) + len(sent.key or b"") < MAX_RECORD_BYTES
    assert DeadLetter.from_kafka(sent.value).origin.offset == failed.offset


@pytest.mark.parametrize("code", [KafkaError.MSG_SIZE_TOO_LARGE, KafkaError.INVALID_RECORD])
def test_record_that_the_broker_never_takes_is_broken(code: int) -> None:
    assert isinstance(_failure("topic", KafkaError(code)), ItemBroken)


@pytest.mark.parametrize(
    "code", [KafkaError._TRANSPORT, KafkaError._MSG_TIMED_OUT, KafkaError.NOT_ENOUGH_REPLICAS, KafkaError._QUEUE_FULL]
)
def test_broker_that_does_not_answer_is_down(code: int) -> None:
    assert isinstance(_failure("topic", KafkaError(code)), DependencyDown)


def test_back_off_grows_to_its_limit_and_keeps_half_of_it() -> None:
    backoff = Backoff(first=0.1, limit=5.0)
    for attempt in (*range(12), 10_000):
        wanted = min(5.0, 0.1 * 2 ** min(attempt, 30))
        pauses = [backoff.pause(attempt) for _ in range(50)]
        assert wanted / 2 <= min(pauses) <= max(pauses) <= wanted


async def test_only_a_dependency_that_is_down_is_waited_for() -> None:
    attempts = 0

    async def work() -> int:
        nonlocal attempts
        attempts += 1
        if attempts < 3:
            raise DependencyDown("not yet")
        raise ItemBroken("undecodable", "no")

    with pytest.raises(ItemBroken):
        await until_up("test", work, AT_ONCE)
    assert attempts == 3


TIERS = ("retry.1", "retry.2")


def tiered(producer: FakeProducer) -> Outbox:
    return Outbox(
        "vision",
        producer,  # type: ignore[arg-type]
        dead_topic="dead",
        dead_inline_limit=100,
        backoff=AT_ONCE,
        retry_topics=TIERS,
    )


def back(sent: Sent, before: Record, offset: int) -> Record:
    """What the retry worker makes of it: the same record later in the topic that it came from."""
    headers = [(name, content) for name, content in sent.headers if isinstance(content, bytes)]
    later = before.timestamp_ms + 10_000 * offset
    return replace(before, offset=offset, timestamp_ms=later, key=sent.key, value=sent.value, headers=headers)


async def test_what_is_not_there_yet_goes_from_tier_to_tier_and_then_to_the_dead_letters() -> None:
    producer, missing = FakeProducer(), NotYet("source_missing", "404")
    first = record(b"value", [("ce_id", b"1"), ("odd", b"\xff")], key=b"key", timestamp_ms=1_760_000_000_123)
    await tiered(producer).postpone(first, missing, "image-1")
    second = back(producer.sent[0], first, 50)
    await tiered(producer).postpone(second, missing, "image-1")
    third = back(producer.sent[1], first, 60)
    await tiered(producer).postpone(third, NotYet("source_timeout", "slow"), "image-1")
    assert [one.topic for one in producer.sent] == [*TIERS, "dead"]
    for sent in producer.sent[:2]:
        assert (sent.key, sent.value) == (b"key", b"value")
        assert [name for name, _ in sent.headers] == ["ce_id", "odd", HISTORY_HEADER]
    letter = DeadLetter.from_kafka(producer.sent[2].value)
    assert (letter.id, letter.code, letter.attempts) == ("images/3/41", "source_timeout", 3)
    assert [(hop.offset, hop.code) for hop in letter.hops] == [
        (41, "source_missing"),
        (50, "source_missing"),
        (60, "source_timeout"),
    ]
    assert letter.first_failed_at is not None
    assert letter.first_failed_at <= letter.failed_at
    assert list(letter.headers) == first.headers, "the history is told in fields of its own"


async def test_replayed_event_has_all_tiers_before_it_again() -> None:
    producer, missing = FakeProducer(), NotYet("source_missing", "404")
    first = record(b"value", timestamp_ms=1_760_000_000_123)
    exhausted = History(origin=first.place, attempts=3, waits=2, first_failed_at=first.time)
    replayed = replace(first, offset=90, headers=[exhausted.replayed(first.time).to_header()])
    await tiered(producer).postpone(replayed, missing)
    assert producer.sent[0].topic == TIERS[0]
    history = History.from_headers(producer.sent[0].headers)  # type: ignore[arg-type]
    assert history is not None
    assert (history.attempts, history.waits, history.origin.offset) == (4, 1, 41)


async def test_without_tiers_what_is_not_there_is_dead() -> None:
    producer = FakeProducer()
    await outbox(producer).postpone(record(b"value"), NotYet("source_missing", "404"))
    assert producer.sent[0].topic == "dead"


async def test_record_too_large_for_its_tier_is_dead_and_not_retried() -> None:
    producer = FakeProducer(ItemBroken("record_too_large", "no"))
    await tiered(producer).postpone(record(b"value"), NotYet("source_missing", "404"))
    assert DeadLetter.from_kafka(producer.sent[0].value).code == "record_too_large"


async def test_letter_says_when_it_does_not_have_all_headers() -> None:
    producer = FakeProducer()
    await outbox(producer).bury(record(b"", [("a", b"x" * 300_000)]), ContractError("bad_event", "why"))
    await outbox(producer).bury(record(b"", [("ce_dataref", b"file:///a.jpg")]), ContractError("bad_event", "why"))
    first, second = (DeadLetter.from_kafka(sent.value) for sent in producer.sent)
    assert (first.headers_dropped, first.dataref) == (True, None)
    assert (second.headers_dropped, second.dataref) == (False, "file:///a.jpg")
