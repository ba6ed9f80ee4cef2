"""The profiles with PyTorch answer through a real Triton as the models do in one process; here on CPU."""

from __future__ import annotations

import asyncio
import json
import urllib.request
from collections.abc import AsyncIterator, Iterator

import numpy as np
import pytest
from tritonclient.grpc import InferInput
from tritonclient.grpc.aio import InferenceServerClient
from tritonclient.utils import InferenceServerException

from agents.delivery.failures import ItemBroken
from agents.inference.client import TritonClient
from load_tests.running import free_port_offset
from models.manifest import ModelManifest, load_manifest
from models.photos import STREAM_SEED, STREAM_SIZES, photos
from models.tokenizer import ClipTokenizer
from stack.local import LocalStack
from stack.settings import StackSettings
from tests.pictures import good_pictures, truncated_jpeg
from triton_repo.configs import pipeline_models
from triton_repo.contract import ImageInference, serving_version
from triton_repo.inprocess import InProcessPipeline
from triton_repo.serving_settings import ServingSettings

#: Small batches, so that few pictures are several; as many crops as one picture has, so that a batch brings more.
SETTINGS = {
    "device": "cpu",
    "batch": 4,
    "dali_threads": 1,
    "detector_sizes": [1, 4],
    "tower_sizes": [4, 16],
    "text_sizes": [1],
    "crops": 8,
    "compiled": False,
}
BROKEN = {truncated_jpeg(): "undecodable", b"no picture": "unsupported_format", b"": "empty"}


@pytest.fixture(scope="module")
def manifest() -> ModelManifest:
    return load_manifest()


@pytest.fixture(scope="module")
def truth(manifest: ModelManifest) -> InProcessPipeline:
    return InProcessPipeline(manifest)


@pytest.fixture(scope="module", params=["fused", "ensemble"])
def triton(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalStack]:
    settings = StackSettings(components=("triton",), triton_profile=request.param, triton_gpu=SETTINGS)
    folder = tmp_path_factory.mktemp("triton")
    stack = LocalStack(folder, port_offset=free_port_offset(), workers=False, settings=settings)
    stack.up()
    yield stack
    stack.down(wipe=True)


@pytest.fixture
async def client(triton: LocalStack, manifest: ModelManifest) -> AsyncIterator[TritonClient]:
    async with TritonClient(triton.endpoints().triton_grpc, manifest.digest) as made:
        yield made


@pytest.fixture(scope="module")
def scenes() -> list[bytes]:
    return [scene.jpeg for scene in photos(10, STREAM_SEED, STREAM_SIZES)]


def assert_alike(found: ImageInference, expected: ImageInference) -> None:
    """The same objects; of two with the same score either may come first."""
    assert (found.width, found.height) == (expected.width, expected.height)
    assert found.embedding @ expected.embedding >= 0.9999
    assert len(found.boxes) == len(expected.boxes)
    assert found.scores == pytest.approx(expected.scores, abs=5e-3)  # DALI resizes within 0.1 of a grey level
    left = set(range(len(expected.boxes)))
    for row, box in enumerate(found.boxes):
        twin = min(left, key=lambda other: float(np.abs(expected.boxes[other] - box).max()))
        left.remove(twin)
        assert np.abs(expected.boxes[twin] - box).max() < 0.1
        assert found.class_ids[row] == expected.class_ids[twin]
        assert found.object_embeddings[row] @ expected.object_embeddings[twin] >= 0.9999


async def test_pictures_give_what_they_give_in_one_process(
    client: TritonClient, truth: InProcessPipeline, scenes: list[bytes]
) -> None:
    expected = [truth.infer(data) for data in scenes]
    found = await asyncio.gather(*[client.infer_image(data) for data in scenes])
    for result, wanted in zip(found, expected, strict=True):
        assert_alike(result, wanted)
    assert sum(len(result.boxes) for result in found) > len(scenes)


@pytest.mark.parametrize("kind", ["png", "cmyk", "1x1", "exif-6", "6000x4000"])
async def test_every_kind_of_file_is_taken_upright(client: TritonClient, truth: InProcessPipeline, kind: str) -> None:
    found, expected = await client.infer_image(good_pictures()[kind]), truth.infer(good_pictures()[kind])
    assert (found.width, found.height) == (expected.width, expected.height)
    assert len(found.boxes) == len(expected.boxes)
    assert found.embedding @ expected.embedding >= 0.9999


async def test_texts_give_what_they_give_in_one_process(client: TritonClient, truth: InProcessPipeline) -> None:
    tokens = ClipTokenizer().encode(["a photo of a striped red circle", "dog"])
    assert await client.embed_text(tokens) == pytest.approx(truth.embed_text(tokens), abs=1e-4)


async def test_broken_pictures_leave_their_neighbours_in_the_batch_alone(
    client: TritonClient, truth: InProcessPipeline, scenes: list[bytes]
) -> None:
    batch = [scenes[0], *BROKEN, scenes[1]] * 3
    results = await asyncio.gather(*[client.infer_image(data) for data in batch], return_exceptions=True)
    for data, result in zip(batch, results, strict=True):
        if data in BROKEN:
            assert isinstance(result, ItemBroken)
            assert result.code == BROKEN[data]
        else:
            assert isinstance(result, ImageInference)
            assert_alike(result, truth.infer(data))


async def test_several_pictures_in_one_request_are_refused(
    triton: LocalStack, client: TritonClient, manifest: ModelManifest, scenes: list[bytes]
) -> None:
    pictures = InferInput("image", [2, len(scenes[0])], "UINT8")
    pictures.set_data_from_numpy(np.stack([np.frombuffer(scenes[0], np.uint8)] * 2))
    async with InferenceServerClient(triton.endpoints().triton_grpc) as raw:
        with pytest.raises(InferenceServerException, match="send them one by one") as refused:
            await raw.infer("image_pipeline", [pictures], model_version=str(serving_version(manifest.digest)))
    assert refused.value.status() == "StatusCode.INVALID_ARGUMENT"
    await client.infer_image(scenes[0])


async def test_cancelled_requests_leave_the_server_answering(
    triton: LocalStack, client: TritonClient, truth: InProcessPipeline, scenes: list[bytes]
) -> None:
    for _ in range(2):
        async with TritonClient(triton.endpoints().triton_grpc, concurrency=64) as crowd:
            calls = [asyncio.create_task(crowd.infer_image(data)) for data in scenes * 6]
            # Some of the others wait now, some are worked on.
            await asyncio.wait(calls, return_when=asyncio.FIRST_COMPLETED)
            for call in calls[1::2]:
                call.cancel()
            results = await asyncio.gather(*calls, return_exceptions=True)
        assert {type(result) for result in results} == {ImageInference, asyncio.CancelledError}
    assert_alike(await client.infer_image(scenes[0]), truth.infer(scenes[0]))
    assert triton.status().components["triton"].restarts == 0


def test_public_models_have_the_tensors_of_the_profile_for_cpu(triton: LocalStack, manifest: ModelManifest) -> None:
    for model in pipeline_models(manifest, ServingSettings()):
        if model.name in {"image_pipeline", "clip_text"}:
            with urllib.request.urlopen(
                f"http://{triton.endpoints().triton_http}/v2/models/{model.name}/config"
            ) as reply:
                served = json.load(reply)
            for kind, specs in (("input", model.inputs), ("output", model.outputs)):
                found = [(t["name"], t["data_type"], tuple(int(d) for d in t["dims"])) for t in served[kind]]
                assert found == [(spec.name, f"TYPE_{spec.dtype}", spec.dims) for spec in specs]
