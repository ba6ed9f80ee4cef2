"""The load on Triton is what it says: as many requests under way, each file in its turn, every failure counted."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import grpc
import pytest

from load_tests.gpu_load import Tally, image_request, merged, run_levels
from tests.unit.fake_triton import FakeTriton, serving, two_objects
from triton_repo.contract import IMAGE_PIPELINE


def slow(seconds: float) -> Any:
    async def answer(request: Any, context: grpc.aio.ServicerContext) -> Any:
        await asyncio.sleep(seconds)
        return await two_objects(request, context)

    return answer


async def loaded(fake: FakeTriton, levels: tuple[int, ...], files: tuple[bytes, ...] = (b"a", b"b", b"c")) -> Any:
    requests = [image_request(7, data) for data in files]
    return await run_levels(fake.url, requests, levels, time.time(), 0.2, 0.1)


async def test_each_level_keeps_as_many_requests_under_way() -> None:
    async with serving(FakeTriton()) as fake:
        fake.answer = slow(0.02)
        tallies = await loaded(fake, (3,))

        assert fake.most_busy == 3
        assert tallies[0].objects == 2 * tallies[0].replies > 0
        assert min(tallies[0].latencies) >= 20


async def test_requests_are_those_of_the_agents_with_every_file_in_its_turn() -> None:
    async with serving(FakeTriton()) as fake:
        await loaded(fake, (2,))

        assert {(request.model_name, request.model_version) for request in fake.asked} == {(IMAGE_PIPELINE, "7")}
        assert set(fake.pictures) == {b"a", b"b", b"c"}
        assert len(set(fake.pictures[:2])) == 2, "those that begin together begin with different files"
        assert {output.name for output in fake.asked[0].outputs} >= {"boxes", "object_embeddings", "image_embedding"}


async def test_levels_follow_each_other_and_are_counted_apart() -> None:
    async with serving(FakeTriton()) as fake:
        under_way = []

        async def answer(request: Any, context: grpc.aio.ServicerContext) -> Any:
            under_way.append(fake.busy)
            await asyncio.sleep(0.02)
            return await two_objects(request, context)

        fake.answer = answer
        one, four = await loaded(fake, (1, 4))

        assert set(under_way[: one.replies]) == {1}
        assert max(under_way) == 4
        assert one.replies > 0
        assert four.replies > 0
        assert one.replies + four.replies < len(fake.asked)


async def test_replies_of_the_warm_up_do_not_count() -> None:
    async with serving(FakeTriton()) as fake:
        fake.answer = slow(0.02)
        (tally,) = await run_levels(fake.url, [image_request(7, b"a")], (1,), time.time(), 0.1, 0.4)

        assert 0 < tally.replies < len(fake.asked) / 2
        assert len(tally.latencies) <= tally.replies


async def test_failures_are_counted_and_the_load_goes_on() -> None:
    async def refuse_every_second(request: Any, context: grpc.aio.ServicerContext) -> Any:
        if len(fake.asked) % 2:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "queue is full")
        return await two_objects(request, context)

    async with serving(FakeTriton()) as fake:
        fake.answer = refuse_every_second
        (tally,) = await loaded(fake, (1,))

        assert tally.failures[0] == "UNAVAILABLE: queue is full"
        assert tally.replies > 0


def test_clients_are_added_up_and_latencies_taken_together() -> None:
    clients = [Tally(10, 100, [1.0, 2.0], [], 0.5), Tally(20, 200, [3.0], ["UNAVAILABLE: x"], 0.5)]
    load = merged(8, clients, seconds=2.0, warm=0.5)

    assert (load.in_flight, load.images_per_s, load.p50_ms, load.mean_objects) == (8, 15.0, 2.0, 10.0)
    assert (load.failures, load.first_failure, load.client_cores) == (1, "UNAVAILABLE: x", 0.4)


def test_a_level_without_any_reply_has_no_latency() -> None:
    load = merged(1, [Tally()], seconds=1.0, warm=0.0)

    assert (load.images_per_s, load.p50_ms, load.p99_ms) == (0, None, None)


@pytest.mark.parametrize(("level", "shares"), [(5, [3, 2]), (2, [1, 1]), (256, [128, 128])])
def test_clients_share_a_level(level: int, shares: list[int]) -> None:
    from load_tests.gpu_load import share

    assert [share(level, 2, number) for number in range(2)] == shares
