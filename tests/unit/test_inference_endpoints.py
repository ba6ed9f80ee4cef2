"""Several Tritons behind one client: who is asked, who is left out, who comes back; against gRPC servers."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from typing import Any

import grpc
import pytest

from agents.delivery.failures import DependencyDown, ItemBroken
from agents.delivery.retry import Backoff
from agents.inference.client import TritonClient
from agents.inference.endpoints import Endpoint, Endpoints
from tests.unit.fake_triton import FakeTriton, failing, picture_with, serving, two_objects

SOON = Backoff(first=0.01, limit=0.01)
NEVER = Backoff(first=1000, limit=1000)
DEAD = failing(grpc.StatusCode.INTERNAL, "Stub process 'detector' is not healthy")


@pytest.fixture
async def pair() -> AsyncIterator[tuple[FakeTriton, FakeTriton]]:
    """Two servers that are ready."""
    async with AsyncExitStack() as servers:
        first, second = [await servers.enter_async_context(serving(FakeTriton())) for _ in range(2)]
        first.loaded = second.loaded = {"image_pipeline", "clip_text"}
        yield first, second


def client_of(pair: tuple[FakeTriton, FakeTriton], pauses: Backoff = NEVER, concurrency: int = 8) -> TritonClient:
    return TritonClient([fake.url for fake in pair], concurrency=concurrency, pauses=pauses)


async def until(condition: Callable[[], bool]) -> None:
    async def poll() -> None:
        while not condition():
            await asyncio.sleep(0.005)

    await asyncio.wait_for(poll(), 20)


async def asked_again(fake: FakeTriton) -> None:
    before = len(fake.asked) + fake.asked_ready
    await until(lambda: len(fake.asked) + fake.asked_ready > before)


class Held:
    """An answer that waits until it is let go."""

    def __init__(self) -> None:
        self.arrived, self.released = asyncio.Semaphore(0), asyncio.Event()

    async def __call__(self, request: Any, context: grpc.aio.ServicerContext) -> Any:
        self.arrived.release()
        await self.released.wait()
        return picture_with(1)


async def test_equal_endpoints_take_turns(pair: tuple[FakeTriton, FakeTriton]) -> None:
    async with client_of(pair) as client:
        for _ in range(6):
            await client.infer_image(b"x")
    assert [len(fake.asked) for fake in pair] == [3, 3]


async def test_a_request_goes_where_the_fewest_are_outstanding(pair: tuple[FakeTriton, FakeTriton]) -> None:
    pair[0].answer = held = Held()
    async with client_of(pair) as client:
        slow = asyncio.create_task(client.infer_image(b"slow"))
        await held.arrived.acquire()
        for _ in range(5):
            await client.infer_image(b"x")
        assert [endpoint.outstanding for endpoint in client.endpoints] == [1, 0]
        held.released.set()
        await slow
    assert pair[0].pictures == [b"slow"]
    assert [endpoint.answered for endpoint in client.endpoints] == [1, 5]


@pytest.mark.parametrize(
    ("code", "details"),
    [
        (grpc.StatusCode.UNAVAILABLE, "stopping"),
        (grpc.StatusCode.INTERNAL, "Stub process 'detector' is not healthy"),
        (grpc.StatusCode.NOT_FOUND, "version 12 is not found"),
        (grpc.StatusCode.INVALID_ARGUMENT, "unexpected shape for input 'image'"),
        (grpc.StatusCode.UNKNOWN, ""),
    ],
)
async def test_a_sick_endpoint_is_left_out_and_its_request_answered_elsewhere(
    pair: tuple[FakeTriton, FakeTriton], code: grpc.StatusCode, details: str
) -> None:
    pair[0].answer = failing(code, details)
    async with client_of(pair) as client:
        for _ in range(6):
            assert len((await client.infer_image(b"x")).boxes) == 2
        sick, well = client.endpoints
    assert [len(fake.asked) for fake in pair] == [1, 6]
    assert (sick.ejections, sick.answered, well.ejections, well.answered) == (1, 0, 0, 6)


async def test_a_server_that_is_gone_costs_no_request_and_serves_again_when_it_is_back(
    pair: tuple[FakeTriton, FakeTriton],
) -> None:
    async with AsyncExitStack() as server:
        third = await server.enter_async_context(serving(FakeTriton()))
        port = int(third.url.rpartition(":")[2])
        async with TritonClient([third.url, pair[0].url], pauses=SOON) as client:
            await client.infer_image(b"x")
            await server.aclose()
            for _ in range(4):
                await client.infer_image(b"x")
            assert not client.endpoints[0].up
            back = FakeTriton()
            back.loaded = pair[0].loaded
            await server.enter_async_context(serving(back, port))
            await until(lambda: client.endpoints[0].up)
            for _ in range(4):
                await client.infer_image(b"after")
            assert back.pictures.count(b"after") == 2
            assert (client.endpoints[0].ejections, client.endpoints[0].returns) == (1, 1)


async def test_a_silent_endpoint_leaves_somebody_else_the_time_to_answer(pair: tuple[FakeTriton, FakeTriton]) -> None:
    pair[0].answer = Held()
    async with client_of(pair) as client:
        assert len((await client.infer_image(b"x", timeout=2.1)).boxes) == 2
        assert [endpoint.up for endpoint in client.endpoints] == [False, True]


async def test_the_hurry_of_a_caller_says_nothing_about_an_endpoint(pair: tuple[FakeTriton, FakeTriton]) -> None:
    pair[0].answer = pair[1].answer = Held()
    async with client_of(pair) as client:
        with pytest.raises(DependencyDown, match="within"):
            await client.infer_image(b"x", timeout=0.05)
        assert [endpoint.up for endpoint in client.endpoints] == [True, True]


async def test_a_broken_item_is_not_shown_to_another_endpoint(pair: tuple[FakeTriton, FakeTriton]) -> None:
    pair[0].answer = failing(grpc.StatusCode.INVALID_ARGUMENT, "undecodable: no picture")
    async with client_of(pair) as client:
        with pytest.raises(ItemBroken):
            await client.infer_image(b"x")
        assert [len(fake.asked) for fake in pair] == [1, 0]
        assert client.endpoints[0].up


async def test_when_all_are_down_the_caller_is_told_and_the_first_answer_ends_it(
    pair: tuple[FakeTriton, FakeTriton],
) -> None:
    pair[0].answer = pair[1].answer = DEAD
    async with client_of(pair) as client:
        for _ in range(3):
            with pytest.raises(DependencyDown, match="not healthy"):
                await client.infer_image(b"x")
        assert sum(len(fake.asked) for fake in pair) == 2 + 1 + 1, "a request tries one when nobody is well"
        pair[0].answer = pair[1].answer = two_objects
        await client.infer_image(b"x")
        assert sorted(endpoint.up for endpoint in client.endpoints) == [False, True]


async def test_a_dead_model_of_a_ready_server_is_found_by_a_known_picture_and_not_by_callers(
    pair: tuple[FakeTriton, FakeTriton],
) -> None:
    asked_in_vain: list[bytes] = []

    async def dead(request: Any, context: grpc.aio.ServicerContext) -> Any:
        picture = request.raw_input_contents[0]
        if picture not in pair[1].pictures:
            asked_in_vain.append(picture)
        await DEAD(request, context)

    async with client_of(pair, SOON) as client:
        pair[0].answer = dead
        for number in range(20):
            await client.infer_image(b"%d" % number)
            await asked_again(pair[0])
        assert asked_in_vain == [b"0"]
        assert not client.endpoints[0].up
        pair[0].answer = two_objects
        await until(lambda: client.endpoints[0].up)


async def test_models_that_are_not_loaded_keep_an_endpoint_out(pair: tuple[FakeTriton, FakeTriton]) -> None:
    pair[0].answer = failing(grpc.StatusCode.NOT_FOUND, "unknown model")
    pair[0].loaded = {"image_pipeline"}
    async with client_of(pair, SOON) as client:
        await client.infer_image(b"x")
        for _ in range(3):
            await asked_again(pair[0])
            assert not client.endpoints[0].up
        pair[0].loaded = pair[1].loaded
        pair[0].answer = two_objects
        await until(lambda: client.endpoints[0].up)


async def test_a_cancelled_request_frees_its_place(pair: tuple[FakeTriton, FakeTriton]) -> None:
    pair[0].answer = pair[1].answer = held = Held()
    async with client_of(pair, concurrency=4) as client:
        for _ in range(3):
            calls = [asyncio.create_task(client.infer_image(b"x")) for _ in range(4)]
            for _ in calls:
                await held.arrived.acquire()
            assert [endpoint.outstanding for endpoint in client.endpoints] == [2, 2]
            for call in calls:
                call.cancel()
            await asyncio.wait(calls)
            assert [(endpoint.outstanding, endpoint.up) for endpoint in client.endpoints] == [(0, True)] * 2


async def test_all_endpoints_together_get_no_more_at_once_than_allowed(pair: tuple[FakeTriton, FakeTriton]) -> None:
    pair[0].answer = pair[1].answer = held = Held()
    async with client_of(pair, concurrency=6) as client:
        calls = asyncio.gather(*[client.infer_image(b"x") for _ in range(20)])
        for _ in range(6):
            await held.arrived.acquire()
        assert [endpoint.outstanding for endpoint in client.endpoints] == [3, 3]
        held.released.set()
        await calls
    assert max(fake.most_busy for fake in pair) <= 6


async def test_a_closed_client_probes_nobody_and_begins_anew(pair: tuple[FakeTriton, FakeTriton]) -> None:
    pair[0].answer = DEAD
    client = client_of(pair, SOON)
    await client.infer_image(b"x")
    await client.close()
    assert [task for task in asyncio.all_tasks() if "_until_back" in repr(task)] == []
    pair[0].answer = two_objects
    for _ in range(4):
        await client.infer_image(b"y")
    assert pair[0].pictures.count(b"y") == 2
    await client.close()


class Pauses(Backoff):
    """None at all; remembers which attempt each was for."""

    def __init__(self) -> None:
        super().__init__()
        object.__setattr__(self, "attempts", [])

    attempts: list[int]

    def pause(self, attempt: int) -> float:
        self.attempts.append(attempt)
        return 0.0


def failed(endpoints: Endpoints, endpoint: Endpoint) -> None:
    endpoints.failed(endpoint, "image_pipeline", time.monotonic(), DependencyDown("dead"))


async def test_an_endpoint_that_fails_soon_after_its_return_is_left_out_longer_each_time() -> None:
    async def well(endpoint: Endpoint, model: str) -> bool:
        return True

    pauses = Pauses()
    endpoints = Endpoints(["a:1", "b:1"], well, pauses)
    sick = endpoints.all[0]
    for _ in range(3):
        failed(endpoints, sick)
        await until(lambda: sick.up)
    sick.returned_at -= 3600
    failed(endpoints, sick)
    await until(lambda: sick.up)
    assert pauses.attempts == [0, 1, 2, 0]
    assert (sick.ejections, sick.returns) == (4, 4)


async def test_an_endpoint_that_answered_others_meanwhile_is_busy_and_not_sick() -> None:
    endpoints = Endpoints(["a:1", "b:1"], None, NEVER)  # type: ignore[arg-type]
    busy, sent_at = endpoints.all[0], time.monotonic()
    endpoints.answered(busy, "image_pipeline", sent_at)
    endpoints.failed(busy, "image_pipeline", sent_at, DependencyDown("queue full"))
    assert busy.up
    failed(endpoints, busy)
    assert not busy.up
    await endpoints.close()


async def test_answers_of_another_model_do_not_hide_a_dead_one() -> None:
    endpoints = Endpoints(["a:1", "b:1"], None, NEVER)  # type: ignore[arg-type]
    sick, sent_at = endpoints.all[0], time.monotonic()
    endpoints.answered(sick, "clip_text", sent_at)
    endpoints.failed(sick, "image_pipeline", sent_at, DependencyDown("dead"))
    assert not sick.up
    await endpoints.close()


async def test_an_answer_from_before_the_failure_brings_nobody_back() -> None:
    endpoints = Endpoints(["a:1", "b:1"], None, NEVER)  # type: ignore[arg-type]
    sick, sent_at = endpoints.all[0], time.monotonic()
    failed(endpoints, sick)
    endpoints.answered(sick, "image_pipeline", sent_at)
    assert not sick.up
    endpoints.answered(sick, "image_pipeline", time.monotonic())
    assert sick.up
    await endpoints.close()


async def test_a_single_endpoint_is_never_left_out() -> None:
    endpoints = Endpoints(["a:1"], None, NEVER)  # type: ignore[arg-type]
    failed(endpoints, endpoints.all[0])
    assert endpoints.all[0].up
    assert endpoints.pick() is endpoints.all[0]
