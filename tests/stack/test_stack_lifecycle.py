"""The life of a local stack on the real components: start, faults, leftovers of a hard kill, neighbours, end.

One stack with a tiny model serves all tests of this file; each asks for a running one and may leave it broken.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from load_tests.running import free_port_offset
from stack.errors import NotRunningError, PreflightError
from stack.kafka import DEFAULT_TOPICS, admin_client
from stack.local import LocalStack
from stack.ports import Endpoints
from stack.privileges import UNPRIVILEGED_USER
from stack.processes import SHARED_MEMORY, SUPERVISOR_ROLE, shared_memory_prefix, stack_processes
from stack.settings import StackSettings

ROOT = Path(__file__).parents[2]

MODEL = """
import numpy as np
import triton_python_backend_utils as pb_utils
class TritonPythonModel:
    def execute(self, requests):
        tensors = [pb_utils.get_input_tensor_by_name(request, "x").as_numpy() for request in requests]
        return [pb_utils.InferenceResponse([pb_utils.Tensor("y", 2 * x)]) for x in tensors]
"""
CONFIG = """
name: "double"
backend: "python"
input [{ name: "x" data_type: TYPE_FP32 dims: [1] }]
output [{ name: "y" data_type: TYPE_FP32 dims: [1] }]
instance_group [{ kind: KIND_CPU count: 1 }]
"""


def repository(folder: Path) -> Path:
    """A model repository with one small python model."""
    version = folder / "double" / "1"
    version.mkdir(parents=True)
    (version / "model.py").write_text(MODEL)
    (version.parent / "config.pbtxt").write_text(CONFIG)
    return folder


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalStack]:
    """A stack whose data folder lies below one that only its owner may pass, as a checkout in a home does."""
    private = tmp_path_factory.mktemp("home")
    private.chmod(0o700)
    settings = StackSettings(
        data_dir=private / "checkout" / "data",
        port_offset=free_port_offset(),
        workers=False,
        stop_timeout_s=8,
        triton_repository=repository(private / "models"),
        triton_ready_models=("double",),
    )
    local = LocalStack(settings=settings)
    yield local
    local.down(wipe=True)


@pytest.fixture
def running(local: LocalStack) -> LocalStack:
    local.up()
    return local


def call(url: str, body: Any = None, method: str | None = None) -> Any:
    """One JSON request."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"}, method=method)
    with urllib.request.urlopen(request, timeout=30) as response:
        text = response.read()
        return json.loads(text) if text else None


def double(endpoints: Endpoints, value: float) -> float:
    tensor = {"name": "x", "datatype": "FP32", "shape": [1], "data": [value]}
    answer = call(f"http://{endpoints.triton_http}/v2/models/double/infer", {"inputs": [tensor]})
    return float(answer["outputs"][0]["data"][0])


def topics(local: LocalStack) -> dict[str, int]:
    """Topic to number of partitions."""
    known = admin_client(local.endpoints().kafka).list_topics(timeout=10).topics
    return {name: len(topic.partitions) for name, topic in known.items()}


def pids(local: LocalStack) -> dict[str, int]:
    return {name: local.pid(name) for name in (*local.status().components, SUPERVISOR_ROLE)}


def test_every_part_serves(running: LocalStack) -> None:
    endpoints = running.endpoints()
    assert topics(running).items() >= {spec.name: spec.partitions for spec in DEFAULT_TOPICS}.items()
    assert double(endpoints, 21) == 42
    assert Endpoints.model_validate_json((running.data_dir / "endpoints.json").read_text()) == endpoints


def test_open_search_finds_the_nearest_vector(running: LocalStack) -> None:
    index = f"{running.endpoints().opensearch}/vectors"
    vector = {
        "type": "knn_vector",
        "dimension": 2,
        "space_type": "cosinesimil",
        "method": {"name": "hnsw", "engine": "lucene"},
    }
    call(index, {"settings": {"index": {"knn": True}}, "mappings": {"properties": {"v": vector}}}, "PUT")
    for name, value in (("east", [1, 0]), ("north", [0, 1])):
        call(f"{index}/_doc/{name}?refresh=true", {"v": value}, "PUT")
    found = call(f"{index}/_search", {"query": {"knn": {"v": {"vector": [1, 0.1], "k": 1}}}})
    assert [hit["_id"] for hit in found["hits"]["hits"]] == ["east"]
    call(index, method="DELETE")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root has to drop to another user")
def test_open_search_runs_unprivileged_below_a_closed_folder(running: LocalStack) -> None:
    process = psutil.Process(running.pid("opensearch"))
    assert process.username() == UNPRIVILEGED_USER
    status = Path(f"/proc/{process.pid}/status").read_text()
    effective = int(next(line.split()[1] for line in status.splitlines() if line.startswith("CapEff")), 16)
    assert effective.bit_count() <= 1


