"""Bulks shrink while OpenSearch refuses them and grow again; nothing is lost on the way."""

from __future__ import annotations

import asyncio

import pytest

from agents.delivery.retry import Backoff
from agents.index.mappings import ModelIdentity
from agents.index.pace import BulkLimits, BulkPace, Refused
from agents.index.writer import IndexWriter, Written
from agents.settings import IndexSettings
from tests.index_behaviours import assert_holds, embedding
from tests.unit.fake_opensearch import FakeOpenSearch

MODEL = ModelIdentity("tiny", "a" * 64, 8, ("circle", "square", "star"))
SETTINGS = IndexSettings()
LIMITS = BulkLimits(images=64, bytes=1024, bulks=4)


async def refuse(pace: BulkPace) -> None:
    with pytest.raises(Refused):
        async with pace.turn():
            raise Refused


async def take(pace: BulkPace) -> None:
    async with pace.turn():
        pass


async def test_a_refusal_halves_and_success_adds_a_little() -> None:
    pace = BulkPace(LIMITS)
    assert (pace.images, pace.bytes, pace.share) == (64, 1024, 1.0)
    await refuse(pace)
    assert (pace.images, pace.bytes) == (32, 512)
    await take(pace)
    assert (pace.images, pace.bytes) == (34, 544)
    for _ in range(100):
        await take(pace)
    assert (pace.images, pace.bytes, pace.share) == (64, 1024, 1.0)


async def test_one_image_is_always_tried() -> None:
    pace = BulkPace(LIMITS)
    for _ in range(50):
        await refuse(pace)
    assert pace.images == 1
    assert pace.bytes >= 1
    await asyncio.wait_for(take(pace), 5)


async def test_bulks_of_the_same_time_that_are_refused_count_as_one() -> None:
    pace = BulkPace(LIMITS)
    go = asyncio.Event()

    async def refused_later() -> None:
        async with pace.turn():
            await go.wait()
            raise Refused

    tasks = [asyncio.create_task(refused_later()) for _ in range(4)]
    await asyncio.sleep(0)
    go.set()
    outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    assert all(isinstance(outcome, Refused) for outcome in outcomes)
    assert pace.share == 0.5


async def test_fewer_bulks_are_sent_at_once_after_refusals() -> None:
    pace = BulkPace(LIMITS)
    for _ in range(2):
        await refuse(pace)
    now = most = 0

    async def count() -> None:
        nonlocal now, most
        async with pace.turn():
            now += 1
            most = max(most, now)
            for _ in range(5):
                await asyncio.sleep(0)
            now -= 1

    await asyncio.gather(*(count() for _ in range(4)))
    assert most == 1


@pytest.mark.parametrize("refuse_items", [False, True])
async def test_writer_goes_on_with_bulks_that_opensearch_takes(refuse_items: bool) -> None:
    documents = [embedding(MODEL, f"image-{number}", objects=3) for number in range(40)]
    one = len(documents[0].to_kafka())
    client = FakeOpenSearch(MODEL.dim, most_bytes=one * 8, refuse_items=refuse_items)
    writer = IndexWriter(client, SETTINGS, MODEL, BulkLimits(64, one * 100, 4), Backoff(1e-6, 1e-6))  # type: ignore[arg-type]
    assert await writer.write(documents) == [Written()] * 40
    assert writer.pace.share < 0.5
    for document in documents:
        await assert_holds(client, SETTINGS, document)
