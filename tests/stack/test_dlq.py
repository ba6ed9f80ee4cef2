"""Dead letters on a real broker: what is open, what a replay sends, and that nothing is hidden afterwards."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator
from typing import Any

import orjson
import pytest
from click.testing import CliRunner, Result
from confluent_kafka import Consumer, Message, Producer

from agents.delivery.failures import ItemBroken
from agents.delivery.outbox import Outbox
from agents.delivery.producer import ConfirmedProducer
from agents.delivery.records import Record
from agents.delivery.retry import Backoff
from load_tests.running import free_port_offset
from sightlog.cli import cli
from sightlog.consuming import consumer_at_end
from sightlog.history import Stage
from sightlog.settings import MAX_RECORD_BYTES
from stack.local import LocalStack
from stack.settings import StackSettings

INLINE = 1000


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a Kafka of its own."""
    settings = StackSettings(components=("kafka",), workers=False)
    local = LocalStack(tmp_path_factory.mktemp("letters"), port_offset=free_port_offset(), settings=settings)
    local.up()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SIGHTLOG_KAFKA", local.endpoints().kafka)
        yield local.endpoints().kafka
    local.down(wipe=True)


@pytest.fixture(autouse=True)
def everything_is_closed_before(broker: str) -> None:
    dlq("drop", "--all")
    assert listed() == {}


def dlq(*arguments: str) -> Result:
    return CliRunner().invoke(cli, ["dlq", *arguments])


def listed(*arguments: str) -> dict[str, dict[str, Any]]:
    """The open letters by id."""
    result = dlq("ls", "--json", *arguments)
    assert result.exit_code == 0, result.output
    return {row["id"]: row for row in map(orjson.loads, result.stdout.splitlines())}


def published(bootstrap: str, value: bytes | None, topic: str = "images") -> Record:
    """An event with odd headers, as a worker reads it."""
    reader = consumer_at_end(bootstrap, topic)
    producer = Producer({"bootstrap.servers": bootstrap, "message.max.bytes": MAX_RECORD_BYTES})
    producer.produce(topic, value, uuid.uuid4().hex, headers=[("ce_id", b"1"), ("odd", b"\xff\x00"), ("odd", b"")])
    assert producer.flush(10) == 0
    record = record_of(next_message(reader))
    reader.close()
    return record


def next_message(consumer: Consumer, seconds: float = 20.0) -> Message:
    deadline = time.monotonic() + seconds
    while (message := consumer.poll(0.2)) is None:
        assert time.monotonic() < deadline, "nothing came"
    assert message.error() is None
    return message


def record_of(message: Any) -> Record:
    return Record(
        topic=message.topic(),
        partition=message.partition(),
        offset=message.offset(),
        timestamp_ms=message.timestamp()[1],
        key=message.key(),
        value=message.value(),
        headers=[(name, content or b"") for name, content in message.headers() or []],
    )


async def bury(bootstrap: str, record: Record, code: str = "undecodable", stage: Stage = "vision") -> str:
    """Write its letter as an agent does; the letter's id."""
    outbox = Outbox(
        stage,
        ConfirmedProducer(bootstrap, linger_ms=0, max_record_bytes=MAX_RECORD_BYTES),
        dead_topic="images.dead",
        dead_inline_limit=INLINE,
        backoff=Backoff(),
    )
    async with outbox:
        await outbox.bury(record, ItemBroken(code, "why \x1b[31m[bold]"), "image-1")
    return str(record.origin)


@pytest.mark.parametrize("size", [0, 10, INLINE, INLINE + 1, 3_000_000], ids=lambda size: f"{size}B")
async def test_replay_sends_the_very_record_and_closes_its_letter(broker: str, size: int) -> None:
    """Above the limit the letter has no bytes: they are read at the origin."""
    first = published(broker, b"\xd8" * size or None)
    letter_id = await bury(broker, first)
    images = consumer_at_end(broker, "images")
    result = dlq("replay", "--id", letter_id, "--json")
    assert result.exit_code == 0, result.output
    assert orjson.loads(result.stdout)["replayed"] == [letter_id]
    again = record_of(next_message(images))
    images.close()
    assert (again.key, again.value or b"") == (first.key, first.value or b"")
    assert again.headers[:-1] == first.headers
    assert again.version == first.version
    assert again.history is not None
    assert (again.history.attempts, again.history.waits, again.history.hops[-1].code) == (1, 0, "replayed")
    assert listed() == {}