def test_a_second_up_leaves_the_running_stack_alone(running: LocalStack) -> None:
    before = pids(running)
    assert LocalStack(running.data_dir).up() == "already running"
    assert pids(running) == before


def test_a_killed_broker_comes_back_with_its_topics(running: LocalStack) -> None:
    before = running.status().components["kafka"]
    running.kill("kafka")
    after = running.await_component("kafka", restarts=before.restarts + 1)
    assert after.pid != before.pid
    assert topics(running).items() >= {spec.name: spec.partitions for spec in DEFAULT_TOPICS}.items()


def test_a_dead_model_stub_heals_although_the_server_calls_itself_healthy(running: LocalStack) -> None:
    server = psutil.Process(running.pid("triton"))
    (stub,) = server.children()
    stub.kill()
    # Until it is loaded anew, the model answers nobody.
    deadline = time.monotonic() + 60
    while not [child for child in server.children() if child != stub]:
        assert time.monotonic() < deadline, "the model was not loaded anew"
        with suppress(urllib.error.HTTPError):
            double(running.endpoints(), 4)
    running.await_component("triton")
    assert double(running.endpoints(), 4) == 8
    assert running.pid("triton") == server.pid


def test_a_stopped_component_stays_down_until_it_is_started(running: LocalStack) -> None:
    running.stop_component("triton")
    with pytest.raises(NotRunningError):
        running.pid("triton")
    assert running.status().status == "degraded"
    running.start_component("triton")
    assert double(running.endpoints(), 1) == 2


def test_two_stacks_side_by_side_do_not_touch_each_other(running: LocalStack, tmp_path: Path) -> None:
    before = pids(running)
    settings = StackSettings(port_offset=free_port_offset(), components=("kafka",), workers=False)
    second = LocalStack(tmp_path / "second", settings=settings)
    try:
        assert second.up() == "started"
        assert "images" in topics(second)
        second.kill(SUPERVISOR_ROLE)
        second.down(wipe=True)
        assert not (tmp_path / "second").exists()
    finally:
        second.down()
    assert pids(running) == before
    assert running.status().status == "ready"


def test_after_a_hard_kill_the_next_up_removes_what_is_left_and_serves(running: LocalStack) -> None:
    before = pids(running)
    stub = psutil.Process(before["triton"]).children()[0]
    # Stopped, they cannot end with their supervisor: orphans, as after a kill of everything at the worst moment.
    for pid in (before["triton"], stub.pid, before["kafka"]):
        os.kill(pid, signal.SIGSTOP)
    region = SHARED_MEMORY / f"{shared_memory_prefix(running.settings.stack_id)}left"
    region.touch()
    supervisor = psutil.Process(running.pid(SUPERVISOR_ROLE))
    running.kill(SUPERVISOR_ROLE)
    supervisor.wait(30)  # on a busy machine a killed process lives on for a moment, with its lock
    orphans = {process.pid for process in stack_processes(running.settings.stack_id)}
    assert {before["triton"], stub.pid, before["kafka"]} <= orphans
    assert running.up() == "started"
    after = pids(running)
    assert set(before.values()).isdisjoint(after.values())
    # Nothing lives but the new supervisor, its children and the new stub.
    alive = {process.pid for process in stack_processes(running.settings.stack_id)}
    assert alive.isdisjoint({*before.values(), stub.pid})
    assert not region.exists()
    assert double(running.endpoints(), 3) == 6


def test_a_port_in_use_is_one_line_and_nothing_is_left_running(local: LocalStack, tmp_path: Path) -> None:
    settings = StackSettings(port_offset=free_port_offset(), components=("kafka",), workers=False)
    blocked = LocalStack(tmp_path / "blocked", settings=settings)
    with socket.create_server(("127.0.0.1", settings.port(19092))):
        command = [sys.executable, "-m", "sightlog", "up", "--no-workers", "--data-dir", str(blocked.data_dir)]
        environment = {**os.environ, "SIGHTLOG_COMPONENTS": '["kafka"]'}
        offset = ["--port-offset", str(settings.port_offset)]
        done = subprocess.run(
            [*command, *offset], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
        )
        with pytest.raises(PreflightError):
            blocked.up()
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert f"port {settings.port(19092)} (kafka broker) is in use by pid {os.getpid()}" in line
    assert list(stack_processes(blocked.settings.stack_id)) == []


def test_down_ends_everything_and_keeps_the_data_until_wiped(running: LocalStack) -> None:
    stack_id = running.settings.stack_id
    assert running.down() is True
    assert list(stack_processes(stack_id)) == []
    assert list(SHARED_MEMORY.glob(f"{shared_memory_prefix(stack_id)}*")) == []
    assert running.status().status == "stopped"
    assert not Endpoints.path(running.data_dir).exists()
    assert (running.data_dir / "kafka" / "logs" / "meta.properties").exists()
    assert running.down(wipe=True) is False
    assert not running.data_dir.exists()
