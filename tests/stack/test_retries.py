"""The retry worker on a real broker: each record waits its delay, comes back as it was, and a kill loses none."""

from __future__ import annotations

import signal
import time
import uuid
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
from confluent_kafka import Consumer, Producer

from load_tests.running import free_port_offset
from sightlog.consuming import consumer_at_end
from sightlog.events import OutgoingHeaders
from sightlog.fields import now
from sightlog.history import HISTORY_HEADER, History, Origin
from stack.kafka import group_lag
from stack.local import LocalStack
from stack.settings import StackSettings

GROUP = "sightlog-retry"
#: Seconds by tier.
TIERS = {"images.retry.1s": 1.0, "images.retry.3s": 3.0, "images.retry.1h": 3600.0}


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalStack]:
    """Kafka and a retry worker with short tiers."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SIGHTLOG_TOPIC_RETRY_TIERS", "1s,3s,1h")
        settings = StackSettings(components=("kafka",), worker_names=("retry",))
        local = LocalStack(tmp_path_factory.mktemp("retries"), port_offset=free_port_offset(), settings=settings)
        local.up()
        yield local
        local.down(wipe=True)


def history_header(offset: int) -> tuple[str, bytes]:
    at = now()
    origin = Origin(topic="images", partition=0, offset=offset, timestamp=at)
    return History(origin=origin, attempts=1, waits=1, first_failed_at=at).to_header()


def put(bootstrap: str, topic: str, keys: list[str]) -> None:
    producer = Producer({"bootstrap.servers": bootstrap})
    for number, key in enumerate(keys):
        headers: OutgoingHeaders = [("ce_id", key.encode()), ("odd", b"\xff\x00"), history_header(number)]
        producer.produce(topic, b"value of " + key.encode(), key, headers=headers)
        producer.poll(0)
    assert producer.flush(30) == 0


def came_back(consumer: Consumer, wanted: int, patience: float = 40.0) -> Iterator[Any]:
    seen, heard = 0, time.monotonic()
    while (messages := consumer.consume(100, timeout=0.5)) or seen < wanted:
        assert time.monotonic() - heard < patience, f"{seen} of {wanted}"
        for message in messages:
            assert message.error() is None
            seen, heard = seen + 1, time.monotonic()
            yield message


def test_records_come_back_as_they_were_after_the_delay_of_their_tier(broker: LocalStack) -> None:
    bootstrap = broker.endpoints().kafka
    images = consumer_at_end(bootstrap, "images")
    slow, fast, stuck = ([f"{name}-{uuid.uuid4().hex}" for _ in range(5)] for name in ("slow", "fast", "stuck"))
    # A tier that waits for an hour comes first, and holds up nobody.
    put(bootstrap, "images.retry.1h", stuck)
    put(bootstrap, "images.retry.3s", slow)
    put(bootstrap, "images.retry.1s", fast)
    published = time.time()
    back = list(came_back(images, 10))
    images.close()
    keys = [message.key().decode() for message in back]
    assert (set(keys[:5]), set(keys[5:])) == (set(fast), set(slow))
    for message in back:
        key = message.key()
        assert message.value() == b"value of " + key
        headers = dict(message.headers())
        assert (headers["ce_id"], headers["odd"]) == (key, b"\xff\x00")
        history = History.from_headers(message.headers())
        assert history is not None
        assert (history.attempts, history.waits) == (1, 1)
    waited = {message.key().decode(): message.timestamp()[1] / 1000 - published for message in back}
    assert min(waited[key] for key in fast) > 0.8
    assert min(waited[key] for key in slow) > 2.8
    assert group_lag(bootstrap, GROUP, "images.retry.1h") == len(stuck)


def test_killing_the_worker_loses_nothing(broker: LocalStack) -> None:
    bootstrap = broker.endpoints().kafka
    images = consumer_at_end(bootstrap, "images")
    keys = [uuid.uuid4().hex for _ in range(3000)]
    put(bootstrap, "images.retry.1s", keys)
    found: Counter[str] = Counter()
    kills = [100, 900, 1800]
    for message in came_back(images, len(keys)):
        found[message.key().decode()] += 1
        if kills and len(found) >= kills[0]:
            del kills[0]
            broker.kill("worker-retry")
    images.close()
    assert kills == []
    assert set(found) == set(keys)


def test_a_worker_that_waits_for_an_hour_ends_when_it_is_told_to(broker: LocalStack) -> None:
    bootstrap = broker.endpoints().kafka
    put(bootstrap, "images.retry.1h", ["x"])
    broker.await_component("worker-retry", restarts=3)
    before = broker.status().components["worker-retry"].restarts
    broker.kill("worker-retry", signal.SIGTERM)
    broker.await_component("worker-retry", restarts=before + 1)
    log = broker.log_path("worker-retry").read_text()
    assert "Traceback" not in log
    assert HISTORY_HEADER not in log
