"""Publishing with the clients, and waiting for what becomes of it, against a broker in memory."""

from __future__ import annotations

import asyncio
import io
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest

from sightlog.async_client import AsyncClient
from sightlog.client import Client
from sightlog.dead_letters import DeadLetter, Origin
from sightlog.documents import IndexReceipt
from sightlog.errors import BecameDeadLetter, FileTooLarge, NotSearchableYet, PublishFailed, SightlogError
from sightlog.events import Headers, ImageUploaded, new_deletion, new_update, new_upload, parse_event
from sightlog.published import Published
from sightlog.settings import ClientSettings
from tests.unit.fake_kafka import FakeBroker, FakeConsumer, FakeProducer, Record, broker

__all__ = ["broker"]

NOW = datetime.now(timezone.utc)


@pytest.fixture
def client(broker: FakeBroker) -> Iterator[Client]:
    with Client() as made:
        yield made


def uploaded(record: Record) -> ImageUploaded:
    headers: Headers = [
        (name, value if isinstance(value, bytes) else str(value).encode()) for name, value in record.fields
    ]
    event = parse_event(record.value(), headers)
    assert isinstance(event, ImageUploaded)
    return event


def receipt(image: Published | str, version: int | None = None, kind: str = "uploaded") -> IndexReceipt:
    name, known = (image, 1) if isinstance(image, str) else (image.image_id, image.version)
    at = {"uploaded_at": NOW, "searchable_at": NOW}
    return IndexReceipt.model_validate(
        {"image_id": name, "version": version or known, "kind": kind, "objects": 2, **at}
    )


def letter(image: Published | str, code: str = "undecodable") -> DeadLetter:
    where = ("images", 0, 7) if isinstance(image, str) else (image.topic, image.partition, image.offset or 0)
    origin = Origin(topic=where[0], partition=where[1], offset=where[2], timestamp=NOW)
    return DeadLetter(
        code=code,
        message="damaged",
        stage="vision",
        origin=origin,
        failed_at=NOW,
        image_id=image if isinstance(image, str) else image.image_id,
        value_bytes=0,
    )


def tell(broker: FakeBroker, outcome: IndexReceipt | DeadLetter, ago: float = 0) -> None:
    topic = "images.dead" if isinstance(outcome, DeadLetter) else "images.indexed"
    milliseconds = int((time.time() - ago) * 1000)
    broker.write(topic, outcome.to_kafka(), outcome.image_id, milliseconds=milliseconds)


# Publishing.


def test_bytes_become_an_upload_under_their_digest(client: Client, broker: FakeBroker) -> None:
    taken = datetime(2026, 1, 2, tzinfo=timezone.utc)
    about = {"tags": ["a", "b"], "metadata": {"site": "north"}, "captured_at": taken, "filename": "x.png"}
    published = client.publish(b"png", **about)  # type: ignore[arg-type]
    (record,) = broker.log["images", 0]
    event = uploaded(record)
    assert (record.key() or b"").decode() == published.image_id == event.sha256
    assert (event.data, event.tags, event.metadata) == (b"png", ("a", "b"), {"site": "north"})
    assert (event.capturedat, event.filename, event.datacontenttype) == (taken, "x.png", "image/png")


def test_a_path_or_an_open_file_tells_its_name(client: Client, broker: FakeBroker, tmp_path: Path) -> None:
    path = tmp_path / "a photo.jpeg"
    path.write_bytes(b"jpeg")
    client.publish(path, key="one")
    client.publish(str(path), key="two")
    with path.open("rb") as file:
        client.publish(file, key="three")
    client.publish(io.BytesIO(b"jpeg"), key="four")
    events = [uploaded(record) for record in broker.log["images", 0]]
    assert [record.key() for record in broker.log["images", 0]] == [b"one", b"two", b"three", b"four"]
    assert [event.filename for event in events] == ["a photo.jpeg"] * 3 + [None]
    assert {event.data for event in events} == {b"jpeg"}


def test_an_event_is_published_as_it_is_and_keyed_so_that_its_order_holds(client: Client, broker: FakeBroker) -> None:
    assert client.publish(new_upload(b"x", source="/test", subject="subject")).image_id == "subject"
    assert client.publish(new_deletion(source="/test"), key="image-1").image_id == "image-1"
    assert [record.key() for record in broker.log["images", 0]] == [b"subject", b"image-1"]
    client.publish(new_update(source="/test", tags=("x",)))
    assert broker.log["images", 0][2].key() is None, "its dead letter tells"
    with pytest.raises(TypeError, match="tags beside it"):
        client.publish(new_upload(b"x", source="/test"), tags=["a"])


