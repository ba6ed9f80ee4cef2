"""While a dependency is down one piece of work tries at a time, in turns; when it answers, all go on."""

from __future__ import annotations

import asyncio

import pytest

from agents.delivery.failures import DependencyDown, ItemBroken
from agents.delivery.retry import Backoff, Breaker, until_up
from tests.unit.deliveries import spin

AT_ONCE = Backoff(first=1e-6, limit=1e-6)


class Dependency:
    """Down until the test says otherwise; counts who asks."""

    def __init__(self) -> None:
        self.down = True
        self.asked: list[int] = []
        self.at_once = self.most_at_once = 0

    async def ask(self, who: int) -> int:
        self.asked.append(who)
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            await asyncio.sleep(0)
            if self.down:
                raise DependencyDown("no answer")
            return who
        finally:
            self.at_once -= 1


async def wait_for(dependency: Dependency, times: int) -> None:
    while len(dependency.asked) < times:
        await asyncio.sleep(0.001)


async def test_one_probe_at_a_time_while_it_is_down_and_everybody_when_it_is_back() -> None:
    dependency = Dependency()
    tasks = [asyncio.create_task(until_up("it", lambda n=n: dependency.ask(n), AT_ONCE)) for n in range(16)]  # type: ignore[misc]
    await spin(3)
    assert len(dependency.asked) == 16, "all are in flight when it goes down"
    dependency.most_at_once = 0
    await wait_for(dependency, 60)
    assert dependency.most_at_once == 1
    dependency.down = False
    assert await asyncio.gather(*tasks) == list(range(16))
    assert dependency.most_at_once > 1


async def test_work_takes_turns_so_that_one_that_always_fails_stops_nobody() -> None:
    dependency = Dependency()
    tasks = [asyncio.create_task(until_up("it", lambda n=n: dependency.ask(n), AT_ONCE)) for n in range(4)]  # type: ignore[misc]
    await wait_for(dependency, 24)
    probes = dependency.asked[4:24]
    assert {probes.count(n) for n in range(4)} == {5}
    for task in tasks:
        task.cancel()


async def test_many_failures_at_once_are_no_reason_to_wait_longer() -> None:
    asked: list[int] = []

    class Told(Backoff):
        def pause(self, attempt: int) -> float:
            asked.append(attempt)
            return 1e-6

    dependency, breaker = Dependency(), Breaker("it")
    for _ in range(2):
        dependency.asked, dependency.down = [], True
        asked.clear()
        tasks = [asyncio.create_task(breaker.run(lambda: dependency.ask(1), Told())) for _ in range(16)]
        await wait_for(dependency, 20)
        dependency.down = False
        await asyncio.wait(tasks)
        alone = [attempt for attempt in asked if attempt]
        assert alone == list(range(1, 1 + len(alone)))


async def test_probe_that_is_cancelled_leaves_its_turn_to_the_next() -> None:
    dependency = Dependency()
    slow = Backoff(first=3600, limit=3600)
    breaker = Breaker("it")
    first = [asyncio.create_task(breaker.run(lambda: dependency.ask(1), AT_ONCE)) for _ in range(3)]
    await wait_for(dependency, 6)
    for task in first:
        task.cancel()
    await asyncio.wait(first)
    assert breaker.open
    waiting = asyncio.create_task(breaker.run(lambda: dependency.ask(2), slow))
    await spin()
    waiting.cancel()
    await asyncio.wait([waiting])
    dependency.down = False
    assert await asyncio.wait_for(breaker.run(lambda: dependency.ask(3), AT_ONCE), 5) == 3
    assert not breaker.open


async def test_single_failure_between_successes_holds_up_only_itself() -> None:
    dependency = Dependency()
    breaker = Breaker("it")
    lonely = asyncio.create_task(breaker.run(lambda: dependency.ask(1), Backoff(first=3600, limit=3600)))
    await spin()
    dependency.down = False
    assert not breaker.open
    assert await asyncio.wait_for(breaker.run(lambda: dependency.ask(2), AT_ONCE), 5) == 2
    lonely.cancel()


async def test_refusal_is_an_answer() -> None:
    dependency = Dependency()
    breaker = Breaker("it")
    waiting = [asyncio.create_task(breaker.run(lambda: dependency.ask(1), AT_ONCE)) for _ in range(4)]
    await wait_for(dependency, 8)
    assert breaker.open

    async def refused() -> int:
        raise ItemBroken("undecodable", "no")

    with pytest.raises(ItemBroken):
        await breaker.run(refused, AT_ONCE)
    assert not breaker.open
    for task in waiting:
        task.cancel()


async def test_dependencies_are_held_apart() -> None:
    dependency = Dependency()
    held = [asyncio.create_task(until_up("one", lambda: dependency.ask(1), AT_ONCE)) for _ in range(4)]
    await wait_for(dependency, 10)

    async def fine() -> str:
        return "fine"

    assert await asyncio.wait_for(until_up("other", fine, AT_ONCE), 5) == "fine"
    for task in held:
        task.cancel()
