"""The same bytes are inferred once: by memory, by waiting for each other, and by what the index holds."""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
import pytest
from opensearchpy.exceptions import ConnectionTimeout

from agents.delivery.failures import ItemBroken
from agents.index import known as known_module
from agents.index.known import KnownImages
from agents.index.mappings import ModelIdentity
from agents.index.writer import IndexWriter
from agents.inference.results import ImageInference
from agents.inference.seen import SeenPictures
from agents.settings import IndexSettings
from tests.index_behaviours import deletion, embedding
from tests.unit.fake_opensearch import FakeOpenSearch

MODEL = ModelIdentity("tiny", "a" * 64, 8, ("circle", "square", "star"))
SETTINGS = IndexSettings()


def inference(objects: int = 1, dim: int = 8) -> ImageInference:
    return ImageInference(
        width=2,
        height=1,
        embedding=np.ones(dim, np.float32),
        boxes=np.ones((objects, 4), np.float32),
        scores=np.ones(objects, np.float32),
        class_ids=np.zeros(objects, np.int32),
        object_embeddings=np.ones((objects, dim), np.float32),
    )


class Model:
    """Counts what it is asked to see; waits for `go`."""

    def __init__(self, failure: Exception | None = None) -> None:
        self.asked = 0
        self.failure = failure
        self.go = asyncio.Event()
        self.go.set()

    async def __call__(self) -> ImageInference:
        self.asked += 1
        await self.go.wait()
        if self.failure is not None:
            raise self.failure
        return inference()


async def test_a_picture_that_was_seen_is_remembered() -> None:
    seen, model = SeenPictures(10**6), Model()
    first, second = await seen.see("a", model), await seen.see("a", model)
    assert (first[1], second[1]) == (False, True)
    assert first[0] is second[0]
    assert model.asked == 1


async def test_pictures_at_the_same_time_wait_for_the_first() -> None:
    seen, model = SeenPictures(1), Model()
    model.go.clear()
    tasks = [asyncio.create_task(seen.see("a", model)) for _ in range(3)]
    other = asyncio.create_task(seen.see("b", model))
    await asyncio.sleep(0)
    model.go.set()
    assert [reused for _, reused in await asyncio.gather(*tasks)] == [False, True, True]
    assert (await other)[1] is False
    assert model.asked == 2


async def test_memory_is_bounded_in_bytes_and_keeps_what_was_used_last() -> None:
    entry = 1500 + 32 + 16 + 4 + 4 + 32
    seen, model = SeenPictures(3 * entry), Model()
    for name in ("a", "b", "c", "a", "d", "a", "c", "b"):
        await seen.see(name, model)
    assert model.asked == 5, "only b had to go"
    assert seen._bytes == 3 * entry
    huge = SeenPictures(entry - 1)
    assert [(await huge.see("a", model))[1] for _ in range(2)] == [False, False]
    assert huge._bytes == 0


async def test_without_memory_everything_is_inferred() -> None:
    async def known(sha256: str) -> ImageInference | None:
        return inference()

    seen, model = SeenPictures(0, known), Model()
    assert [reused for _, reused in await asyncio.gather(*(seen.see("a", model) for _ in range(3)))] == [False] * 3
    assert model.asked == 3


async def test_failure_is_shared_by_those_who_wait_and_not_remembered() -> None:
    seen, model = SeenPictures(10**6), Model(ItemBroken("undecodable", "no"))
    model.go.clear()
    tasks = [asyncio.create_task(seen.see("a", model)) for _ in range(3)]
    await asyncio.sleep(0)
    model.go.set()
    assert all(isinstance(one, ItemBroken) for one in await asyncio.gather(*tasks, return_exceptions=True))
    assert model.asked == 1
    with pytest.raises(ItemBroken):
        await seen.see("a", model)
    assert model.asked == 2


async def test_those_who_wait_go_on_when_the_first_is_cancelled() -> None:
    seen, model = SeenPictures(10**6), Model()
    model.go.clear()
    first, second = (asyncio.create_task(seen.see("a", model)) for _ in range(2))
    await asyncio.sleep(0)
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    model.go.set()
    assert (await asyncio.wait_for(second, 5))[1] is False
    assert model.asked == 2


