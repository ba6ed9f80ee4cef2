"""Turns between callers: a burst waits for itself, is bounded, and nothing of it is lost or acknowledged too early."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agents.delivery.fair import Turns, WaitingLimits, drain_in_turns
from agents.delivery.records import Record
from agents.delivery.window import WindowLimits
from tests.unit.deliveries import FakeStream, event, spin

LIMITS = WindowLimits(unacked=10_000, unacked_bytes=10**9, concurrency=1)
ROOMY = WaitingLimits(events=1000, bytes=10**9)


@dataclass
class FakeJob:
    """Waits, at its turn and after it has left, until the test says so. Its value is its caller and its number."""

    agent: FakeAgent
    record: Record

    @property
    def name(self) -> str:
        return (self.record.value or b"").decode().strip("-")

    @property
    def caller(self) -> str | None:
        who = self.name.rstrip("0123456789")
        return None if who == "nobody" else who

    async def work(self, leave: Callable[[], None]) -> None:
        self.agent.begun.append(self.name)
        await self.agent.searched(self.name)
        leave()
        await self.agent.sent(self.name)
        self.agent.ended.append(self.name)

    async def refuse(self) -> None:
        self.agent.refused.append(self.name)
        await self.agent.sent(self.name)
        self.agent.ended.append(self.name)


@dataclass
class FakeAgent:
    """Searches end at once but for those that are `held`; so do sendings."""

    held: set[str] = field(default_factory=set)
    unsent: set[str] = field(default_factory=set)
    begun: list[str] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    ended: list[str] = field(default_factory=list)
    _changed: asyncio.Condition = field(default_factory=asyncio.Condition)

    def job(self, record: Record) -> FakeJob:
        return FakeJob(self, record)

    async def searched(self, name: str) -> None:
        async with self._changed:
            await self._changed.wait_for(lambda: name not in self.held)

    async def sent(self, name: str) -> None:
        async with self._changed:
            await self._changed.wait_for(lambda: name not in self.unsent)

    async def free(self, *names: str) -> None:
        self.held.difference_update(names)
        self.unsent.difference_update(names)
        async with self._changed:
            self._changed.notify_all()
        await spin()


def events_of(*names: str, size: int = 0) -> FakeStream:
    return FakeStream(event(0, number, name.encode().ljust(size, b"-")) for number, name in enumerate(names))


@contextlib.asynccontextmanager
async def draining(
    stream: FakeStream, agent: FakeAgent, limits: WindowLimits = LIMITS, waiting: WaitingLimits = ROOMY
) -> AsyncIterator[Turns]:
    turns = Turns(waiting)
    task = asyncio.create_task(drain_in_turns(stream, agent.job, limits, turns))
    await spin(50)
    try:
        yield turns
        assert not task.done()
    finally:
        task.cancel()
        await asyncio.wait([task])


async def test_callers_take_turns_whatever_the_order_in_the_log() -> None:
    agent = FakeAgent(held={"a0"})
    stream = events_of("a0", "a1", "a2", "a3", "b0", "b1", "c0")
    async with draining(stream, agent):
        await agent.free("a0")
        await spin(100)
        assert agent.begun == ["a0", "a1", "b0", "c0", "a2", "b1", "a3"]


async def test_a_burst_of_thousands_delays_another_caller_by_one_turn() -> None:
    agent = FakeAgent(held={"a0"})
    stream = events_of(*(f"a{number}" for number in range(5000)), "b0")
    async with draining(stream, agent, waiting=WaitingLimits(events=500, bytes=10**9)) as turns:
        while stream.taken < 5001 or len(agent.refused) < 4499:
            await spin()
        assert (turns.waiting, turns.callers) == (501, 2)
        await agent.free("a0")
        while "b0" not in agent.begun:
            await spin()
        assert agent.begun.index("b0") <= 2
    assert len(agent.refused) == 5000 - 1 - 500


async def test_what_a_caller_has_too_much_of_is_refused_at_once() -> None:
    agent = FakeAgent(held={"a0"})
    stream = events_of(*(f"a{number}" for number in range(5)), "b0")
    async with draining(stream, agent, waiting=WaitingLimits(events=2, bytes=10**9)) as turns:
        assert agent.refused == ["a3", "a4"]
        assert turns.waiting == 3
        assert stream.acked == [], "a refusal behind an unfinished request waits with its acknowledgement"
        await agent.free("a0")
        await spin(100)
        assert len(stream.acked) == 6


async def test_a_caller_is_bounded_in_bytes_but_always_has_one() -> None:
    agent = FakeAgent(held={"a0"})
    stream = events_of("a0", "a1", "a2", "b0", size=60)
    async with draining(stream, agent, waiting=WaitingLimits(events=100, bytes=50)) as turns:
        assert agent.refused == ["a2"]
        assert turns.waiting == 2


async def test_what_needs_no_turn_does_not_wait_for_one() -> None:
    agent = FakeAgent(held={"a0"})
    async with draining(events_of("a0", "nobody0", "a1"), agent) as turns:
        assert (agent.refused, agent.ended, turns.waiting) == (["nobody0"], ["nobody0"], 1)


async def test_no_more_at_work_than_the_limit() -> None:
    agent = FakeAgent(held={"a0", "b0", "c0"})
    async with draining(events_of("a0", "b0", "c0", "d0"), agent, WindowLimits(100, 10**9, concurrency=2)):
        assert agent.begun == ["a0", "b0"]
        await agent.free("b0")
        assert agent.begun == ["a0", "b0", "c0"]


async def test_a_reply_on_its_way_takes_nobodys_place() -> None:
    agent = FakeAgent(unsent={"a0", "a1"})
    stream = events_of("a0", "a1", "b0")
    async with draining(stream, agent):
        assert agent.begun == ["a0", "a1", "b0"] or agent.begun == ["a0", "b0", "a1"]
        assert agent.ended == ["b0"]
        assert stream.acked == [], "nothing is acknowledged before its reply is confirmed"
        await agent.free("a1")
        assert stream.acked == []
        await agent.free("a0")
        assert stream.acked_of(0) == [0, 1, 2]


async def test_the_window_bounds_what_is_taken_from_the_log() -> None:
    agent = FakeAgent(held={"a0"})
    stream = events_of(*(f"a{number}" for number in range(50)))
    async with draining(stream, agent, WindowLimits(10, 10**9, 1), WaitingLimits(2, 10**9)):
        assert stream.taken == 11
        await agent.free("a0")
        await spin(200)
        assert len(stream.acked) == 50


async def test_callers_that_came_once_leave_nothing_behind() -> None:
    agent = FakeAgent()
    stream = FakeStream(event(0, number, f"{chr(97 + number % 26) * (1 + number)}0".encode()) for number in range(100))
    async with draining(stream, agent, WindowLimits(1000, 10**9, 2)) as turns:
        await spin(300)
        assert (turns.waiting, turns.callers, len(stream.acked)) == (0, 0, 100)


class ProcessEnded(BaseException):
    pass


@pytest.mark.parametrize("name", ["a0", "nobody0"])
async def test_a_bug_ends_the_process_and_acknowledges_nothing(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ended: list[int] = []

    def end(status: int) -> None:
        ended.append(status)
        raise ProcessEnded

    async def broken(_name: str) -> None:
        raise RuntimeError("bug")

    monkeypatch.setattr("agents.delivery.window.os._exit", end)
    agent, stream = FakeAgent(), events_of(name)
    monkeypatch.setattr(agent, "sent", broken)
    async with draining(stream, agent):
        assert ended == [70]
        assert stream.acked == []


async def test_shutdown_cancels_work_without_ending_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    ended: list[int] = []
    monkeypatch.setattr("agents.delivery.window.os._exit", ended.append)
    agent, stream = FakeAgent(held={"a0"}), events_of("a0", "a1")
    async with draining(stream, agent):
        assert agent.begun == ["a0"]
    await spin()
    assert (ended, stream.acked) == ([], [])


@given(
    names=st.lists(st.sampled_from(["a", "b", "c", "nobody"]), min_size=1, max_size=40),
    concurrency=st.integers(1, 4),
    events=st.integers(1, 5),
    unacked=st.integers(1, 20),
)
def test_every_request_ends_exactly_once_and_all_are_acknowledged(
    names: list[str], concurrency: int, events: int, unacked: int
) -> None:
    async def run() -> None:
        agent, stream = FakeAgent(), events_of(*(f"{name}{number}" for number, name in enumerate(names)))
        async with draining(stream, agent, WindowLimits(unacked, 10**9, concurrency), WaitingLimits(events, 10**9)):
            for _ in range(100):
                if len(stream.acked) == len(names):
                    break
                await spin()
            assert stream.acked_of(0) == list(range(len(names)))
            assert sorted(agent.ended) == sorted(f"{name}{number}" for number, name in enumerate(names))

    asyncio.run(run())
