"""The text cache: what the tower would read alike is asked once, and nothing wrong is ever remembered."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest

from agents.delivery.failures import DependencyDown
from agents.query.text_cache import TextCache, Tokens
from models.tokenizer import ClipTokenizer
from sightlog.fields import FloatArray
from tests.unit.deliveries import spin

TOKENIZER = ClipTokenizer(77)
DIGEST = "d" * 64


class Tower:
    """Answers with a vector of its tokens; while it is `shut`, not before it is opened."""

    def __init__(self) -> None:
        self.asked: list[bytes] = []
        self.failures: list[Exception] = []
        self.cancelled = 0
        self.open = asyncio.Event()
        self.open.set()

    async def embed(self, tokens: Tokens, timeout: float) -> FloatArray:
        assert 0 < timeout < 1000
        self.asked.append(tokens.tobytes())
        try:
            await self.open.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        if self.failures:
            raise self.failures.pop(0)
        return np.array([tokens.sum(), 1], np.float32)


@pytest.fixture
async def tower() -> Tower:
    return Tower()


def cache(tower: Tower, size: int = 10) -> TextCache:
    return TextCache(tower.embed, TOKENIZER, DIGEST, size)


async def test_a_text_is_asked_for_once(tower: Tower) -> None:
    texts = cache(tower)
    first, known = await texts.vector("a red star")
    assert not known
    second, known = await texts.vector("a red star")
    assert known
    assert second is first
    assert (len(tower.asked), texts.hits, texts.misses) == (1, 1, 1)


@pytest.mark.parametrize("same", ["A Red  STAR", "  a red star\n", "a&nbsp;red star", "a red\u2003star"])
async def test_what_the_tower_reads_alike_is_one_text(tower: Tower, same: str) -> None:
    texts = cache(tower)
    await texts.vector("a red star")
    assert (await texts.vector(same))[1]


async def test_what_follows_the_last_token_that_fits_makes_no_difference(tower: Tower) -> None:
    texts = cache(tower)
    await texts.vector("star " * 75 + "red")
    assert (await texts.vector("star " * 75 + "blue"))[1]


@pytest.mark.parametrize("other", ["a red stars", "red a star", "a red star!", "a red"])
async def test_what_the_tower_reads_otherwise_is_another_text(tower: Tower, other: str) -> None:
    texts = cache(tower)
    vector, _ = await texts.vector("a red star")
    found, known = await texts.vector(other)
    assert not known
    assert found is not vector


async def test_texts_of_two_models_are_kept_apart(tower: Tower) -> None:
    texts = cache(tower)
    await texts.vector("star")
    assert all(digest == DIGEST for digest, _tokens in texts._known)


async def test_the_text_that_was_not_asked_for_longest_is_forgotten(tower: Tower) -> None:
    texts = cache(tower, size=2)
    for text in ("one", "two", "one", "three"):
        await texts.vector(text)
    assert (await texts.vector("one"))[1]
    assert not (await texts.vector("two"))[1]
    assert len(texts._known) == 2


async def test_a_cache_of_no_size_remembers_nothing(tower: Tower) -> None:
    texts = cache(tower, size=0)
    for _ in range(2):
        assert not (await texts.vector("one"))[1]
    assert (len(tower.asked), len(texts._known)) == (2, 0)


async def test_equal_texts_at_once_ask_the_tower_once(tower: Tower) -> None:
    tower.open.clear()
    texts = cache(tower)
    waiting = [asyncio.create_task(texts.vector(text)) for text in ("star", "Star", " star ")]
    await spin()
    assert len(tower.asked) == 1
    tower.open.set()
    vectors = [(await task)[0] for task in waiting]
    assert vectors[0] is vectors[1] is vectors[2]
    assert texts._asked == {}


async def test_one_who_leaves_does_not_take_the_answer_from_the_others(tower: Tower) -> None:
    tower.open.clear()
    texts = cache(tower)
    impatient, patient = (asyncio.create_task(texts.vector("star")) for _ in range(2))
    await spin()
    impatient.cancel()
    await spin()
    tower.open.set()
    assert (await patient)[0][1] == 1
    assert (tower.cancelled, len(tower.asked)) == (0, 1)


async def test_the_last_one_to_leave_ends_the_work(tower: Tower) -> None:
    tower.open.clear()
    texts = cache(tower)
    waiting = [asyncio.create_task(texts.vector("star")) for _ in range(2)]
    await spin()
    for task in waiting:
        task.cancel()
    # Before the work has noticed: this one must not get its end for an answer.
    await asyncio.sleep(0)
    late = asyncio.create_task(texts.vector("star"))
    await spin()
    assert tower.cancelled == 1
    tower.open.set()
    assert not (await late)[1]
    assert texts._asked == {}


async def test_a_failure_goes_to_all_who_wait_and_is_not_remembered(tower: Tower) -> None:
    tower.open.clear()
    tower.failures = [DependencyDown("gone")]
    texts = cache(tower)
    waiting = [asyncio.create_task(texts.vector("star")) for _ in range(3)]
    await spin()
    tower.open.set()
    outcomes = await asyncio.gather(*waiting, return_exceptions=True)
    assert [str(outcome) for outcome in outcomes] == ["gone"] * 3
    assert not (await texts.vector("star"))[1]


async def test_nobody_can_change_what_others_get(tower: Tower) -> None:
    vector, _ = await cache(tower).vector("star")
    with pytest.raises(ValueError, match="read-only"):
        vector[0] = 7
