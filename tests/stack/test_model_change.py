"""Changing the model of a running stack loses nothing and mixes nothing."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from agents.index.connection import connect
from agents.settings import AgentSettings
from models.cli import models
from models.manifest import load_manifest
from models.photos import STREAM_SIZES, photos
from sightlog.client import Client
from sightlog.documents import IndexReceipt
from sightlog.events import new_upload
from sightlog.filters import SearchFilters
from sightlog.follow import Follower
from sightlog.search import SearchRequest
from stack.local import LocalStack


def use(*arguments: str) -> str:
    result = CliRunner().invoke(models, ["use", *arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


@pytest.fixture
def models_change(stack: LocalStack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Models may be changed; afterwards the stack runs the tiny ones again."""
    monkeypatch.setenv("SIGHTLOG_DATA_DIR", str(stack.data_dir))
    monkeypatch.setenv("SIGHTLOG_MODELS_DIR", str(tmp_path))
    yield
    use("tiny", "--detector", "tiny")


@pytest.mark.usefixtures("models_change")
async def test_a_change_under_load_loses_nothing_and_mixes_nothing(
    settings: AgentSettings, client: Client, stack: LocalStack
) -> None:
    tag = uuid.uuid4().hex
    tiny = load_manifest()
    made = {f"{tag}-{number}": photo for number, photo in enumerate(photos(150, 11, STREAM_SIZES))}
    with Follower(settings) as follower:
        for image_id, photo in made.items():
            client.publish_async(new_upload(photo.jpeg, source="/test", tags=(tag,)), key=image_id)
        client.flush()
        said = follower.outcomes(made)
        outcomes = dict(next(said) for _ in range(20))  # both models get some of them
        kafka = stack.pid("kafka")
        assert "Triton and the workers run it" in use("tiny", "--original-cap", "800")
        outcomes |= dict(said)
    assert {type(outcome) for outcome in outcomes.values()} == {IndexReceipt}
    assert stack.pid("kafka") == kafka

    other = load_manifest(AgentSettings.load().model_folder)
    assert other.digest != tiny.digest
    async with connect(settings.opensearch) as opensearch:
        held = {}
        for digest in (tiny.digest, other.digest):
            body = {"query": {"term": {"tags": tag}}, "size": 1000, "_source": False}
            found = await opensearch.search(index=f"images-{digest[:12]}", body=body)
            held[digest] = {hit["_id"] for hit in found["hits"]["hits"]}
    # Redelivered images may be in both indices: each is a whole index of its own.
    assert held[tiny.digest] | held[other.digest] == set(made)
    assert len(held[tiny.digest]) >= 20
    assert len(held[other.digest]) > 0

    request = SearchRequest(text="a red circle", k=1000, filters=SearchFilters(tags=(tag,)))
    reply = client.search(request, timeout=30)
    assert reply.model_digest == other.digest
    assert {hit.image_id for hit in reply.hits} == held[other.digest]
    use("tiny", "--detector", "tiny")
    reply = client.search(request, timeout=30)
    assert reply.model_digest == tiny.digest
    assert {hit.image_id for hit in reply.hits} == held[tiny.digest]
