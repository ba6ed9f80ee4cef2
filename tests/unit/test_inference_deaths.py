"""Which failures of a call mean that a process of Triton died, and who has its model loaded anew."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator

import grpc
import pytest

from agents.delivery.failures import DependencyDown
from agents.inference import deaths
from agents.inference.client import TritonClient
from agents.inference.deaths import Died, is_death
from tests.unit.fake_triton import FakeTriton, failing, serving
from triton_repo.reload import changed_config

DEAD = "in ensemble 'image_pipeline', Stub process 'preprocess_0_1' is not healthy."
NESTED = "message: TritonModelException: the image tower failed: Stub process 'clip_image_0_0' is not healthy.\n\nAt:"
NOT_SENT = "failed to connect to all addresses; last error: UNAVAILABLE: ipv4:127.0.0.1:1: recvmsg:Connection reset"


@pytest.fixture
async def triton() -> AsyncIterator[FakeTriton]:
    async with serving(FakeTriton()) as fake:
        yield fake


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deaths.Healer.__init__, "__defaults__", ((0.0, 0.0),))


@pytest.mark.parametrize(
    ("status", "details", "model"),
    [
        (grpc.StatusCode.INTERNAL, DEAD, "preprocess"),
        (grpc.StatusCode.INTERNAL, NESTED, "clip_image"),
        (grpc.StatusCode.UNAVAILABLE, "Stream removed (Socket closed)", None),
        (grpc.StatusCode.UNAVAILABLE, "recvmsg:Connection reset by peer", None),
    ],
)
def test_a_dead_model_process_or_a_connection_that_breaks_is_a_death(
    status: grpc.StatusCode, details: str, model: str | None
) -> None:
    assert is_death(status, details) == (True, model)


@pytest.mark.parametrize(
    ("status", "details"),
    [
        (grpc.StatusCode.UNAVAILABLE, "Exceeds maximum queue size"),
        (grpc.StatusCode.UNAVAILABLE, "Request timeout expired"),
        (grpc.StatusCode.UNAVAILABLE, "Server is stopping, scheduler for model has stopped accepting new requests"),
        (grpc.StatusCode.UNAVAILABLE, "'image_pipeline' version 7 is not at ready state"),
        (grpc.StatusCode.UNAVAILABLE, NOT_SENT),
        (grpc.StatusCode.INTERNAL, "the detector is out of memory"),
        (grpc.StatusCode.DEADLINE_EXCEEDED, "Deadline Exceeded"),
        (grpc.StatusCode.CANCELLED, "Socket closed"),
    ],
)
def test_overload_stopping_starting_and_silence_are_no_death(status: grpc.StatusCode, details: str) -> None:
    assert is_death(status, details) == (False, None)


async def test_the_first_failure_heals_nothing_a_later_one_does_once(triton: FakeTriton, impatient: None) -> None:
    triton.answer = failing(grpc.StatusCode.INTERNAL, DEAD)
    async with TritonClient(triton.url) as client:
        with pytest.raises(Died):
            await client.infer_image(b"x")
        assert triton.reloads == []
        with pytest.raises(Died):
            await client.infer_image(b"x")
        while not triton.reloads:
            await asyncio.sleep(0.001)
    ((model, config),) = triton.reloads
    assert model == "preprocess"
    assert json.loads(config)["max_batch_size"] == 8


async def test_whoever_runs_the_server_has_time_to_heal_first(triton: FakeTriton) -> None:
    triton.answer = failing(grpc.StatusCode.INTERNAL, DEAD)
    async with TritonClient(triton.url) as client:
        for _ in range(5):
            with pytest.raises(Died):
                await client.infer_image(b"x")
        await client.ready()
    assert triton.reloads == []


async def test_a_client_that_may_not_heal_does_not(triton: FakeTriton, impatient: None) -> None:
    triton.answer = failing(grpc.StatusCode.INTERNAL, DEAD)
    async with TritonClient(triton.url, heal=False) as client:
        for _ in range(3):
            with pytest.raises(Died):
                await client.infer_image(b"x")
        await client.ready()
    assert triton.reloads == []


async def test_one_request_costs_two_tritons_a_process_and_not_all() -> None:
    async with serving(FakeTriton()) as one, serving(FakeTriton()) as two, serving(FakeTriton()) as three:
        fakes = [one, two, three]
        for fake in fakes:
            fake.answer = failing(grpc.StatusCode.INTERNAL, DEAD)
        async with TritonClient([fake.url for fake in fakes]) as client:
            with pytest.raises(Died) as caught:
                await client.infer_image(b"x")
        assert caught.value.deaths == 2
        assert sorted(len(fake.asked) for fake in fakes) == [0, 1, 1]


async def test_an_overload_is_a_dependency_down_and_no_death(triton: FakeTriton) -> None:
    triton.answer = failing(grpc.StatusCode.UNAVAILABLE, "Exceeds maximum queue size")
    async with TritonClient(triton.url) as client:
        with pytest.raises(DependencyDown) as caught:
            await client.infer_image(b"x")
    assert not isinstance(caught.value, Died)


def test_a_config_differs_at_each_reload_and_keeps_what_it_had() -> None:
    config = json.dumps({"name": "preprocess", "parameters": {"sightlog": {"string_value": "{}"}}})
    first = changed_config(config)
    second = changed_config(first)
    assert first != second
    assert json.loads(second)["parameters"]["sightlog"] == {"string_value": "{}"}
    assert set(json.loads(second)["parameters"]) == {"sightlog", "loaded_at"}
