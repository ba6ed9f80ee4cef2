"""Several processes of one worker share its topic: every event ends once, and each process has its part."""

from __future__ import annotations

import time
import uuid
from collections import Counter
from collections.abc import Iterator

import pytest
from confluent_kafka import Consumer, Producer, TopicPartition
from confluent_kafka.admin import ConsumerGroupDescription

from load_tests.running import free_port_offset
from models.photos import photos
from sightlog.consuming import consumer_at_end
from sightlog.documents import EmbeddingDocument
from sightlog.events import new_upload
from stack.kafka import admin_client, group_lag
from stack.local import LocalStack
from stack.settings import StackSettings

EVENTS = 120
GROUP = "sightlog-vision"


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalStack]:
    """Kafka, Triton and three vision workers."""
    settings = StackSettings(components=("kafka", "triton"), worker_names=("vision",), vision_workers=3)
    local = LocalStack(tmp_path_factory.mktemp("three"), port_offset=free_port_offset(), settings=settings)
    local.up()
    yield local
    local.down(wipe=True)


def group_of(local: LocalStack) -> ConsumerGroupDescription:
    admin = admin_client(local.endpoints().kafka)  # collected with its requests otherwise
    return admin.describe_consumer_groups([GROUP])[GROUP].result(timeout=10)


def partitions_of(local: LocalStack) -> dict[str, set[int]]:
    """What each process of the group has, by its name there."""
    return {
        member.client_id: {place.partition for place in member.assignment.topic_partitions}
        for member in group_of(local).members
    }


def test_three_vision_workers_share_the_events_and_each_event_ends_once(three: LocalStack) -> None:
    bootstrap = three.endpoints().kafka
    keys = [uuid.uuid4().hex for _ in range(EVENTS)]
    small = photos(8, seed=3, sizes=[(240, 180)])
    embedded = consumer_at_end(bootstrap, "images.embedded")
    producer = Producer({"bootstrap.servers": bootstrap})
    for number, key in enumerate(keys):
        value, headers = new_upload(small[number % len(small)].jpeg, source="/test").to_kafka()
        producer.produce("images", value, key, headers=headers)
    assert producer.flush(30) == 0
    found = Counter(document_ids(embedded, EVENTS))
    assert found == Counter(keys)
    assert list(document_ids(embedded, 0)) == []
    parts = partitions_of(three)
    assert sorted(name.rpartition("-")[0] for name in parts) == ["worker-vision", "worker-vision-2", "worker-vision-3"]
    assert sorted(map(len, parts.values())) == [2, 2, 2]
    assert set().union(*parts.values()) == set(range(6))
    written = {
        name: sum(embedded.get_watermark_offsets(TopicPartition("images", part))[1] for part in own)
        for name, own in parts.items()
    }
    assert min(written.values()) > 0
    assert sum(written.values()) == EVENTS
    embedded.close()
    assert three.log_path("worker-vision-3").stat().st_size > 0
    assert (three.data_dir / "workers" / "vision-2").is_dir()


def test_a_worker_is_ready_when_this_very_process_has_its_place(three: LocalStack) -> None:
    before = partitions_of(three)
    three.kill("worker-vision-2")
    three.await_component("worker-vision-2", restarts=1)
    after = partitions_of(three)
    (killed,) = set(before) - set(after)
    (fresh,) = set(after) - set(before)
    assert killed.startswith("worker-vision-2-")
    assert fresh.startswith("worker-vision-2-")
    assert after[fresh]
    assert group_lag(three.endpoints().kafka, GROUP, "images") == 0


def document_ids(consumer: Consumer, wanted: int, patience: float = 60.0) -> Iterator[str]:
    """Ids of the embedding documents as they come: `wanted` of them, and what else is there already."""
    seen, heard = 0, time.monotonic()
    while (messages := consumer.consume(100, timeout=1.0)) or seen < wanted:
        assert time.monotonic() - heard < patience, f"{seen} of {wanted}"
        for message in messages:
            assert message.error() is None
            seen, heard = seen + 1, time.monotonic()
            yield EmbeddingDocument.from_kafka(message.value()).image_id
