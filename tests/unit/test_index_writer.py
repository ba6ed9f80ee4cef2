"""The index writer's behaviours on the fake OpenSearch, and what only a fake can show."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from agents.index.mappings import ModelIdentity
from agents.index.writer import IndexWriter
from agents.settings import IndexSettings
from tests.index_behaviours import BEHAVIOURS, Behaviour, embedding, intercepted
from tests.unit.fake_opensearch import FakeOpenSearch

MODEL = ModelIdentity("tiny", "a" * 64, 8, ("circle", "square", "star"))
SETTINGS = IndexSettings()


@pytest.fixture
def client() -> Any:
    return FakeOpenSearch(MODEL.dim)


@pytest.mark.parametrize("behaviour", BEHAVIOURS, ids=lambda behaviour: behaviour.__name__)
async def test_behaviour(behaviour: Behaviour, client: Any) -> None:
    await behaviour(client, SETTINGS, MODEL)


class BusyImages:
    """Counts how many writes between reading versions and the last bulk hold each image."""

    def __init__(self, client: Any) -> None:
        self._client = client
        self.most = 0
        self._busy: Counter[str] = Counter()

    async def mget(self, **kwargs: Any) -> Any:
        self._busy.update(doc["_id"] for doc in kwargs["body"]["docs"])
        self.most = max(self.most, *self._busy.values())
        return await self._client.mget(**kwargs)

    async def bulk(self, **kwargs: Any) -> Any:
        await asyncio.sleep(0)
        reply = await self._client.bulk(**kwargs)
        self._busy.subtract({id_ for item in reply["items"] for id_ in [_id(item)] if "#" not in id_})
        return reply


def _id(item: dict[str, dict[str, str]]) -> str:
    return next(iter(item.values()))["_id"]


async def test_two_batches_never_hold_the_same_image(client: Any) -> None:
    busy: Any = BusyImages(client)
    writer = IndexWriter(busy, SETTINGS, MODEL)
    await asyncio.gather(
        *(
            writer.write(
                [embedding(MODEL, image_id, version=version, objects=0) for image_id in (f"{version % 3}", "x")]
            )
            for version in range(1, 10)
        )
    )
    assert busy.most == 1
    assert writer._in_flight._held == {}


async def test_batches_of_different_images_are_written_side_by_side(client: Any) -> None:
    both_there = asyncio.Event()
    waiting = 0

    async def meet(through: Callable[[], Awaitable[Any]]) -> Any:
        nonlocal waiting
        waiting += 1
        if waiting == 2:
            both_there.set()
        await both_there.wait()
        return await through()

    writer = IndexWriter(intercepted(client, mget=[meet, meet]), SETTINGS, MODEL)
    batches = [[embedding(MODEL, image_id)] for image_id in ("a", "b")]
    await asyncio.wait_for(asyncio.gather(*map(writer.write, batches)), 5)


async def test_a_failed_write_lets_the_next_one_in(client: Any) -> None:
    async def bug(through: Callable[[], Awaitable[Any]]) -> Any:
        raise RuntimeError("bug")

    writer = IndexWriter(intercepted(client, mget=[bug]), SETTINGS, MODEL)
    document = embedding(MODEL, "a")
    with pytest.raises(RuntimeError):
        await writer.write([document])
    await asyncio.wait_for(writer.write([document]), 5)


async def test_large_batch_is_sent_in_bulks_that_opensearch_takes(client: Any) -> None:
    """OpenSearch answers 413 to more than 100 MB, and 429 for ever to what its breakers cannot hold."""
    sizes: list[int] = []

    async def measured(**kwargs: Any) -> Any:
        sizes.append(len(kwargs["body"]))
        return await client.bulk(**kwargs)

    class Measured:
        mget = client.mget
        bulk = staticmethod(measured)

    metadata = {f"note {n}": "n" * 20_000 for n in range(10)}
    documents = [embedding(MODEL, f"image-{n}", objects=20, metadata=metadata) for n in range(6)]
    await IndexWriter(Measured(), SETTINGS, MODEL).write(documents)  # type: ignore[arg-type]
    assert sum(sizes) > 20 * 1024 * 1024
    assert max(sizes) <= 16 * 1024 * 1024


async def test_stale_version_is_not_even_for_a_moment_to_be_found(client: Any) -> None:
    await IndexWriter(client, SETTINGS, MODEL).write([embedding(MODEL, "a", version=2, objects=1)])

    async def only_deletes(through: Callable[[], Awaitable[Any]]) -> Any:
        reply = await through()
        assert all("delete" in item for item in reply["items"])
        return reply

    stale = embedding(MODEL, "a", version=1, objects=3)
    await IndexWriter(intercepted(client, bulk=[only_deletes] * 9), SETTINGS, MODEL).write([stale])


async def test_nothing_readable_writes_nothing() -> None:
    assert await IndexWriter(None, SETTINGS, MODEL).write([]) == []  # type: ignore[arg-type]
