"""A real Triton answers as the models do in one process, whatever the picture, its company and the caller's hurry."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from typing import Any

import numpy as np
import pytest
from PIL import Image

from agents.delivery.failures import DependencyDown, ItemBroken
from agents.inference.client import TritonClient
from load_tests.running import free_port_offset
from models.decoding import ImageError
from models.manifest import ModelManifest, load_manifest
from models.photos import photos
from models.tokenizer import ClipTokenizer
from stack.local import LocalStack
from stack.settings import StackSettings
from tests.pictures import bomb, encoded, good_pictures, photo, truncated_jpeg
from tests.scripted_detector import BOXES, scripted_manifest
from triton_repo.build import build_repository
from triton_repo.contract import ImageInference
from triton_repo.inprocess import InProcessPipeline

BROKEN = {"truncated": truncated_jpeg(), "text": b"no picture", "empty": b"", "bomb": bomb(8000)}
CODES = {
    "truncated": "undecodable",
    "text": "unsupported_format",
    "empty": "empty",
    "bomb": "too_many_pixels",
}


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> ModelManifest:
    return scripted_manifest(tmp_path_factory.mktemp("scripted"))


@pytest.fixture(scope="module")
def truth(manifest: ModelManifest) -> InProcessPipeline:
    return InProcessPipeline(manifest)


@pytest.fixture(scope="module")
def triton(manifest: ModelManifest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalStack]:
    """Only Triton, with the scripted detector, so that pictures with and without objects are known."""
    folder = tmp_path_factory.mktemp("triton")
    settings = StackSettings(
        components=("triton",), triton_repository=build_repository(manifest, folder / "repository")
    )
    stack = LocalStack(folder / "data", port_offset=free_port_offset(), workers=False, settings=settings)
    stack.up()
    yield stack
    stack.down(wipe=True)


@pytest.fixture
async def client(triton: LocalStack, manifest: ModelManifest) -> AsyncIterator[TritonClient]:
    async with TritonClient(triton.endpoints().triton_grpc, manifest.digest) as made:
        yield made


@pytest.fixture(scope="module")
def bright() -> bytes:
    return encoded(photo("coffee.png").convert("RGB"), "JPEG")


@pytest.fixture(scope="module")
def dark() -> bytes:
    return encoded(Image.new("RGB", (300, 200)), "PNG")


def assert_alike(found: ImageInference, expected: ImageInference) -> None:
    assert (found.width, found.height) == (expected.width, expected.height)
    assert found.boxes.shape == expected.boxes.shape
    assert np.abs(found.boxes - expected.boxes).max(initial=0) < 0.01
    assert found.scores.tolist() == expected.scores.tolist()
    assert found.class_ids.tolist() == expected.class_ids.tolist()
    assert found.embedding @ expected.embedding > 0.9999
    likeness = np.einsum("nd,nd->n", found.object_embeddings, expected.object_embeddings)
    assert likeness.min(initial=1) > 0.9999


async def test_every_kind_of_picture_gives_what_it_gives_in_one_process(
    client: TritonClient, truth: InProcessPipeline
) -> None:
    thin = {"3x2000": encoded(Image.new("RGB", (3, 2000), "white"), "PNG")}
    pictures = good_pictures() | thin
    found = await asyncio.gather(*[client.infer_image(data) for data in pictures.values()])
    for result, data in zip(found, pictures.values(), strict=True):
        assert_alike(result, truth.infer(data))
    assert {len(result.boxes) for result in found} >= {0, len(BOXES)}


async def test_the_committed_models_agree_with_one_process_on_generated_scenes(stack: LocalStack) -> None:
    truth = InProcessPipeline(load_manifest())
    scenes = [scene.jpeg for scene in photos(4, 5, [(1600, 1200), (640, 480)])]
    async with TritonClient(stack.endpoints().triton_grpc) as client:
        found = [await client.infer_image(scene) for scene in scenes]
    for result, scene in zip(found, scenes, strict=True):
        assert_alike(result, truth.infer(scene))
    assert sum(len(result.boxes) for result in found) > 0


async def test_other_models_than_the_callers_never_answer(triton: LocalStack, bright: bytes) -> None:
    async with TritonClient(triton.endpoints().triton_grpc, load_manifest().digest) as client:
        assert not await client.ready()
        with pytest.raises(DependencyDown, match="serves other models"):
            await client.infer_image(bright)
        with pytest.raises(DependencyDown, match="serves other models"):
            await client.embed_text(ClipTokenizer().encode(["a query"])[0])


async def test_a_picture_without_objects_gives_empty_arrays(client: TritonClient, dark: bytes) -> None:
    seen = await client.infer_image(dark)
    assert (seen.boxes.shape, seen.scores.shape, seen.class_ids.shape) == ((0, 4), (0,), (0,))
    assert seen.object_embeddings.shape == (0, 512)
    assert np.linalg.norm(seen.embedding) == pytest.approx(1, abs=1e-4)


async def test_texts_and_crops_give_what_they_give_in_one_process(
    client: TritonClient, truth: InProcessPipeline, bright: bytes
) -> None:
    tokens = ClipTokenizer().encode(["a photo of a striped red circle", "dog"])
    found = await asyncio.gather(client.embed_text(tokens), client.embed_text(tokens[1]))
    expected = truth.embed_text(tokens)
    assert found[0] == pytest.approx(expected, abs=1e-4)
    assert found[1] == pytest.approx(expected[1], abs=1e-4)
    square = np.asarray(Image.new("RGB", (128, 128), "teal"))
    whole = await client.infer_image(encoded(Image.fromarray(square), "PNG"))
    assert await client.embed_crops(square) == pytest.approx(whole.embedding, abs=1e-4)


@pytest.mark.parametrize("kind", sorted(BROKEN))
async def test_a_broken_picture_is_refused_with_the_code_of_one_process(
    client: TritonClient, truth: InProcessPipeline, kind: str
) -> None:
    with pytest.raises(ItemBroken) as refused:
        await client.infer_image(BROKEN[kind])
    with pytest.raises(ImageError) as expected:
        truth.infer(BROKEN[kind])
    assert refused.value.code == expected.value.code == CODES[kind]
    assert refused.value.message == expected.value.message


async def test_broken_pictures_leave_their_neighbours_in_the_batch_alone(
    client: TritonClient, truth: InProcessPipeline, bright: bytes, dark: bytes
) -> None:
    expected = {bright: truth.infer(bright), dark: truth.infer(dark)}
    batch = [bright, *BROKEN.values(), dark] * 8
    results = await asyncio.gather(*[client.infer_image(data) for data in batch], return_exceptions=True)
    for data, result in zip(batch, results, strict=True):
        if data in expected:
            assert isinstance(result, ImageInference)
            assert_alike(result, expected[data])
        else:
            assert isinstance(result, ItemBroken)


async def test_a_hundred_pictures_at_once_each_get_their_own_answer(
    triton: LocalStack, truth: InProcessPipeline
) -> None:
    sizes = [(40 + i % 7 * 90, 30 + i % 5 * 110) for i in range(100)]
    pictures = [encoded(photo("coffee.png").convert("RGB").resize(size), "JPEG") for size in sizes]
    async with TritonClient(triton.endpoints().triton_grpc, concurrency=100) as client:
        results = await asyncio.gather(*[client.infer_image(data) for data in pictures])
    assert [(r.width, r.height) for r in results] == sizes
    for result, data in list(zip(results, pictures, strict=True))[::9]:
        assert_alike(result, truth.infer(data))


async def test_cancelled_and_impatient_callers_do_not_harm_the_server(
    triton: LocalStack, client: TritonClient, bright: bytes
) -> None:
    server = triton.pid("triton")
    large = encoded(photo("coffee.png").convert("RGB").resize((1800, 1200)), "JPEG")
    outcomes: Counter[str] = Counter()
    for _ in range(4):
        async with TritonClient(triton.endpoints().triton_grpc, concurrency=64) as crowd:
            calls = [asyncio.create_task(crowd.infer_image(large, timeout=0.3 if i % 3 else 30)) for i in range(64)]
            await asyncio.wait(calls, return_when=asyncio.FIRST_COMPLETED)
            for call in calls[::2]:
                call.cancel()
            results = await asyncio.gather(*calls, return_exceptions=True)
        outcomes.update(type(result).__name__ for result in results)
        assert len((await client.infer_image(bright, timeout=30)).boxes) == len(BOXES)
    assert outcomes["CancelledError"] > 0
    assert outcomes["DependencyDown"] > 0
    assert triton.pid("triton") == server
    assert triton.status().components["triton"].restarts == 0


async def test_work_whose_caller_gave_up_is_not_done(triton: LocalStack, client: TritonClient, bright: bytes) -> None:
    large = encoded(photo("coffee.png").convert("RGB").resize((1800, 1200)), "JPEG")
    before = (await _statistics(triton, "preprocess"))["inference_count"]
    async with TritonClient(triton.endpoints().triton_grpc, concurrency=100) as crowd:
        calls = [crowd.infer_image(large, timeout=0.2) for _ in range(100)]
        results = await asyncio.gather(*calls, return_exceptions=True)
    assert any(isinstance(result, DependencyDown) for result in results)
    await client.infer_image(bright, timeout=60)  # stood behind them in the queue
    assert (await _statistics(triton, "preprocess"))["inference_count"] - before < 60


async def test_a_repeated_query_is_not_computed_again(triton: LocalStack, client: TritonClient) -> None:
    tokens = ClipTokenizer().encode(["a query that nobody else asks"])[0]

    async def hits() -> int:
        return int((await _statistics(triton, "clip_text"))["inference_stats"]["cache_hit"]["count"])

    async def hit() -> None:
        while await hits() == before:  # Triton counts a request after it has answered it
            pass

    before = await hits()
    first = await client.embed_text(tokens)
    assert (await client.embed_text(tokens)).tolist() == first.tolist()
    await asyncio.wait_for(hit(), 10)


async def _statistics(triton: LocalStack, model: str) -> Any:
    """What Triton has counted for a model since it started."""
    host, port = triton.endpoints().triton_http.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(f"GET /v2/models/{model}/stats HTTP/1.0\r\nHost: triton\r\nConnection: close\r\n\r\n".encode())
    _, _, body = (await reader.read()).partition(b"\r\n\r\n")
    writer.close()
    return json.loads(body)["model_stats"][0]
