"""Workers are killed in the middle of a stream; afterwards every event is accounted for, exactly once."""

from __future__ import annotations

import asyncio
import uuid
from collections import Counter
from typing import Any

from confluent_kafka import Producer

from agents.index.connection import connect
from agents.settings import AgentSettings
from load_tests.publishing import distinct
from models.photos import photos
from sightlog.documents import IndexReceipt
from sightlog.events import new_upload
from sightlog.follow import Follower
from stack.local import LocalStack

EVENTS = 2000
KILLS_EACH = 3


def test_killing_the_workers_loses_nothing_doubles_nothing_and_leaves_no_orphans(
    stack: LocalStack, settings: AgentSettings
) -> None:
    tag = f"kills-{uuid.uuid4().hex[:8]}"
    image_ids = [f"{tag}-{number}" for number in range(EVENTS)]
    small = photos(40, seed=5, sizes=[(240, 180), (180, 240)])
    producer = Producer({"bootstrap.servers": settings.kafka})
    # Killed when this many images are searchable: the vision worker and the indexer in turns.
    kills = {EVENTS * (n + 1) // (2 * KILLS_EACH + 1): ("worker-vision", "worker-indexer")[n % 2] for n in range(6)}
    killed: Counter[str] = Counter()
    dead = []
    with Follower(settings) as follower:
        for number, image_id in enumerate(image_ids):
            event = new_upload(distinct(small[number % len(small)].jpeg), source="/test", tags=(tag,))
            value, headers = event.to_kafka()
            producer.produce(settings.topics.images, value, image_id, headers=headers)
        assert producer.flush(60) == 0
        for seen, (image_id, outcome) in enumerate(follower.outcomes(image_ids), 1):
            if not isinstance(outcome, IndexReceipt):
                dead.append(image_id)
            if worker := kills.get(seen):
                stack.kill(worker)
                killed[worker] += 1
    assert killed == {"worker-vision": KILLS_EACH, "worker-indexer": KILLS_EACH}
    assert dead == []
    images, objects = asyncio.run(_documents(settings, tag))
    by_id = Counter(image["image_id"] for image in images)
    assert set(image_ids) - set(by_id) == set(), "missing"
    assert [image_id for image_id, count in by_id.items() if count > 1] == [], "duplicate"
    expected = {f"{image['image_id']}#{n}" for image in images for n in range(image["object_count"])}
    versions = {image["image_id"]: image["version"] for image in images}
    found = Counter(thing["_id"] for thing in objects)
    assert set(found) - expected == set(), "orphans"
    assert expected - set(found) == set(), "missing objects"
    assert max(found.values()) == 1
    assert all(thing["version"] == versions[thing["image_id"]] for thing in objects)


async def _documents(settings: AgentSettings, tag: str) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """All image and object documents with a tag."""
    async with connect(settings.opensearch) as client:
        await client.indices.refresh(index=f"{settings.index.images},{settings.index.objects}")
        return await _all(client, settings.index.images, tag), await _all(client, settings.index.objects, tag)


async def _all(client: Any, index: str, tag: str) -> list[dict[str, Any]]:
    body = {
        "size": 1000,
        "query": {"term": {"tags": tag}},
        "_source": ["image_id", "object_count", "version"],
        "sort": [{"image_id": "asc"}, {"version": "asc"}, {"_doc": "asc"}],
    }
    point = await client.create_pit(index=index, params={"keep_alive": "1m"})
    body["pit"] = {"id": point["pit_id"], "keep_alive": "1m"}
    documents: list[dict[str, Any]] = []
    while hits := (await client.search(body=body))["hits"]["hits"]:
        documents += [{"_id": hit["_id"], **hit["_source"]} for hit in hits]
        body["search_after"] = hits[-1]["sort"]
    await client.delete_pit(body={"pit_id": [point["pit_id"]]})
    return documents
