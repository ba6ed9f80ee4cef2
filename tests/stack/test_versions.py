"""What searches see of an image is what its log says, in every order, on real components."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Iterable
from typing import Any

import pytest
from confluent_kafka import OFFSET_BEGINNING, Consumer, TopicPartition

from agents.app import model_identity
from agents.index.connection import connect, ensure_indices
from agents.index.mappings import index_name
from agents.index.writer import IndexWriter
from agents.settings import AgentSettings, IndexSettings
from models.manifest import load_manifest
from models.photos import Photo, photos
from sightlog.client import Client
from sightlog.documents import IndexReceipt, read_change
from sightlog.events import ImageEvent, new_deletion, new_update, new_upload
from sightlog.filters import SearchFilters
from sightlog.follow import Follower
from sightlog.search import SearchRequest


@pytest.fixture(scope="module")
def pictures() -> list[Photo]:
    return photos(4, seed=66, sizes=[(640, 480), (800, 600)])


def new_id() -> str:
    return f"versions-{uuid.uuid4().hex[:12]}"


def publish(settings: AgentSettings, client: Client, key: str, *events: ImageEvent) -> list[IndexReceipt]:
    """Publish one after the other, each when the last one has its receipt."""
    receipts = []
    for event in events:
        with Follower(settings) as follower:
            client.publish(event, key=key)
            ((_id, outcome),) = follower.outcomes([key])
        assert isinstance(outcome, IndexReceipt), outcome
        receipts.append(outcome)
    return receipts


async def _held(settings: AgentSettings, index: IndexSettings, image_id: str) -> dict[str, Any]:
    held: dict[str, Any] = {}
    async with connect(settings.opensearch) as client:
        for alias in (index.images, index.objects):
            body = {"query": {"term": {"image_id": image_id}}, "size": 100}
            reply = await client.search(index=alias, body=body)
            held |= {hit["_id"]: hit["_source"] for hit in reply["hits"]["hits"]}
    return held


def held(settings: AgentSettings, image_id: str) -> dict[str, Any]:
    """The documents of an image, by id, that a search can find."""
    return asyncio.run(_held(settings, settings.index, image_id))


def tagged(client: Client, tag: str) -> list[str]:
    """The images that a search with a filter on the tag finds, and of their objects."""
    filters = SearchFilters(tags=(tag,))
    found = []
    for target in ("images", "objects"):
        reply = client.search(SearchRequest(text="anything", target=target, k=50, filters=filters), timeout=30)
        found += [hit.image_id for hit in reply.hits]
    return found


def test_update_deletion_and_upload_follow_the_log(
    settings: AgentSettings, client: Client, pictures: list[Photo]
) -> None:
    image_id, before, after = new_id(), f"before-{uuid.uuid4().hex}", f"after-{uuid.uuid4().hex}"
    upload = new_upload(pictures[0].jpeg, source="/test", tags=(before,), metadata={"n": 1})
    (receipt,) = publish(settings, client, image_id, upload)
    assert (receipt.kind, receipt.reused) == ("uploaded", False)
    found = tagged(client, before)
    assert found == [image_id] * (1 + receipt.objects)
    vector = held(settings, image_id)[image_id]["vector"]

    (receipt,) = publish(settings, client, image_id, new_update(source="/test", tags=(after,)))
    assert receipt.kind == "updated"
    assert (tagged(client, before), tagged(client, after)) == ([], found)
    documents = held(settings, image_id)
    assert documents[image_id]["vector"] == vector
    assert {source["metadata"]["n"] for source in documents.values()} == {1}

    (receipt,) = publish(settings, client, image_id, new_deletion(source="/test"))
    assert receipt.kind == "deleted"
    assert (tagged(client, after), held(settings, image_id)) == ([], {})

    (receipt,) = publish(settings, client, image_id, upload)
    assert (receipt.superseded, receipt.reused) == (False, True), "the index, or the worker, has seen these bytes"
    assert tagged(client, before) == found


def test_same_bytes_under_another_name_are_not_inferred_again(
    settings: AgentSettings, client: Client, pictures: list[Photo]
) -> None:
    first, second = new_id(), new_id()
    upload = new_upload(pictures[1].jpeg, source="/test")
    receipts = [publish(settings, client, image_id, upload)[0] for image_id in (first, second)]
    assert [receipt.reused for receipt in receipts] == [False, True]
    one, other = held(settings, first), held(settings, second)
    assert one[first]["vector"] == other[second]["vector"]
    assert [one[id_]["vector"] for id_ in sorted(one)] == [other[id_]["vector"] for id_ in sorted(other)]


def test_upload_with_fewer_objects_leaves_no_orphans(
    settings: AgentSettings, client: Client, pictures: list[Photo]
) -> None:
    image_id = new_id()
    for picture in (*pictures, *reversed(pictures)):
        (receipt,) = publish(settings, client, image_id, new_upload(picture.jpeg, source="/test"))
        documents = held(settings, image_id)
        assert len(documents) == 1 + receipt.objects
        assert {source["version"] for source in documents.values()} == {receipt.version}


def test_an_index_built_again_from_the_log_says_the_same(
    settings: AgentSettings, client: Client, pictures: list[Photo]
) -> None:
    updated, deleted = new_id(), new_id()
    upload = new_upload(pictures[2].jpeg, source="/test", tags=("old",))
    publish(settings, client, updated, upload, new_update(source="/test", tags=("new",), metadata={"a": {"b": 2}}))
    publish(settings, client, deleted, upload, new_deletion(source="/test"))

    index = IndexSettings(images="rebuilt-images", objects="rebuilt-objects", refresh_interval="100ms")
    model = model_identity(load_manifest(settings.model_folder))
    # The last record first: the order in which a rebuild reads several partitions must not matter.
    changes = [read_change(value) for value in reversed(list(_log(settings, {updated, deleted})))]

    async def rebuild() -> tuple[dict[str, Any], ...]:
        async with connect(settings.opensearch) as opensearch:
            await ensure_indices(opensearch, index, model)
            writer = IndexWriter(opensearch, index, model)
            for change in changes:
                await writer.write([change])
            assert await opensearch.indices.exists(index=index_name(index.images, model))
        return await _held(settings, index, updated), await _held(settings, index, deleted)

    rebuilt = asyncio.run(rebuild())
    assert rebuilt == (held(settings, updated), {})
    assert {tuple(source["tags"]) for source in rebuilt[0].values()} == {("new",)}


def _log(settings: AgentSettings, keys: Iterable[str]) -> Iterable[bytes]:
    """The records of `images.embedded` with these keys, from the beginning."""
    wanted = {key.encode() for key in keys}
    topic = settings.topics.embedded
    consumer = Consumer(
        {"bootstrap.servers": settings.kafka, "group.id": uuid.uuid4().hex, "enable.auto.commit": False}
    )
    try:
        partitions = consumer.list_topics(topic, timeout=10).topics[topic].partitions
        consumer.assign([TopicPartition(topic, partition, OFFSET_BEGINNING) for partition in partitions])
        while (message := consumer.poll(3.0)) is not None:
            value = message.value()
            if message.error() is None and message.key() in wanted and value is not None:
                yield value
    finally:
        consumer.close()