async def test_who_waits_can_be_cancelled_without_harm_to_the_first() -> None:
    seen, model = SeenPictures(10**6), Model()
    model.go.clear()
    first, second = (asyncio.create_task(seen.see("a", model)) for _ in range(2))
    await asyncio.sleep(0)
    second.cancel()
    assert isinstance((await asyncio.gather(second, return_exceptions=True))[0], asyncio.CancelledError)
    model.go.set()
    assert (await asyncio.wait_for(first, 5))[1] is False


class Index(FakeOpenSearch):
    """Counts questions, may fail, and finds by several SHA-256."""

    def __init__(self) -> None:
        super().__init__(MODEL.dim)
        self.questions: list[list[str]] = []
        self.failure: Exception | None = None

    async def search(self, index: str, body: dict[str, Any], params: dict[str, Any] | None = None) -> dict[str, Any]:
        wanted = body["query"]["bool"]["filter"][0]["terms"]["sha256"]
        self.questions.append(wanted)
        await asyncio.sleep(0)
        if self.failure is not None:
            raise self.failure
        hits = [
            {"_id": id_, "_source": stored.source}
            for (of, id_), stored in self.documents.items()
            if of == index and stored.source and stored.source.get("sha256") in wanted
        ]
        return {"hits": {"hits": hits}}


async def indexed(index: Index, **uploads: int) -> KnownImages:
    writer = IndexWriter(index, SETTINGS, MODEL)  # type: ignore[arg-type]
    await writer.write([embedding(MODEL, name, objects=n, sha256=name * 64) for name, n in uploads.items()])
    return KnownImages(index, SETTINGS, MODEL)  # type: ignore[arg-type]


async def test_index_gives_back_what_was_written() -> None:
    index = Index()
    found = await (await indexed(index, b=3)).find("b" * 64)
    assert found is not None
    document = embedding(MODEL, "b", objects=3)
    assert (found.width, found.height) == (document.width, document.height)
    assert found.embedding.tobytes() == document.vector.tobytes()
    assert [MODEL.classes[number] for number in found.class_ids] == [d.class_name for d in document.detections]
    assert found.boxes.tolist() == [list(d.box) for d in document.detections]
    assert found.scores.tolist() == pytest.approx([d.confidence for d in document.detections])
    for vector, detection in zip(found.object_embeddings, document.detections, strict=True):
        assert vector.tobytes() == detection.vector.tobytes()


async def test_picture_without_objects_is_known_too() -> None:
    found = await (await indexed(Index(), b=0)).find("b" * 64)
    assert found is not None
    assert (found.boxes.shape, found.object_embeddings.shape) == ((0, 4), (0, MODEL.dim))


async def test_those_who_ask_meanwhile_share_the_next_question() -> None:
    index = Index()
    known = await indexed(index, b=1, c=1)
    answers = await asyncio.gather(*(known.find(name * 64) for name in "bcdbe"))
    assert [answer is not None for answer in answers] == [True, True, False, True, False]
    assert sorted(sha256 for question in index.questions for sha256 in question) == sorted(name * 64 for name in "bcde")
    assert len(index.questions) <= 2


async def test_half_written_or_deleted_image_is_not_known() -> None:
    index = Index()
    known = await indexed(index, b=2, c=2)
    del index.documents["objects-aaaaaaaaaaaa", "b#1"]
    await IndexWriter(index, SETTINGS, MODEL).write([deletion("c", 9)])  # type: ignore[arg-type]
    assert await known.find("b" * 64) is None
    assert await known.find("c" * 64) is None


async def test_index_that_fails_is_ignored_and_left_alone_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    index = Index()
    known = await indexed(index, b=1)
    index.failure = ConnectionTimeout("TIMEOUT", "slow", Exception())
    assert await known.find("b" * 64) is None
    index.failure = None
    assert await known.find("b" * 64) is None
    assert len(index.questions) == 1
    monkeypatch.setattr(known, "_paused_until", 0.0)
    assert await known.find("b" * 64) is not None
    assert known_module._PAUSE_S > known_module._PATIENCE_S
