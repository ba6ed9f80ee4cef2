"""The real Triton heals: a model process that dies or hangs costs no restart of the server, nor its neighbours."""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import os
import signal
import time
from collections import Counter
from collections.abc import Iterator

import psutil
import pytest

from agents.delivery.failures import DependencyDown
from agents.inference.client import TritonClient
from agents.inference.deaths import Died
from load_tests.running import free_port_offset
from models.manifest import load_manifest
from models.photos import photos
from models.tokenizer import ClipTokenizer
from sightlog.client import Client
from sightlog.dead_letters import DeadLetter
from sightlog.documents import IndexReceipt
from sightlog.events import new_upload
from sightlog.follow import Follower
from sightlog.settings import ClientSettings
from stack.local import LocalStack
from stack.processes import SHARED_MEMORY, shared_memory_prefix
from stack.settings import StackSettings
from stack.triton_stubs import Stub, stubs_of
from triton_repo import contract
from triton_repo.serving_settings import ServingSettings

KILLER = photos(1, seed=13, sizes=[(200, 150)])[0].jpeg
PICTURE = photos(1, seed=12, sizes=[(320, 240)])[0].jpeg
#: Never the same text twice: an answer from the cache needs no process.
NUMBERS = itertools.count()
#: What the issue allows for any fault.
RECOVERY_S = 40.0
SERVING = ServingSettings()
PROCESSES = {
    contract.PREPROCESS: SERVING.preprocess_instances,
    contract.DETECTOR: SERVING.detector_instances,
    contract.BOX_EMBEDDER: SERVING.box_embedder_instances,
    contract.CLIP_IMAGE: SERVING.clip_image_instances,
    contract.CLIP_TEXT: SERVING.clip_text_instances,
}


@pytest.fixture(scope="module")
def triton(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalStack]:
    settings = StackSettings(
        components=("triton",), workers=False, triton_crash_on=(hashlib.sha256(KILLER).hexdigest(),), triton_stopped_s=2
    )
    local = LocalStack(tmp_path_factory.mktemp("healing"), port_offset=free_port_offset(), settings=settings)
    local.up()
    yield local
    local.down(wipe=True)


def client_of(triton: LocalStack, *, heal: bool = False) -> TritonClient:
    return TritonClient(triton.endpoints().triton_grpc, load_manifest().digest, heal=heal)


def stub_of(triton: LocalStack, model: str) -> Stub:
    return next(stub for stub in stubs_of(triton.pid("triton")) if stub.model == model)


async def embed_text(client: TritonClient) -> None:
    await client.embed_text(ClipTokenizer().encode([f"a red circle {next(NUMBERS)}"])[0])


async def until_well(client: TritonClient) -> None:
    """Until every process of the pipeline answers: a dead one among several shows in some calls only."""
    deadline = time.monotonic() + RECOVERY_S
    while True:
        calls = [client.infer_image(PICTURE, timeout=20) for _ in range(8)]
        outcomes = await asyncio.gather(*calls, embed_text(client), return_exceptions=True)
        failures = [outcome for outcome in outcomes if isinstance(outcome, BaseException)]
        if not failures:
            return
        assert all(isinstance(failure, DependencyDown) for failure in failures)
        assert time.monotonic() < deadline, failures[0]


async def until_gone(stub: Stub) -> None:
    while not stub.ended:
        await asyncio.sleep(0.02)


async def until_tidy(triton: LocalStack) -> None:
    """Until each model has its processes and no more, and /dev/shm their regions and nothing else of this stack."""
    deadline = time.monotonic() + RECOVERY_S
    while True:
        stubs = stubs_of(triton.pid("triton"))
        regions = set(SHARED_MEMORY.glob(f"{shared_memory_prefix(triton.settings.stack_id)}*"))
        if Counter(stub.model for stub in stubs) == PROCESSES and regions == {stub.region for stub in stubs}:
            return
        assert time.monotonic() < deadline, regions
        await asyncio.sleep(0.1)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP], ids=["dead", "hung"])
