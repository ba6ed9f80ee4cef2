"""Leftovers are recognised by the marker in their environment and ended; everybody else is left alone."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from stack.processes import (
    end_leftovers,
    end_processes,
    identified,
    marked_environment,
    remove_shared_memory,
    shared_memory_prefix,
    stack_processes,
)
from tests.unit.stack_fence import FENCE, raise_fence

Start = Callable[..., "subprocess.Popen[bytes]"]

SLEEP = "import sys, time; print('up', flush=True); time.sleep(60)"
STUBBORN = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); " + SLEEP


@pytest.fixture(autouse=True)
def only_dummies_can_be_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    raise_fence(monkeypatch)


@pytest.fixture
def stack_id(tmp_path: Path) -> str:
    return f"test{os.getpid()}{abs(hash(str(tmp_path))) % 10**6:06d}"


@pytest.fixture
def start() -> Iterator[Start]:
    """Start a dummy process with a marker and return once it runs."""
    started: list[subprocess.Popen[bytes]] = []

    def begin(stack_id: str | None, role: str = "kafka", code: str = SLEEP) -> subprocess.Popen[bytes]:
        marker = {} if stack_id is None else marked_environment(stack_id, role)
        process = subprocess.Popen(
            [sys.executable, "-c", code],
            env={**os.environ, **FENCE, **marker},
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        started.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == b"up\n"
        return process

    yield begin
    for process in started:
        process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()


def test_only_processes_with_this_marker_are_ended(start: Start, stack_id: str) -> None:
    mine, other, foreign = start(stack_id), start(f"{stack_id}-other"), start(None)
    assert end_leftovers(stack_id, grace_s=5) == [mine.pid]
    assert mine.wait(5) == -signal.SIGTERM
    assert other.poll() is None
    assert foreign.poll() is None


def test_a_leftover_that_ignores_sigterm_is_killed(start: Start, stack_id: str) -> None:
    stubborn = start(stack_id, code=STUBBORN)
    end_leftovers(stack_id, grace_s=0.2)
    assert stubborn.wait(5) == -signal.SIGKILL


def test_the_supervisor_is_named_first_and_told_about(start: Start, stack_id: str) -> None:
    child, supervisor = start(stack_id, "triton"), start(stack_id, "supervisor")
    lines: list[str] = []
    ended = end_leftovers(stack_id, 5, lines.append)
    assert ended == [supervisor.pid, child.pid]
    assert lines == [
        f"ending what a killed run left behind: {supervisor.pid} (supervisor), {child.pid} (triton)",
    ]


def test_processes_can_be_found_by_component(start: Start, stack_id: str) -> None:
    stub = start(stack_id, "triton")
    start(stack_id, "kafka")
    assert [process.pid for process in stack_processes(stack_id, "triton")] == [stub.pid]


def test_a_pid_in_use_again_is_not_taken_for_the_old_process(start: Start, stack_id: str) -> None:
    process = start(stack_id)
    started = psutil.Process(process.pid).create_time()
    found = identified(process.pid, started)
    assert found is not None
    assert found.pid == process.pid
    assert identified(process.pid, started - 10) is None
    assert identified(process.pid, None) is None


def test_a_process_that_has_ended_is_not_identified(start: Start, stack_id: str) -> None:
    process = start(stack_id)
    started = psutil.Process(process.pid).create_time()
    process.kill()
    while psutil.Process(process.pid).status() != psutil.STATUS_ZOMBIE:
        pass  # a zombie keeps its pid until it is collected
    assert identified(process.pid, started) is None


def test_ending_nothing_is_fine(stack_id: str) -> None:
    assert end_processes([], 0) == []
    assert end_leftovers(stack_id, 0) == []


def test_only_shared_memory_of_this_stack_is_removed(tmp_path: Path, stack_id: str) -> None:
    mine = tmp_path / f"{shared_memory_prefix(stack_id)}42_1"
    other = tmp_path / f"{shared_memory_prefix(stack_id[:-1])}42_1"
    for region in (mine, other):
        region.touch()
    assert remove_shared_memory(stack_id, tmp_path) == [mine.name]
    assert other.exists()


def test_these_tests_cannot_reach_a_process_that_is_not_theirs(start: Start, stack_id: str) -> None:
    mine = start(stack_id)
    assert mine.pid in {process.pid for process in psutil.process_iter()}
    assert os.getppid() not in {process.pid for process in psutil.process_iter()}