def test_what_comes_back_says_where_the_event_is(client: Client, broker: FakeBroker) -> None:
    client.publish(b"one")
    published = client.publish(b"two")
    record = broker.log["images", 0][1]
    assert (published.topic, published.partition, published.offset) == ("images", 0, 1)
    assert round(published.published_at.timestamp() * 1000) == record.milliseconds


def test_a_large_file_is_refused_before_it_is_read_whole(broker: FakeBroker, tmp_path: Path) -> None:
    (tmp_path / "large.jpg").write_bytes(b"x" * 11)
    with Client(ClientSettings(inline_limit=10)) as client:
        for picture in (tmp_path / "large.jpg", b"x" * 11):
            with pytest.raises(FileTooLarge, match=r"10 bytes.*dataref"):
                client.publish(picture)
        assert isinstance(client.publish_async(new_upload(b"x" * 11, source="/test")).exception(0), FileTooLarge)


def test_a_broker_that_does_not_confirm_is_an_error_in_time(client: Client, broker: FakeBroker) -> None:
    broker.down = True
    with pytest.raises(PublishFailed, match="did not confirm"):
        client.publish(b"x", timeout=0.05)


def test_a_full_buffer_is_waited_for(client: Client, broker: FakeBroker) -> None:
    client.publish(b"x")
    producer = client._connection._producer
    assert isinstance(producer, FakeProducer)
    producer.full = True
    with pytest.raises(PublishFailed):
        client.publish(b"y", timeout=0.05)
    threading.Timer(0.05, lambda: setattr(producer, "full", False)).start()
    assert client.publish(b"y", timeout=20).offset == 1


def test_many_threads_publish_and_none_waits_for_the_others(client: Client, broker: FakeBroker) -> None:
    with ThreadPoolExecutor(16) as pool:
        published = list(pool.map(lambda number: client.publish(b"%d" % number, key=f"image-{number}"), range(200)))
    assert sorted(p.offset for p in published if p.offset is not None) == list(range(200))
    assert [p.image_id for p in published] == [f"image-{number}" for number in range(200)]
    assert FakeProducer.made == 1


async def test_the_async_client_publishes_many_at_once(broker: FakeBroker, tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"jpeg")
    threads = threading.active_count()
    async with AsyncClient() as client:
        published = await asyncio.gather(*(client.publish(tmp_path / "a.jpg", key=f"{n}") for n in range(500)))
        assert threading.active_count() <= threads + 1
        assert [p.image_id for p in published] == [str(n) for n in range(500)]
        for one in published:
            tell(broker, receipt(one))
        assert len(await client.wait_until_indexed(published)) == 500
        broker.down = True
        with pytest.raises(PublishFailed):
            await client.publish(b"x", timeout=0.05)
        broker.down = False


# Waiting.


def test_waiting_ends_when_the_receipt_comes(client: Client, broker: FakeBroker) -> None:
    published = client.publish(b"x", key="image-1")
    with ThreadPoolExecutor(1) as pool:
        waits = pool.submit(client.wait_until_indexed, [published], timeout=20)
        while not client._connection.waiting:
            pass
        tell(broker, receipt("another"))
        tell(broker, receipt(published))
        assert waits.result(20)["image-1"].objects == 2


def test_it_does_not_matter_whether_the_receipt_was_there_before(client: Client, broker: FakeBroker) -> None:
    published = client.publish(b"x", key="image-1")
    tell(broker, receipt(published))
    assert client.wait_until_indexed(published).keys() == {"image-1"}
    assert client.wait_until_indexed("image-1").keys() == {"image-1"}


def test_receipts_of_earlier_events_of_the_image_do_not_count(client: Client, broker: FakeBroker) -> None:
    earlier = client.publish(b"x", key="image-1")
    later = client.publish(b"y", key="image-1")
    tell(broker, receipt(earlier))
    tell(broker, letter(earlier))
    with pytest.raises(NotSearchableYet) as missing:
        client.wait_until_indexed(later, timeout=0.2)
    assert missing.value.missing == ("image-1",)
    tell(broker, receipt(later))
    assert client.wait_until_indexed(later)["image-1"].version == later.version


def test_an_event_that_died_is_not_saved_by_a_newer_one(client: Client, broker: FakeBroker) -> None:
    broken = client.publish(b"x", key="image-1")
    tell(broker, letter(broken))
    tell(broker, receipt(client.publish(b"y", key="image-1")))
    with pytest.raises(BecameDeadLetter):
        client.wait_until_indexed(broken, timeout=20)