@pytest.mark.parametrize("model", list(PROCESSES))
async def test_a_model_process_heals_while_server_and_other_models_go_on(
    triton: LocalStack, model: str, number: signal.Signals
) -> None:
    await until_tidy(triton)
    server, before = triton.pid("triton"), stubs_of(triton.pid("triton"))
    victim = stub_of(triton, model)
    async with client_of(triton) as client:
        await until_well(client)
        victim.process.send_signal(number)
        if model != contract.CLIP_TEXT:
            await embed_text(client)
        await asyncio.wait_for(until_gone(victim), RECOVERY_S)
        await until_well(client)
    assert triton.pid("triton") == server
    assert triton.status().components["triton"].restarts == 0
    await until_tidy(triton)
    after = {stub.process.pid for stub in stubs_of(server)}
    assert {stub.process.pid for stub in before if stub.model != model} <= after


async def test_a_picture_that_ends_the_decoder_is_told_as_a_death_and_the_decoder_heals(triton: LocalStack) -> None:
    async with client_of(triton) as client:
        await until_well(client)
        with pytest.raises(Died) as caught:
            await client.infer_image(KILLER)
        assert caught.value.model == contract.PREPROCESS
        await until_well(client)
    assert triton.status().components["triton"].restarts == 0
    await until_tidy(triton)


async def test_where_nobody_else_heals_the_client_does(triton: LocalStack) -> None:
    victim = stub_of(triton, contract.DETECTOR)
    supervisor = psutil.Process(triton.pid("supervisor"))
    async with client_of(triton, heal=True) as client:
        await until_well(client)
        supervisor.suspend()
        try:
            victim.process.kill()
            await asyncio.wait_for(until_gone(victim), RECOVERY_S)
            await until_well(client)
        finally:
            supervisor.resume()
        await until_tidy(triton)
    assert triton.status().components["triton"].restarts == 0


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP], ids=["dead", "hung"])
async def test_a_server_that_dies_or_hangs_is_replaced(triton: LocalStack, number: signal.Signals) -> None:
    restarts = triton.status().components["triton"].restarts
    async with client_of(triton) as client:
        await until_well(client)
        under_way = [asyncio.create_task(client.infer_image(PICTURE, timeout=120)) for _ in range(8)]
        await asyncio.sleep(0)
        triton.kill("triton", number)
        await asyncio.to_thread(triton.await_component, "triton", RECOVERY_S, restarts + 1)
        await until_well(client)
        outcomes = await asyncio.gather(*under_way, return_exceptions=True)
        assert all(not isinstance(one, BaseException) or isinstance(one, DependencyDown) for one in outcomes)
    await until_tidy(triton)


async def test_a_server_that_was_suspended_for_a_moment_is_left_alone(triton: LocalStack) -> None:
    server = triton.pid("triton")
    async with client_of(triton) as client:
        os.kill(server, signal.SIGSTOP)
        call = asyncio.create_task(client.infer_image(PICTURE, timeout=30))
        await asyncio.sleep(3)  # three looks of the supervisor
        os.kill(server, signal.SIGCONT)
        await call
    assert triton.pid("triton") == server


def test_a_picture_that_kills_the_decoder_is_the_only_dead_letter_of_a_stream(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    settings = StackSettings(vision_workers=2, triton_crash_on=(hashlib.sha256(KILLER).hexdigest(),))
    local = LocalStack(tmp_path_factory.mktemp("killer"), port_offset=free_port_offset(), settings=settings)
    small = [photo.jpeg for photo in photos(200, seed=14, sizes=[(200, 150)])]
    pictures = {f"good-{number}": jpeg for number, jpeg in enumerate(small)}
    try:
        local.up()
        clients = ClientSettings.load(data_dir=local.data_dir)
        with Client(clients) as client, Follower(clients) as follower:
            for number, (image_id, jpeg) in enumerate(pictures.items()):
                if number == 30:
                    client.publish_async(new_upload(KILLER, source="/test"), key="killer")
                client.publish_async(new_upload(jpeg, source="/test"), key=image_id)
            client.flush()
            found = dict(follower.outcomes([*pictures, "killer"]))
        letter = found.pop("killer")
        assert isinstance(letter, DeadLetter)
        assert letter.code == "decoder_crash"
        assert letter.value == KILLER
        assert set(found) == set(pictures)
        assert all(isinstance(outcome, IndexReceipt) for outcome in found.values())
        components = local.status().components
        assert {name: one.restarts for name, one in components.items()} == dict.fromkeys(components, 0)
        asyncio.run(until_tidy(local))
    finally:
        local.down(wipe=True)
    assert list(SHARED_MEMORY.glob(f"{shared_memory_prefix(local.settings.stack_id)}*")) == []
