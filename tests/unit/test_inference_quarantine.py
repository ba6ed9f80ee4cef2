"""One picture that kills processes leaves the stream as a dead letter; every other passes, whoever sends it."""

from __future__ import annotations

import asyncio
import itertools
import random
from typing import Any

import pytest

from agents.delivery.failures import DependencyDown, ItemBroken
from agents.delivery.retry import Backoff
from agents.inference import quarantine as module
from agents.inference.deaths import Died
from agents.inference.quarantine import GOOD_PICTURE, Quarantine
from agents.inference.results import ImageInference
from tests.unit.test_vision import seen

QUICK = Backoff(first=0.001, limit=0.004)
LIMIT_S = 30


class Processes:
    """Model processes that die over some pictures and are healed a while later; takes turns among them."""

    def __init__(self, count: int = 1, killers: set[bytes] | None = None, heal_s: float = 0.01) -> None:
        self.killers = killers or set()
        self.heal_s = heal_s
        self.alive = [True] * count
        self.asked: list[bytes] = []
        self.deaths = 0
        self.busy = self.most_busy = 0
        self.with_company: dict[bytes, int] = {}
        self._turns = itertools.cycle(range(count))
        self._generation = [0] * count

    async def infer_image(self, data: bytes, timeout: float) -> ImageInference:
        self.asked.append(data)
        self.busy += 1
        self.most_busy = max(self.most_busy, self.busy)
        if self.busy > 1:
            self.with_company[data] = self.with_company.get(data, 0) + 1
        try:
            return await self._run(data, next(self._turns))
        finally:
            self.busy -= 1

    async def _run(self, data: bytes, process: int) -> ImageInference:
        generation = self._generation[process]
        if self.alive[process]:
            await asyncio.sleep(0.001)
            if data in self.killers and self.alive[process]:
                self.kill(process)
        if not self.alive[process] or self._generation[process] != generation:
            await asyncio.sleep(0.002)  # Triton waits for a process before it calls it dead
            raise Died("Stub process 'preprocess_0_0' is not healthy", "preprocess")
        return seen()

    def kill(self, process: int = 0) -> None:
        self.deaths += 1
        self.alive[process] = False
        self._generation[process] += 1
        asyncio.get_running_loop().call_later(self.heal_s, self.alive.__setitem__, process, True)


def quarantine(triton: Any) -> Quarantine:
    return Quarantine(triton, QUICK, spread_s=0.1)


async def outcomes(room: Quarantine, pictures: list[bytes], concurrency: int = 16) -> dict[bytes, str]:
    """What became of each picture: its code, or `seen`."""
    slots, found = asyncio.Semaphore(concurrency), {}

    async def one(picture: bytes) -> None:
        async with slots:
            try:
                await room.infer_image(picture, 5)
                found[picture] = "seen"
            except ItemBroken as broken:
                found[picture] = broken.code

    await asyncio.wait_for(asyncio.gather(*map(one, pictures)), LIMIT_S)
    return found


def pictures_of(worker: str, count: int) -> list[bytes]:
    return [f"{worker}{number}".encode() for number in range(count)]


async def test_while_all_is_well_each_picture_is_asked_once_and_nothing_else() -> None:
    triton = Processes()
    pictures = pictures_of("a", 50)
    assert set((await outcomes(quarantine(triton), pictures)).values()) == {"seen"}
    assert sorted(triton.asked) == sorted(pictures)
    assert triton.most_busy == 16


@pytest.mark.parametrize("processes", [1, 2])
async def test_a_killer_leaves_and_everything_else_is_seen(processes: int) -> None:
    pictures = pictures_of("a", 200)
    killer = pictures[37]
    triton = Processes(processes, {killer})
    found = await outcomes(quarantine(triton), pictures)
    assert found.pop(killer) == "decoder_crash"
    assert set(found.values()) == {"seen"}
    assert triton.deaths == module.SUSPECTED_AFTER + module.CONDEMNED_AFTER
    # Alone in its trials, and whatever else was on its way before.
    assert triton.with_company[killer] <= module.SUSPECTED_AFTER


async def test_several_killers_all_leave() -> None:
    pictures = pictures_of("a", 60)
    killers = set(pictures[::20])
    found = await outcomes(quarantine(Processes(2, killers)), pictures)
    assert {picture for picture, outcome in found.items() if outcome == "decoder_crash"} == killers
    assert len(found) == 60