def test_a_dead_letter_is_raised_with_its_cause_and_what_else_is_known(client: Client, broker: FakeBroker) -> None:
    good, bad = client.publish(b"x", key="good"), client.publish(b"y", key="bad")
    tell(broker, letter(bad, "too_many_pixels"))
    tell(broker, receipt(good))
    with pytest.raises(BecameDeadLetter, match=r"bad became a dead letter: too_many_pixels: damaged") as dead:
        client.wait_until_indexed([good, bad], timeout=20)
    assert dead.value.code == "too_many_pixels"
    assert (list(dead.value.letters), list(dead.value.receipts), dead.value.missing) == (["bad"], ["good"], ())
    assert f"sightlog dlq show images/0/{bad.offset}" in str(dead.value)


def test_a_dead_letter_without_a_key_is_found_by_its_image_id(client: Client, broker: FakeBroker) -> None:
    broker.write("images.dead", letter("image-1").to_kafka())
    with pytest.raises(BecameDeadLetter):
        client.wait_until_indexed("image-1", timeout=20)


def test_a_dead_letter_that_was_replayed_with_success_is_no_failure(client: Client, broker: FakeBroker) -> None:
    published = client.publish(b"x", key="image-1")
    tell(broker, letter(published))
    tell(broker, receipt(published))
    assert client.wait_until_indexed([published], timeout=20).keys() == {"image-1"}


def test_of_an_image_id_old_outcomes_and_deletions_do_not_count(client: Client, broker: FakeBroker) -> None:
    tell(broker, receipt("image-1"), ago=3600)
    tell(broker, letter("image-1"), ago=3600)
    tell(broker, receipt("image-1", kind="deleted"))
    with pytest.raises(NotSearchableYet):
        client.wait_until_indexed(["image-1"], timeout=0.1)
    # A time without a zone is UTC.
    since = (datetime.now(timezone.utc) - timedelta(hours=2)).replace(tzinfo=None)
    assert client.wait_until_indexed(["image-1"], since=since)["image-1"].kind == "uploaded"


def test_records_that_cannot_be_read_do_not_end_the_waiting(client: Client, broker: FakeBroker) -> None:
    broker.write("images.indexed", b"not JSON", "image-1")
    broker.write("images.dead", b"not JSON", "image-1")
    broker.write("images.indexed", None, b"\xff\xfe")
    tell(broker, receipt("image-1"))
    assert client.wait_until_indexed("image-1", timeout=20)


def test_who_joins_later_makes_the_reader_go_back(client: Client, broker: FakeBroker) -> None:
    old = client.publish(b"x", key="old")
    tell(broker, receipt(old))
    with ThreadPoolExecutor(1) as pool:
        later = datetime.now(timezone.utc) + timedelta(minutes=5)
        first = pool.submit(client.wait_until_indexed, "never", timeout=20, since=later)
        while not client._connection.waiting:
            pass
        assert client.wait_until_indexed(old, timeout=20)
        tell(broker, receipt("never"), ago=-400)
        assert first.result(20)
    assert FakeConsumer.made <= 2


def test_nothing_is_left_of_waits_that_are_over(client: Client, broker: FakeBroker) -> None:
    for _ in range(3):
        with pytest.raises(NotSearchableYet, match=r"2 of 2 images within 0\.01 s, first of image-1"):
            client.wait_until_indexed(["image-1", "image-2"], timeout=0.01)
    assert client._connection.waiting == 0
    outcomes = client._connection._outcomes
    assert outcomes is not None
    assert outcomes._waits == {}
    while FakeConsumer.alive:  # nobody reads for nobody
        pass
    assert client.wait_until_indexed([]) == {}


def test_waiting_without_a_broker_is_an_error_at_once(client: Client, broker: FakeBroker) -> None:
    broker.down = True
    with pytest.raises(SightlogError, match="no answer from Kafka"):
        client.wait_until_indexed("image-1", timeout=60)
    assert client._connection.waiting == 0
    broker.down = False
    tell(broker, receipt("image-1"))
    assert client.wait_until_indexed("image-1", timeout=20)


def test_closing_ends_the_waiting(broker: FakeBroker) -> None:
    client = Client()
    with ThreadPoolExecutor(1) as pool:
        waits = pool.submit(client.wait_until_indexed, "image-1", timeout=60)
        while not client._connection.waiting:
            pass
        client.close()
        with pytest.raises(SightlogError, match="closed"):
            waits.result(20)
    assert FakeConsumer.alive == 0


async def test_a_coroutine_that_is_cancelled_waits_no_more(broker: FakeBroker) -> None:
    async with AsyncClient() as client:
        task = asyncio.create_task(client.wait_until_indexed("image-1"))
        while not client._connection.waiting:
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert client._connection.waiting == 0
        with pytest.raises(NotSearchableYet):
            await client.wait_until_indexed("image-1", timeout=0.01)
