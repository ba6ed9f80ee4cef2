"""MobileCLIPs of 512 and 768 dimensions from checkpoints on disk to answered searches, on the real stack."""

from __future__ import annotations

import uuid
from collections.abc import Iterator

import numpy as np
import orjson
import pytest
from click.testing import CliRunner

from agents.index.connection import connect
from agents.settings import AgentSettings
from load_tests.running import free_port_offset
from models.cli import models
from models.manifest import ModelManifest, load_manifest
from models.photos import Photo, photos
from models.tokenizer import ClipTokenizer
from sightlog.client import Client
from sightlog.documents import IndexReceipt
from sightlog.events import new_upload
from sightlog.filters import SearchFilters
from sightlog.follow import Follower
from sightlog.search import SearchRequest
from stack.local import LocalStack
from triton_repo.inprocess import InProcessPipeline

IMAGES = 50
PAIRS = {"MobileCLIP2-S0": 512, "MobileCLIP2-S3": 768}


def command(*arguments: str) -> str:
    result = CliRunner().invoke(models, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalStack]:
    """A running stack that reads its models from a store of its own."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("stack")
        patch.setenv("SIGHTLOG_DATA_DIR", str(folder))
        patch.setenv("SIGHTLOG_MODELS_DIR", str(tmp_path_factory.mktemp("store")))
        local = LocalStack(folder, port_offset=free_port_offset(), workers=True)
        local.up()
        yield local
        local.down(wipe=True)


@pytest.fixture(scope="module")
def made() -> list[Photo]:
    return photos(IMAGES, 31, [(640, 480), (480, 640)])


@pytest.fixture(scope="module", params=PAIRS)
def manifest(
    request: pytest.FixtureRequest, stack: LocalStack, tmp_path_factory: pytest.TempPathFactory
) -> ModelManifest:
    """The models in use, after an export from a checkpoint on disk."""
    from models.export.random_weights import calibrated_model, save_checkpoint

    name: str = request.param
    checkpoint = tmp_path_factory.mktemp("checkpoint") / f"{name}.safetensors"
    save_checkpoint(calibrated_model(name, seed=1), checkpoint)
    command("export-clip", name, "--checkpoint", str(checkpoint), "--precision", "fp16")
    checkpoint.unlink()
    assert f"{name}+tiny is in use" in command("use", name, "--detector", "tiny")
    return load_manifest(AgentSettings.load().model_folder)


async def test_images_are_found_by_words_and_by_pictures(manifest: ModelManifest, made: list[Photo]) -> None:
    settings = AgentSettings.load()
    dim = PAIRS[manifest.clip.name]
    assert orjson.loads(command("show", "--json"))["clip"]["dim"] == dim
    tag = uuid.uuid4().hex
    ids = [f"{tag}-{number}" for number in range(len(made))]
    with Client(settings) as client, Follower(settings) as follower:
        for image_id, photo in zip(ids, made, strict=True):
            client.publish_async(new_upload(photo.jpeg, source="/test", tags=(tag,)), key=image_id)
        client.flush()
        outcomes = dict(follower.outcomes(ids, patience=300))
        assert {type(outcome) for outcome in outcomes.values()} == {IndexReceipt}

        async with connect(settings.opensearch) as opensearch:
            for alias in (settings.index.images, settings.index.objects):
                ((index, body),) = (await opensearch.indices.get_mapping(index=alias)).items()
                assert index == f"{alias}-{manifest.digest[:12]}"
                assert body["mappings"]["properties"]["vector"]["dimension"] == dim
            found = await opensearch.search(
                index=settings.index.images, body={"query": {"term": {"tags": tag}}, "size": 100}
            )
        vectors = {hit["_id"]: np.array(hit["_source"]["vector"], np.float32) for hit in found["hits"]["hits"]}
        assert set(vectors) == set(ids)

        only = SearchFilters(tags=(tag,))
        for image_id, photo in list(zip(ids, made, strict=True))[::10]:
            reply = client.search(SearchRequest(image=photo.jpeg, k=5, filters=only), timeout=60)
            assert reply.model_digest == manifest.digest
            assert reply.hits[0].image_id == image_id
            assert reply.hits[0].cosine == pytest.approx(1, abs=1e-4)

        text = "a striped red circle"
        query = InProcessPipeline(manifest).embed_text(ClipTokenizer().encode([text]))[0]
        expected = sorted(ids, key=lambda image_id: -float(vectors[image_id] @ query))
        reply = client.search(SearchRequest(text=text, k=len(ids), filters=only), timeout=60)
        assert [hit.cosine for hit in reply.hits] == pytest.approx(
            [float(vectors[image_id] @ query) for image_id in expected], abs=1e-3
        )
        objects = client.search(SearchRequest(text=text, target="objects", k=5, filters=only), timeout=60)
        assert len(objects.hits) == 5


def test_an_earlier_model_finds_its_own_images_again(stack: LocalStack) -> None:
    with Client(AgentSettings.load()) as client:
        command("use", "tiny", "--detector", "tiny")
        reply = client.search(SearchRequest(text="a red circle"), timeout=60)
        assert reply.model_digest == load_manifest().digest
        assert reply.hits == ()
        command("use", "MobileCLIP2-S0", "--detector", "tiny")
        assert len(client.search(SearchRequest(text="a red circle"), timeout=60).hits) == 10
