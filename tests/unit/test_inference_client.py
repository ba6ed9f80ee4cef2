"""What the Triton client sends, how it reads replies, and whose fault it says a failure is; against a gRPC server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import numpy as np
import pytest

from agents.delivery.failures import DependencyDown, ItemBroken
from agents.inference.client import TritonClient
from tests.unit.fake_triton import FakeTriton, failing, picture_with, reply, serving, two_objects


@pytest.fixture
async def triton() -> AsyncIterator[FakeTriton]:
    async with serving(FakeTriton()) as fake:
        yield fake


@pytest.fixture
async def client(triton: FakeTriton) -> AsyncIterator[TritonClient]:
    async with TritonClient(triton.url, concurrency=4) as made:
        yield made


@pytest.mark.parametrize("size", [0, 1, 127, 128, 20_000, 3_000_000])
async def test_a_picture_travels_as_the_bytes_of_its_file(triton: FakeTriton, client: TritonClient, size: int) -> None:
    picture = bytes(size)
    await client.infer_image(picture, timeout=7)
    request = triton.asked[0]
    assert request.model_name == "image_pipeline"
    assert [(t.name, t.datatype, list(t.shape)) for t in request.inputs] == [("image", "UINT8", [1, size])]
    assert list(request.raw_input_contents) == [picture]


async def test_only_the_models_of_the_digest_may_answer(triton: FakeTriton) -> None:
    async with TritonClient(triton.url, "00000000000c" + "f" * 52) as client:
        await client.infer_image(b"x")
        triton.answer = failing(grpc.StatusCode.NOT_FOUND, "version 12 is not found")
        with pytest.raises(DependencyDown, match="serves other models"):
            await client.embed_text(np.zeros(3, np.int64))
    assert [request.model_version for request in triton.asked] == ["12", "12"]


async def test_triton_is_told_when_the_caller_gives_up(triton: FakeTriton, client: TritonClient) -> None:
    await client.infer_image(b"x", timeout=700)
    assert triton.asked[0].parameters["timeout"].int64_param == pytest.approx(700_000_000, rel=0.01)


@pytest.mark.parametrize("count", [0, 2])
async def test_replies_become_typed_results(triton: FakeTriton, client: TritonClient, count: int) -> None:
    async def answer(request: Any, context: grpc.aio.ServicerContext) -> Any:
        return picture_with(count)

    triton.answer = answer
    seen = await client.infer_image(b"x")
    assert (seen.width, seen.height) == (640, 480)
    assert seen.embedding.tolist() == [1] * 8
    assert seen.boxes.shape == (count, 4)
    assert seen.boxes.ravel().tolist() == list(range(count * 4))
    assert seen.class_ids.dtype == np.int32
    assert seen.object_embeddings.shape == (count, 8)


async def test_texts_are_embedded_one_or_many_at_a_time(triton: FakeTriton, client: TritonClient) -> None:
    async def answer(request: Any, context: grpc.aio.ServicerContext) -> Any:
        tokens = np.frombuffer(request.raw_input_contents[0], np.int64).reshape(request.inputs[0].shape)
        return reply(embedding=tokens[:, :2].astype(np.float32))

    triton.answer = answer
    tokens = np.arange(6, dtype=np.int64).reshape(2, 3)
    assert (await client.embed_text(tokens)).tolist() == [[0, 1], [3, 4]]
    assert (await client.embed_text(tokens[1])).tolist() == [3, 4]


@pytest.mark.parametrize("prefix", ["", "in ensemble 'image_pipeline', ", "[request id: 7] "])
async def test_a_refused_picture_is_a_broken_item(triton: FakeTriton, client: TritonClient, prefix: str) -> None:
    triton.answer = failing(grpc.StatusCode.INVALID_ARGUMENT, f"{prefix}too_many_pixels: 9 x 9 pixels")
    with pytest.raises(ItemBroken) as caught:
        await client.infer_image(b"x")
    assert (caught.value.code, caught.value.message) == ("too_many_pixels", "9 x 9 pixels")


@pytest.mark.parametrize(
    ("code", "details"),
    [
        (grpc.StatusCode.INVALID_ARGUMENT, "unexpected shape for input 'image'"),
        (grpc.StatusCode.UNAVAILABLE, "Exceeds maximum queue size"),
        (grpc.StatusCode.INTERNAL, "Stub process 'detector' is not healthy"),
        (grpc.StatusCode.NOT_FOUND, "unknown model"),
        (grpc.StatusCode.CANCELLED, "server shuts down"),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, "message too large"),
        (grpc.StatusCode.UNKNOWN, ""),
    ],
)
async def test_every_other_failure_holds_the_stream_instead_of_burying_items(
    triton: FakeTriton, client: TritonClient, code: grpc.StatusCode, details: str
) -> None:
    triton.answer = failing(code, details)
    with pytest.raises(DependencyDown, match=details):
        await client.infer_image(b"x")
    with pytest.raises(DependencyDown):
        await client.embed_text(np.zeros(3, np.int64))


async def test_no_answer_in_time_is_a_dependency_down(triton: FakeTriton, client: TritonClient) -> None:
    async def answer(request: Any, context: grpc.aio.ServicerContext) -> Any:
        await asyncio.Event().wait()

    triton.answer = answer
    with pytest.raises(DependencyDown, match="within"):
        await client.infer_image(b"x", timeout=0.05)


async def test_a_server_that_is_not_there_is_a_dependency_down_and_not_ready() -> None:
    async with TritonClient("127.0.0.1:1") as client:
        assert not await client.ready()
        with pytest.raises(DependencyDown, match=r"127\.0\.0\.1:1"):
            await client.infer_image(b"x")


async def test_ready_means_that_every_model_is_loaded(triton: FakeTriton, client: TritonClient) -> None:
    assert not await client.ready()  # this server has image_pipeline but no clip_text


async def test_no_more_requests_are_under_way_than_allowed(triton: FakeTriton, client: TritonClient) -> None:
    arrived, released = asyncio.Semaphore(0), asyncio.Event()

    async def answer(request: Any, context: grpc.aio.ServicerContext) -> Any:
        arrived.release()
        await released.wait()
        return picture_with(1)

    triton.answer = answer
    calls = asyncio.gather(*[client.infer_image(b"x") for _ in range(20)])
    for _ in range(4):
        await arrived.acquire()
    for _ in range(5):
        await client.ready()  # a fifth request would have arrived before these round trips end
    released.set()
    await calls
    assert triton.most_busy == 4
    assert len(triton.asked) == 20


async def test_a_cancelled_or_failed_call_gives_its_slot_back(triton: FakeTriton, client: TritonClient) -> None:
    arrived = asyncio.Event()

    async def hang(request: Any, context: grpc.aio.ServicerContext) -> Any:
        arrived.set()
        await asyncio.Event().wait()

    for _ in range(6):
        triton.answer = hang
        arrived.clear()
        call = asyncio.create_task(client.infer_image(b"x"))
        await arrived.wait()
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        triton.answer = failing(grpc.StatusCode.INTERNAL, "dead")
        with pytest.raises(DependencyDown):
            await client.infer_image(b"x")
    triton.answer = two_objects
    assert len((await client.infer_image(b"x", timeout=5)).boxes) == 2


async def test_a_closed_client_connects_again_when_it_is_used(client: TritonClient) -> None:
    await client.infer_image(b"x")
    await client.close()
    assert len((await client.infer_image(b"x")).boxes) == 2
