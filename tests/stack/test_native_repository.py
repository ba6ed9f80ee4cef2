"""A repository for NVIDIA's container on the bundled Triton: its python form, and its own row of steps."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Iterator

import numpy as np
import pytest

from agents.delivery.failures import ItemBroken
from agents.inference.client import TritonClient
from load_tests.running import free_port_offset
from models.decoding import ImageError
from models.manifest import ModelManifest
from stack.local import LocalStack
from stack.settings import StackSettings
from tests.pictures import bomb, encoded, good_pictures, photo, truncated_jpeg
from tests.scripted_detector import BOXES, scripted_manifest
from tests.stand_in_dali import stand_in_dali
from triton_repo.build import build_repository
from triton_repo.dali_inputs import dali_ready
from triton_repo.inprocess import InProcessPipeline
from triton_repo.serving_settings import ServingSettings


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> ModelManifest:
    return scripted_manifest(tmp_path_factory.mktemp("scripted"))


@pytest.fixture(scope="module", params=["its python form", "its own steps"])
def triton(
    request: pytest.FixtureRequest, manifest: ModelManifest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[LocalStack]:
    """Triton on a repository whose tower takes fewer crops than a picture brings."""
    folder = tmp_path_factory.mktemp("native")
    with stand_in_dali():
        repository = build_repository(manifest, folder / "repository", ServingSettings(max_crops=3), "onnxruntime")
    if request.param == "its own steps":  # of which Python runs each, for want of a GPU
        pipeline = repository / "image_pipeline"
        shutil.copyfile(pipeline / "config.pbtxt", pipeline / "configs" / "cpu.pbtxt")
    settings = StackSettings(components=("triton",), triton_repository=repository)
    stack = LocalStack(folder / "data", port_offset=free_port_offset(), workers=False, settings=settings)
    stack.up()
    yield stack
    stack.down(wipe=True)


async def test_pictures_are_seen_and_refused_as_in_one_process(triton: LocalStack, manifest: ModelManifest) -> None:
    truth = InProcessPipeline(manifest)
    bright = encoded(photo("coffee.png").convert("RGB"), "JPEG")
    # Other files are made ready for DALI as uncompressed pictures, which Python's `preprocess` does not read.
    good = [bright, *(data for data in good_pictures().values() if dali_ready(data).startswith(b"\xff\xd8"))]
    assert len(good) > 10
    bad = [truncated_jpeg(), b"", b"no picture", bomb(8000)]
    async with TritonClient(triton.endpoints().triton_grpc, manifest.digest) as client:
        found = await asyncio.gather(*[client.infer_image(data) for data in good + bad], return_exceptions=True)
    for data, result in zip(good, found, strict=False):
        assert not isinstance(result, BaseException), result
        expected = truth.infer(data)
        assert (result.width, result.height) == (expected.width, expected.height)
        assert np.abs(result.boxes - expected.boxes).max(initial=0) < 0.01
        assert result.embedding @ expected.embedding > 0.9999
        assert np.einsum("nd,nd->n", result.object_embeddings, expected.object_embeddings).min(initial=1) > 0.9999
    assert not isinstance(found[0], BaseException)
    assert len(found[0].boxes) == len(BOXES) == 3
    for data, result in zip(bad, found[len(good) :], strict=True):
        with pytest.raises(ImageError) as expected_refusal:
            truth.infer(data)
        assert isinstance(result, ItemBroken)
        assert (result.code, result.message) == (expected_refusal.value.code, expected_refusal.value.message)