async def test_event_that_fails_again_after_its_replay_is_open_again_with_a_longer_history(broker: str) -> None:
    letter_id = await bury(broker, published(broker, b"picture"))
    images = consumer_at_end(broker, "images")
    dlq("replay", "--all")
    assert await bury(broker, record_of(next_message(images)), "too_large") == letter_id
    images.close()
    (row,) = listed().values()
    assert (row["id"], row["code"], row["attempts"]) == (letter_id, "too_large", 2)
    shown = orjson.loads(dlq("show", letter_id, "--json").stdout)
    assert [hop["code"] for hop in shown["hops"]] == ["undecodable", "replayed", "too_large"]


async def test_letters_are_chosen_by_cause_time_and_id(broker: str) -> None:
    ids = {code: await bury(broker, published(broker, b"x"), code) for code in ("undecodable", "too_large", "empty")}
    assert set(listed("--cause", "undecodable", "--cause", "empty")) == {ids["undecodable"], ids["empty"]}
    assert set(listed("--since", "1h")) == set(ids.values())
    assert listed("--since", "2100-01-01T00:00:00Z") == {}
    assert set(listed("--id", ids["empty"], "--cause", "too_large")) == set()
    images = consumer_at_end(broker, "images")
    assert orjson.loads(dlq("replay", "--cause", "empty", "--dry-run", "--json").stdout)["replayed"] == [ids["empty"]]
    assert images.poll(1.0) is None
    images.close()
    assert set(listed()) == set(ids.values())
    assert dlq("drop", "--cause", "undecodable", "--cause", "too_large").exit_code == 0
    assert set(listed()) == {ids["empty"]}


async def test_letter_of_an_embedding_document_goes_back_to_its_topic(broker: str) -> None:
    await bury(broker, published(broker, b"{}", "images.embedded"), "index_refused", "indexer")
    images, embedded = consumer_at_end(broker, "images"), consumer_at_end(broker, "images.embedded")
    assert dlq("replay", "--all").exit_code == 0
    assert record_of(next_message(embedded)).history is not None
    assert images.poll(1.0) is None
    images.close()
    embedded.close()


async def test_what_cannot_be_replayed_stays_open_and_says_why(broker: str) -> None:
    request = await bury(broker, published(broker, b"{}", "search.requests"), "no_reply_address", "search")
    large = published(broker, b"x" * (INLINE + 1))
    gone = await bury(broker, Record(**{**large.__dict__, "offset": large.offset + 10_000}))
    result = dlq("replay", "--all", "--json")
    assert result.exit_code == 1
    failed = orjson.loads(result.stdout)["failed"]
    assert "no longer in the log" in failed[gone]
    assert "drop it" in failed[request]
    assert set(listed()) == {request, gone}


async def test_show_tells_everything_and_lets_nobody_steer_the_terminal(broker: str, tmp_path: Any) -> None:
    letter_id = await bury(broker, published(broker, b"picture" * 1000))
    shown = dlq("show", letter_id, "--save", str(tmp_path / "value"))
    assert shown.exit_code == 0, shown.output
    assert (tmp_path / "value").read_bytes() == b"picture" * 1000
    for text in (letter_id, "undecodable", "the picture is damaged", "image-1", "7,000 bytes", "ce_id", "[bold]"):
        assert text in shown.output
    assert "\x1b[31m" not in shown.output
    dlq("drop", "--id", letter_id)
    assert "(closed)" in dlq("show", letter_id).output
    assert dlq("show", "images/0/999999").exit_code == 1


async def test_text_that_is_no_letter_is_told_and_stops_nothing(broker: str) -> None:
    producer = Producer({"bootstrap.servers": broker})
    producer.produce("images.dead", b"\xffgarbage")
    producer.flush(10)
    letter_id = await bury(broker, published(broker, b"x"))
    assert set(listed()) == {letter_id}
    assert "no letters that this version can read" in dlq("ls").output


def test_all_letters_are_never_meant_by_accident(broker: str) -> None:
    for command in ("replay", "drop"):
        result = dlq(command)
        assert result.exit_code == 2
        assert "--all" in result.output