async def test_the_killer_of_another_worker_condemns_no_picture_of_this_one() -> None:
    for attempt in range(5):
        random.seed(attempt)
        ours, theirs = pictures_of("a", 60), pictures_of("b", 60)
        triton = Processes(2, {theirs[5]}, heal_s=0.02)
        mine, other = await asyncio.gather(outcomes(quarantine(triton), ours), outcomes(quarantine(triton), theirs))
        assert set(mine.values()) == {"seen"}
        assert other.pop(theirs[5]) == "decoder_crash"
        assert set(other.values()) == {"seen"}


async def test_processes_that_die_at_random_condemn_nobody() -> None:
    triton = Processes(2)
    room = quarantine(triton)

    async def kill() -> None:
        while True:
            await asyncio.sleep(random.uniform(0.005, 0.05))
            triton.kill(random.randrange(2))

    killing = asyncio.create_task(kill())
    while triton.deaths < 20:
        assert set((await outcomes(room, pictures_of("a", 50))).values()) == {"seen"}
    killing.cancel()


async def test_a_process_that_stays_dead_among_living_ones_is_waited_for_and_condemns_nobody() -> None:
    triton = Processes(2, heal_s=0.3)
    room = quarantine(triton)
    triton.kill(1)
    found = await outcomes(room, pictures_of("a", 40))
    assert set(found.values()) == {"seen"}
    assert all(triton.alive)
    assert {triton.asked.count(picture) for picture in found} <= {1, 2}, "pictures were sent to a dead process"


class Scripted:
    """Raises what the test says, in order, then answers."""

    def __init__(self, *failures: Exception) -> None:
        self.failures = list(failures)
        self.asked: list[bytes] = []

    async def infer_image(self, data: bytes, timeout: float) -> ImageInference:
        self.asked.append(data)
        if data != GOOD_PICTURE and self.failures:
            raise self.failures.pop(0)
        return seen()


async def test_an_overload_or_a_server_that_is_not_there_is_no_death() -> None:
    triton = Scripted(*[DependencyDown("Exceeds maximum queue size")] * 12)
    await quarantine(triton).infer_image(b"x", 1)
    assert triton.asked == [b"x"] * 13


async def test_a_suspect_that_is_broken_is_so_as_triton_says() -> None:
    triton = Scripted(Died("1"), Died("2"), ItemBroken("undecodable", "no image"))
    with pytest.raises(ItemBroken) as caught:
        await quarantine(triton).infer_image(b"x", 1)
    assert caught.value.code == "undecodable"


async def test_deaths_of_two_tritons_over_one_request_count_as_two() -> None:
    triton = Scripted(Died("1", deaths=2), Died("2", deaths=2), Died("3", deaths=2))
    with pytest.raises(ItemBroken) as caught:
        await quarantine(triton).infer_image(b"x", 1)
    assert caught.value.code == "decoder_crash"
    assert triton.failures == []


async def test_a_picture_that_passed_starts_afresh() -> None:
    room = quarantine(triton := Scripted())
    for _ in range(module.SUSPECTED_AFTER + module.CONDEMNED_AFTER):
        triton.failures = [Died("once")]
        await room.infer_image(b"x", 1)


async def test_what_is_remembered_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_SUSPECTS", 10)
    room = quarantine(triton := Scripted())
    for number in range(50):
        triton.failures = [Died("once"), RuntimeError("the worker was stopped")]
        with pytest.raises(RuntimeError):
            await room.infer_image(b"%d" % number, 1)
    assert len(room._records) == 10


async def test_a_cancelled_trial_lets_the_others_go_on() -> None:
    class Hangs(Scripted):
        async def infer_image(self, data: bytes, timeout: float) -> ImageInference:
            if data == b"x" and not self.failures:
                on_trial.set()
                await asyncio.Event().wait()
            return await super().infer_image(data, timeout)

    on_trial = asyncio.Event()
    room = quarantine(Hangs(Died("1"), Died("2")))
    trial = asyncio.create_task(room.infer_image(b"x", 1))
    await on_trial.wait()
    other = asyncio.create_task(room.infer_image(b"y", 1))
    trial.cancel()
    await asyncio.wait_for(other, LIMIT_S)


async def test_the_good_picture_is_one() -> None:
    from models.decoding import decode_upright

    image = decode_upright(GOOD_PICTURE)
    assert (image.width, image.height) == (64, 64)
