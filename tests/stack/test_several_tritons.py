"""Two real Tritons behind one client: one is killed under load, nobody notices, and it serves again when it is back."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator

import pytest

from agents.inference.client import TritonClient
from load_tests.running import free_port_offset
from models.manifest import load_manifest
from models.photos import photos
from stack.local import LocalStack
from stack.settings import StackSettings

CALLERS = 8


@pytest.fixture(scope="module")
def tritons(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[LocalStack]]:
    started: list[LocalStack] = []
    try:
        for name in ("first", "second"):
            folder = tmp_path_factory.mktemp(name)
            settings = StackSettings(components=("triton",), workers=False)
            started.append(LocalStack(folder, port_offset=free_port_offset(), settings=settings))
            started[-1].up()
        yield started
    finally:
        for one in started:
            one.down(wipe=True)


async def test_a_triton_that_is_killed_under_load_costs_no_request_and_returns(tritons: list[LocalStack]) -> None:
    pictures = [photo.jpeg for photo in photos(6, seed=9, sizes=[(320, 240)])]
    urls = [one.endpoints().triton_grpc for one in tritons]
    answered = 0
    enough = asyncio.Event()

    async def caller(client: TritonClient, number: int) -> None:
        nonlocal answered
        while not enough.is_set():
            picture = number % len(pictures)
            assert (await client.infer_image(pictures[picture])).width == 320
            answered += 1

    async def trouble(client: TritonClient) -> None:
        first, second = client.endpoints
        await _until(lambda: min(first.answered, second.answered) >= 20)
        tritons[1].kill("triton")
        await _until(lambda: second.ejections == 1)
        elsewhere = first.answered
        await _until(lambda: first.answered >= elsewhere + 20)
        await _until(lambda: second.up)
        before = second.answered
        await _until(lambda: second.answered >= before + 20)
        enough.set()

    async with TritonClient(urls, load_manifest().digest, concurrency=CALLERS) as client:
        await asyncio.wait_for(asyncio.gather(trouble(client), *(caller(client, n) for n in range(CALLERS))), 180)
        assert sum(endpoint.answered for endpoint in client.endpoints) == answered
        assert [endpoint.outstanding for endpoint in client.endpoints] == [0, 0]
    assert tritons[1].await_component("triton").restarts == 1


async def _until(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0.02)
