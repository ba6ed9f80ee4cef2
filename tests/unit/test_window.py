"""The window acknowledges the contiguous done head of each partition, and nothing else."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agents.delivery.records import Record
from agents.delivery.window import WindowLimits, Work, drain
from tests.unit.deliveries import FakeStream, event, spin

#: Wide enough to be out of the way.
WIDE = WindowLimits(unacked=1000, unacked_bytes=10**9, concurrency=100)


class HeldWork:
    """Work that ends when the test says so."""

    def __init__(self) -> None:
        self.held: dict[tuple[int, int], asyncio.Event] = {}
        self.batches: list[list[int]] = []

    async def __call__(self, records: list[Record]) -> None:
        self.batches.append([record.offset for record in records])
        release = asyncio.Event()
        for record in records:
            self.held[record.partition, record.offset] = release
        await release.wait()

    async def finish(self, *offsets: int, partition: int = 0) -> None:
        for offset in offsets:
            self.held.pop((partition, offset)).set()
            await spin()


@contextlib.asynccontextmanager
async def draining(stream: FakeStream, work: Work, limits: WindowLimits) -> AsyncIterator[None]:
    task = asyncio.create_task(drain(stream, work, limits))
    await spin()
    try:
        yield
        assert not task.done()
    finally:
        task.cancel()
        await asyncio.wait([task])


async def test_later_event_that_is_done_first_waits_for_the_head() -> None:
    stream, work = FakeStream(event(offset=n) for n in range(4)), HeldWork()
    async with draining(stream, work, WIDE):
        await work.finish(2, 1)
        assert stream.acked == []
        await work.finish(0)
        assert stream.acked_of(0) == [0, 1, 2]
        await work.finish(3)
        assert stream.acked_of(0) == [0, 1, 2, 3]


async def test_straggler_holds_only_its_own_partition() -> None:
    stream, work = FakeStream(event(p, n) for n in range(3) for p in (0, 1)), HeldWork()
    async with draining(stream, work, WIDE):
        await work.finish(0, 1, 2, partition=1)
        assert stream.acked_of(1) == [0, 1, 2]
        assert stream.acked_of(0) == []


async def test_partitions_of_two_topics_are_kept_apart() -> None:
    stream, work = FakeStream([event(0, 7, topic="a"), event(0, 8, topic="b")]), HeldWork()
    async with draining(stream, work, WIDE):
        await work.finish(8)
        assert stream.acked_of(0) == [8]


async def test_window_counts_events_until_they_are_acked_not_until_they_are_done() -> None:
    stream, work = FakeStream(event(offset=n) for n in range(10)), HeldWork()
    async with draining(stream, work, WindowLimits(unacked=3, unacked_bytes=10**9, concurrency=10)):
        await work.finish(1, 2)
        assert sorted(work.held) == [(0, 0)], "a done event behind an unfinished one still takes its place"
        assert stream.taken == 4, "one event at most waits outside the window"
        await work.finish(0)
        assert sorted(work.held) == [(0, 3), (0, 4), (0, 5)]


async def test_window_counts_bytes() -> None:
    stream, work = FakeStream(event(offset=n, value=b"x" * 40) for n in range(10)), HeldWork()
    async with draining(stream, work, WindowLimits(unacked=100, unacked_bytes=80, concurrency=10)):
        assert sorted(work.held) == [(0, 0), (0, 1)]
        await work.finish(1)
        assert sorted(work.held) == [(0, 0)]
        await work.finish(0)
        assert sorted(work.held) == [(0, 2), (0, 3)]


async def test_oversized_event_is_admitted_alone() -> None:
    stream, work = FakeStream(event(offset=n, value=b"x" * 1000) for n in range(2)), HeldWork()
    async with draining(stream, work, WindowLimits(unacked=100, unacked_bytes=10, concurrency=10)):
        assert sorted(work.held) == [(0, 0)]
        await work.finish(0)
        assert sorted(work.held) == [(0, 1)]


async def test_event_without_a_value_takes_no_bytes() -> None:
    stream, work = FakeStream(event(offset=n, value=None) for n in range(3)), HeldWork()
    async with draining(stream, work, WindowLimits(unacked=100, unacked_bytes=1, concurrency=10)):
        assert len(work.held) == 3


async def test_no_more_batches_at_once_than_the_limit() -> None:
    stream, work = FakeStream(event(offset=n) for n in range(9)), HeldWork()
    async with draining(stream, work, WindowLimits(unacked=100, unacked_bytes=10**9, concurrency=2)):
        assert work.batches == [[0], [1]]
        await work.finish(1)
        assert work.batches == [[0], [1], [2]]


async def test_what_is_at_hand_becomes_one_batch_up_to_the_limit() -> None:
    stream, work = FakeStream(event(offset=n) for n in range(7)), HeldWork()
    async with draining(stream, work, WindowLimits(100, 10**9, concurrency=1, batch=3)):
        while work.held:
            work.held.pop(next(iter(work.held))).set()
            await spin()
            work.held = {place: release for place, release in work.held.items() if not release.is_set()}
    assert [n for batch in work.batches for n in batch] == list(range(7))
    assert max(map(len, work.batches)) == 3
    assert stream.acked_of(0) == list(range(7))


async def test_batch_lingers_for_events_that_come_later() -> None:
    stream, work = FakeStream(event(offset=n) for n in range(2)), HeldWork()
    async with draining(stream, work, WindowLimits(100, 10**9, concurrency=1, batch=3, linger=3600)):
        assert work.batches == []
        stream.add(event(offset=2), event(offset=3))
        await spin()
        assert work.batches == [[0, 1, 2]]


async def test_batch_goes_at_once_without_linger() -> None:
    stream, work = FakeStream([event(offset=0)]), HeldWork()
    async with draining(stream, work, WindowLimits(100, 10**9, concurrency=1, batch=3)):
        assert work.batches == [[0]]


async def test_incomplete_batch_goes_when_the_linger_is_over() -> None:
    stream, arrived = FakeStream(event(offset=n) for n in range(3)), asyncio.Event()
    batches: list[int] = []

    async def work(records: list[Record]) -> None:
        batches.append(len(records))
        arrived.set()

    async with draining(stream, work, WindowLimits(100, 10**9, concurrency=1, batch=50, linger=0.01)):
        await asyncio.wait_for(arrived.wait(), 5)
        assert batches == [3]


class ProcessEnded(BaseException):
    pass


@pytest.mark.parametrize("bug", [RuntimeError, ValueError, asyncio.CancelledError], ids=lambda kind: kind.__name__)
async def test_exception_in_work_ends_the_process_and_acks_nothing(
    bug: type[BaseException], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    ended: list[int] = []

    def end(status: int) -> None:
        ended.append(status)
        raise ProcessEnded

    async def work(records: list[Record]) -> None:
        raise bug("bug")

    monkeypatch.setattr("agents.delivery.window.os._exit", end)
    stream = FakeStream(event(offset=n) for n in range(2))
    async with draining(stream, work, WindowLimits(100, 10**9, concurrency=1)):
        assert ended == [70]
        assert stream.acked == []
        assert "bug in the agent" in caplog.text


async def test_shutdown_cancels_work_without_ending_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    ended: list[int] = []
    monkeypatch.setattr("agents.delivery.window.os._exit", ended.append)
    stream, work = FakeStream([event()]), HeldWork()
    async with draining(stream, work, WIDE):
        assert work.held
    await spin()
    assert ended == []
    assert stream.acked == []


async def test_records_carry_what_the_event_had() -> None:
    seen: list[Record] = []

    async def work(records: list[Record]) -> None:
        seen.extend(records)

    async with draining(FakeStream([event(2, 5, b"value")]), work, WIDE):
        pass
    (record,) = seen
    assert (record.topic, record.partition, record.offset, record.timestamp_ms) == ("images", 2, 5, 1_700_000_000_123)
    assert (record.key, record.value) == (b"key", b"value")
    assert record.headers == [("name", b"content"), ("empty", b"")]


@given(
    partitions=st.lists(st.integers(0, 2), min_size=1, max_size=25),
    limits=st.builds(
        WindowLimits,
        unacked=st.integers(1, 12),
        unacked_bytes=st.integers(1, 60),
        concurrency=st.integers(1, 8),
        batch=st.integers(1, 4),
    ),
    sizes=st.lists(st.integers(0, 20), min_size=25, max_size=25),
    pick=st.randoms(use_true_random=False),
)
def test_acked_is_always_exactly_the_contiguous_done_prefix(
    partitions: list[int], limits: WindowLimits, sizes: list[int], pick: Any
) -> None:
    asyncio.run(_complete_at_random(partitions, limits, sizes, pick.choice))


async def _complete_at_random(
    partitions: list[int], limits: WindowLimits, sizes: list[int], choice: Callable[[list[Any]], Any]
) -> None:
    counts = dict.fromkeys(partitions, 0)
    events = []
    for partition, size in zip(partitions, sizes, strict=False):
        events.append(event(partition, counts[partition], b"x" * size))
        counts[partition] += 1
    size_of = {(e.message.partition, e.message.offset): len(e.message.value) for e in events}
    stream, work = FakeStream(events), HeldWork()
    done: set[tuple[int, int]] = set()
    async with draining(stream, work, limits):
        for _ in events:
            if not work.held:
                break
            release = work.held[choice(sorted(work.held))]
            finished = {place for place, its in work.held.items() if its is release}
            done |= finished
            work.held = {place: its for place, its in work.held.items() if its is not release}
            release.set()
            await spin()
            for partition in counts:
                prefix = next(n for n in range(len(events) + 1) if (partition, n) not in done)
                assert stream.acked_of(partition) == list(range(prefix))
            unacked = (done | set(work.held)) - set(stream.acked)
            assert len(unacked) <= limits.unacked
            last = max((size_of[place] for place in unacked), default=0)
            assert sum(size_of[place] for place in unacked) < limits.unacked_bytes + max(last, 1)
    assert len(stream.acked) == len(events), "every event is worked on and acknowledged"
