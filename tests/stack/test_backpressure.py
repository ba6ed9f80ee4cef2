"""Neither long work, nor a dependency that is down, nor a backlog costs a partition, an event, or memory."""

from __future__ import annotations

import socket
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from confluent_kafka import Consumer
from rich.console import Console

from load_tests.backlog import drain_backlog, figures, instant_triton, vision_worker
from load_tests.backlog import publish as publish_uploads
from load_tests.running import free_port_offset
from sightlog.consuming import consumer_at_end
from stack.kafka import admin_client, group_lag
from stack.local import LocalStack
from stack.settings import StackSettings
from tests.stack.faulty_runs import Run, publish

#: A piece of work; the group waits a quarter of that for a member that has to join again.
WORK_S = 4.0
EVENTS = 24


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a Kafka of its own."""
    settings = StackSettings(components=("kafka",), workers=False)
    local = LocalStack(tmp_path_factory.mktemp("slow"), port_offset=free_port_offset(), settings=settings)
    local.up()
    yield local.endpoints().kafka
    local.down(wipe=True)


def members(bootstrap: str, group: str) -> set[str]:
    admin = admin_client(bootstrap)
    return {member.member_id for member in admin.describe_consumer_groups([group])[group].result(10).members}


def test_work_that_outlasts_the_rebalance_timeout_loses_nothing_when_workers_come_and_go(
    broker: str, tmp_path: Path
) -> None:
    topic = f"slow-{uuid.uuid4().hex[:8]}"
    events = publish(broker, topic, EVENTS)
    first, second = (Run("slow", broker, topic, tmp_path / name, str(WORK_S)) for name in _folders(tmp_path))
    first.start()
    assert first.await_finished(1, patience=30), first.log
    alone = members(broker, f"sightlog-{topic}-window")
    # Another one joins while eight pieces of work are under way, and leaves in the middle of its own.
    second.start()
    assert second.await_finished(1, patience=40), second.log
    both = members(broker, f"sightlog-{topic}-window")
    assert alone < both, "the first one was thrown out of the group"
    assert second.end() == 0
    assert first.await_finished(EVENTS, patience=40) or _all(first, second) == events, first.log
    deadline = time.monotonic() + 30
    while group_lag(broker, f"sightlog-{topic}-window", topic):
        assert time.monotonic() < deadline, "not acknowledged"
        time.sleep(0.2)
    assert _all(first, second) == events
    assert members(broker, f"sightlog-{topic}-window") == alone
    began = time.monotonic()
    assert first.end() == 0
    assert time.monotonic() - began < 20


def test_worker_that_waits_for_triton_stays_in_its_group_ends_when_told_and_loses_nothing(
    broker: str, tmp_path: Path
) -> None:
    count = 300
    publish_uploads(broker, count, 500)
    embedded = consumer_at_end(broker, "images.embedded")
    nobody = f"127.0.0.1:{_free_port()}"
    with vision_worker(broker, nobody, tmp_path) as worker:
        _await(lambda: "holding" in (tmp_path / "worker.log").read_text(), "it does not hold")
        before = members(broker, "sightlog-vision")
        time.sleep(3)  # the window and everything before it are full now; nobody says when
        assert members(broker, "sightlog-vision") == before
        assert group_lag(broker, "sightlog-vision", "images") == count
        worker.terminate()
        assert worker.wait(20) == 0
    with instant_triton(tmp_path) as triton, vision_worker(broker, triton, tmp_path):
        seen: set[str] = set()
        _await(lambda: _read(embedded, seen) == count, "not everything was seen")
    embedded.close()


@pytest.mark.parametrize(("count", "size"), [(15_000, 1_000), (400, 1_000_000)], ids=["small", "large"])
def test_backlog_does_not_grow_a_worker(broker: str, tmp_path: Path, count: int, size: int) -> None:
    publish_uploads(broker, count, size)
    samples = drain_backlog(broker, tmp_path, count, Console(stderr=True))
    found = figures(samples, count, 1.0)
    assert found["rss_max_mb"] <= 250, found


def _read(consumer: Consumer, seen: set[str]) -> int:
    for message in consumer.consume(500, 0.2):
        if message.error() is None:
            seen.add((message.key() or b"").decode())
    return len(seen)


def _await(condition: Callable[[], bool], problem: str, seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, problem
        time.sleep(0.05)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _all(*runs: Run) -> set[str]:
    return {event for run in runs for event in run.finished}


def _folders(folder: Path) -> list[str]:
    for name in ("first", "second"):
        (folder / name).mkdir()
    return ["first", "second"]
