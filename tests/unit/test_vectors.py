"""From clauses to one question: each kind of clause has its way, and all of a request go at once."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from agents.delivery.failures import DependencyDown, ItemBroken, NotYet
from agents.delivery.retry import Backoff
from agents.query.vectors import Vectors
from models.manifest import load_manifest
from sightlog.errors import ContractError
from sightlog.search import Clause, SearchRequest
from tests.unit.deliveries import spin

MANIFEST = load_manifest()
DIM = MANIFEST.clip.dim


def axis(number: int) -> Any:
    vector = np.zeros(DIM, np.float32)
    vector[number] = 1
    return vector


class Rooms:
    """Triton, the places of pictures, and the index: each answers with an axis of its own, or as it is told to."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, Any]] = []
        self.failures: dict[str, list[Exception]] = {}
        self.gate = asyncio.Event()
        self.gate.set()
        #: Those that never answer.
        self.slow: set[str] = set()
        self.cancelled: list[str] = []

    async def _call(self, name: str, what: Any) -> None:
        self.calls.append((name, what))
        try:
            await (asyncio.Event() if name in self.slow else self.gate).wait()
        except asyncio.CancelledError:
            self.cancelled.append(name)
            raise
        if self.failures.get(name):
            raise self.failures[name].pop(0)

    async def embed_text(self, tokens: Any, timeout: float) -> Any:
        await self._call("text", tokens)
        return axis(0)

    async def infer_image(self, data: bytes, timeout: float) -> Any:
        await self._call("image", data)
        return SimpleNamespace(embedding=axis(1))

    async def read_reference(self, uri: str) -> bytes:
        await self._call("reference", uri)
        return b"bytes of " + uri.encode()

    async def vector_of(self, kind: str, identity: str) -> Any:
        await self._call(kind, identity)
        return axis(2 if kind == "image" else 3)

    def vectors(self) -> Vectors:
        return Vectors(MANIFEST, self, self, self, self, Backoff(1e-3, 1e-3), 10)


async def question(rooms: Rooms, **asked: Any) -> Any:
    return (await rooms.vectors().ask(SearchRequest(**asked))).question


async def test_words_are_seen_by_the_text_tower() -> None:
    rooms = Rooms()
    found = await question(rooms, text="a red star")
    assert np.allclose(found.vector, axis(0))
    assert rooms.calls[0][1][:2].tolist() == [49406, 320]


async def test_a_picture_is_seen_as_an_upload_is() -> None:
    rooms = Rooms()
    assert np.allclose((await question(rooms, image=b"jpeg")).vector, axis(1))
    assert rooms.calls == [("image", b"jpeg")]


async def test_a_reference_is_read_and_then_seen() -> None:
    rooms = Rooms()
    assert np.allclose((await question(rooms, dataref="file:///a")).vector, axis(1))
    assert rooms.calls == [("reference", "file:///a"), ("image", b"bytes of file:///a")]


@pytest.mark.parametrize(("asked", "call", "found"), [("image_id", "image", 2), ("object_id", "object", 3)])
async def test_what_is_indexed_has_its_vector_already(asked: str, call: str, found: int) -> None:
    rooms = Rooms()
    assert np.allclose((await question(rooms, **{asked: "x#1"})).vector, axis(found))
    assert rooms.calls == [(call, "x#1")]


@pytest.mark.parametrize("scale", [1e-40, 1.0, 3e38], ids=["tiny", "unit", "huge"])
async def test_a_vector_that_somebody_brings_is_taken_at_unit_length(scale: float) -> None:
    rooms = Rooms()
    vector = (axis(5).astype(np.float64) * scale).astype(np.float32)
    assert np.allclose((await question(rooms, vector=vector, model_digest=MANIFEST.digest)).vector, axis(5))
    assert rooms.calls == []


@pytest.mark.parametrize(
    ("vector", "digest"),
    [
        (np.ones(DIM, np.float32), "e" * 64),
        (np.ones(DIM + 1, np.float32), MANIFEST.digest),
        (np.ones(1, np.float32), MANIFEST.digest),
    ],
    ids=["digest", "longer", "shorter"],
)
async def test_a_vector_of_another_model_is_refused(vector: Any, digest: str) -> None:
    with pytest.raises(ContractError) as refused:
        await question(Rooms(), vector=vector, model_digest=digest)
    assert refused.value.code == "model_mismatch"


async def test_words_of_the_index_alone_ask_no_model() -> None:
    rooms = Rooms()
    asked = await rooms.vectors().ask(SearchRequest(lexical="holiday"))
    assert (asked.question, asked.cached, rooms.calls) == (None, True, [])


async def test_clauses_are_turned_into_vectors_at_once() -> None:
    rooms = Rooms()
    rooms.gate.clear()
    clauses = (Clause(text="beach"), Clause(image=b"jpeg"), Clause(object_id="o", weight=-0.5))
    asking = asyncio.create_task(question(rooms, clauses=clauses))
    await spin()
    assert sorted(name for name, _ in rooms.calls) == ["image", "object", "text"]
    rooms.gate.set()
    found = (await asking).vector
    assert found[0] > 0
    assert found[1] > 0
    assert found[3] < 0


async def test_a_clause_that_fails_ends_the_others() -> None:
    rooms = Rooms()
    rooms.slow.add("reference")
    rooms.failures = {"image": [ItemBroken("undecodable", "cut off")]}
    with pytest.raises(ItemBroken):
        await question(rooms, clauses=(Clause(dataref="file:///slow"), Clause(image=b"jpeg")))
    await spin()
    assert rooms.cancelled == ["reference"]


async def test_a_question_is_cached_when_no_model_had_to_be_asked() -> None:
    rooms = Rooms()
    vectors = rooms.vectors()
    both = SearchRequest(clauses=(Clause(text="beach"), Clause(image_id="x")))
    assert not (await vectors.ask(both)).cached
    assert (await vectors.ask(both)).cached
    assert not (await vectors.ask(SearchRequest(clauses=(Clause(text="beach"), Clause(text="new"))))).cached
    assert not (await vectors.ask(SearchRequest(image=b"jpeg"))).cached


@pytest.mark.parametrize(("asked", "room"), [({"text": "star"}, "text"), ({"image_id": "x"}, "image")])
async def test_a_room_that_is_down_is_waited_for(asked: dict[str, str], room: str) -> None:
    rooms = Rooms()
    rooms.failures = {room: [DependencyDown("1"), DependencyDown("2")]}
    assert await question(rooms, **asked) is not None
    assert len(rooms.calls) == 3


@pytest.mark.parametrize("failure", [NotYet("source_missing", "404"), ItemBroken("source_not_allowed", "no")])
async def test_a_reference_that_cannot_be_read_is_told(failure: Exception) -> None:
    rooms = Rooms()
    rooms.failures = {"reference": [failure]}
    with pytest.raises(type(failure)):
        await question(rooms, dataref="file:///a")
