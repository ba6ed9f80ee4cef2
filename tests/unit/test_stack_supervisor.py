"""The supervisor against small Python processes in place of the real components."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import psutil
import pytest

from stack import child as child_module
from stack.artifacts import Artifact, ArtifactCache
from stack.child import hold_file
from stack.component import Launch, Progress, Usage
from stack.composition import Composition
from stack.processes import MARKER, ROLE, stack_processes
from stack.settings import StackSettings
from stack.state import StackState, StateFile
from stack.supervisor import Supervisor
from tests.unit.stack_fence import FENCE, raise_fence

#: Says that it is ready, and writes its name into a file when it is asked to end.
OBEDIENT = """
import pathlib, signal, sys, time
name = sys.argv[1]
def end(*_):
    with open("ended", "a") as ended:
        ended.write(name + "\\n")
    sys.exit(0)
signal.signal(signal.SIGTERM, end)
pathlib.Path(name + ".up").touch()
while True:
    time.sleep(0.02)
"""
STUBBORN = "import pathlib, signal, sys, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); "
STUBBORN += "pathlib.Path(sys.argv[1] + '.up').touch(); time.sleep(60)"
WITH_ORPHAN = "import subprocess, sys; "
WITH_ORPHAN += "subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'], start_new_session=True)\n"


class Dummy:
    """A component whose process is a line of Python."""

    ports: Mapping[str, int] = {}
    usage = Usage()

    def __init__(self, name: str, folder: Path, code: str = OBEDIENT, ready_timeout_s: float = 20.0) -> None:
        self.name, self.ready_timeout_s = name, ready_timeout_s
        self._folder, self._code = folder, code
        self.damaged: str | None = None
        self.cleaned = 0

    def artifacts(self) -> Mapping[str, tuple[Artifact, ...]]:
        return {}

    def prepare(self, progress: Progress) -> None:
        """Nothing."""

    def launch(self) -> Launch:
        (self._folder / f"{self.name}.up").unlink(missing_ok=True)
        return Launch((sys.executable, "-S", "-c", self._code, self.name), FENCE, self._folder)

    def unready(self) -> str | None:
        return None if (self._folder / f"{self.name}.up").exists() else "no file yet"

    def damage(self, pid: int) -> str | None:
        found, self.damaged = self.damaged, None
        return found

    def clean(self) -> None:
        self.cleaned += 1


class Running:
    """A supervisor that runs in this event loop."""

    def __init__(self, file: StateFile, settings: StackSettings) -> None:
        self._file, self.settings = file, settings

    async def until(self, what: Callable[[StackState], bool]) -> StackState:
        """The first state that fits; the test's own limit bounds the wait."""
        while True:
            state = self._file.read()
            if state is not None and what(state):
                return state
            await asyncio.sleep(0.01)

    async def ready(self) -> StackState:
        return await self.until(lambda state: state.status == "ready")


@pytest.fixture(autouse=True)
def only_dummies_can_be_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    raise_fence(monkeypatch)


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(child_module, "BACKOFF_FIRST_S", 0.05)
    monkeypatch.setattr(child_module, "DAMAGE_CHECK_S", 0.05)
    monkeypatch.setattr(child_module, "TICK_S", 0.02)


@asynccontextmanager
async def supervised(folder: Path, services: list[Dummy], workers: list[Dummy] | None = None) -> AsyncIterator[Running]:
    """Run a supervisor over these; at the end ask it to stop, as `down` does, and wait until it has."""
    settings = StackSettings(data_dir=folder, cache_dir=folder, stop_timeout_s=2)
    cache = ArtifactCache(folder, lambda artifact, target, arrived: target)
    file = StateFile(folder)
    composition = Composition(settings, cache, None, tuple(services), tuple(workers or ()))
    running = asyncio.create_task(Supervisor(composition, file).run())
    try:
        yield Running(file, settings)
    finally:
        os.kill(os.getpid(), signal.SIGTERM)
        await running
        assert list(stack_processes(settings.stack_id)) == []


def limited(test: Callable[[Path], Awaitable[None]]) -> Callable[[Path], Awaitable[None]]:
    """A hang is a failure, not a stuck run."""

    async def bounded(tmp_path: Path) -> None:
        await asyncio.wait_for(test(tmp_path), 30)

    bounded.__name__, bounded.__doc__ = test.__name__, test.__doc__
    return bounded


@limited
async def test_children_carry_the_marker_of_their_stack_and_component(tmp_path: Path) -> None:
    async with supervised(tmp_path, [Dummy("kafka", tmp_path)]) as running:
        state = await running.ready()
        process = psutil.Process(state.components["kafka"].pid)
        environment = process.environ()
        assert environment[MARKER] == running.settings.stack_id
        assert environment[ROLE] == "kafka"
        assert process.create_time() == state.components["kafka"].started


@limited
async def test_a_crashed_child_is_started_again(tmp_path: Path) -> None:
    async with supervised(tmp_path, [Dummy("kafka", tmp_path), Dummy("triton", tmp_path)]) as running:
        before = (await running.ready()).components
        pid = before["kafka"].pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        after = (await running.until(lambda s: s.status == "ready" and s.components["kafka"].restarts == 1)).components
        assert after["kafka"].pid != pid
        assert after["triton"].pid == before["triton"].pid


@limited
async def test_a_living_but_damaged_child_is_replaced(tmp_path: Path) -> None:
    triton = Dummy("triton", tmp_path)
    async with supervised(tmp_path, [triton]) as running:
        pid = (await running.ready()).components["triton"].pid
        triton.damaged = "a stub died"
        after = await running.until(lambda s: s.status == "ready" and s.components["triton"].restarts == 1)
        assert after.components["triton"].pid != pid
        assert pid is not None
        assert not psutil.pid_exists(pid)


@limited
async def test_orphans_of_a_crashed_child_are_ended_and_it_is_cleaned_up(tmp_path: Path) -> None:
    triton = Dummy("triton", tmp_path, WITH_ORPHAN + OBEDIENT)
    async with supervised(tmp_path, [triton]) as running:
        pid = (await running.ready()).components["triton"].pid
        assert pid is not None
        (orphan,) = psutil.Process(pid).children()
        os.kill(pid, signal.SIGKILL)
        await running.until(lambda s: s.status == "ready" and s.components["triton"].restarts == 1)
        assert not orphan.is_running() or orphan.status() == psutil.STATUS_ZOMBIE
        assert triton.cleaned == 1


@limited
async def test_a_child_that_never_comes_up_fails_the_start_and_says_why(tmp_path: Path) -> None:
    async with supervised(
        tmp_path, [Dummy("kafka", tmp_path, "import sys; print('no space'); sys.exit(3)")]
    ) as running:
        state = await running.until(lambda s: s.status == "failed")
        assert state.components["kafka"].status == "failed"
        assert state.detail == "kafka: exited with 3"
        log = (tmp_path / "logs" / "kafka.log").read_text()
        assert log.count("no space") == child_module.FIRST_START_TRIES


@limited
async def test_a_child_that_hangs_at_its_start_says_what_was_awaited(tmp_path: Path) -> None:
    hanging = Dummy("kafka", tmp_path, "import time; time.sleep(60)", ready_timeout_s=0.1)
    async with supervised(tmp_path, [hanging]) as running:
        state = await running.until(lambda s: s.status == "failed")
        assert state.components["kafka"].detail == "not ready after 0 s: no file yet"


@limited
async def test_workers_start_after_the_services_and_end_before_them(tmp_path: Path) -> None:
    names = ("kafka", "opensearch", "triton")
    services, worker = [Dummy(name, tmp_path) for name in names], Dummy("worker-vision", tmp_path)
    async with supervised(tmp_path, services, [worker]) as running:
        state = await running.ready()
        started = {name: one.started or 0.0 for name, one in state.components.items()}
        assert started["worker-vision"] >= max(started[name] for name in names)
    ended = (tmp_path / "ended").read_text().split()
    assert ended == ["worker-vision", "triton", "opensearch", "kafka"]


@limited
async def test_a_child_that_ignores_sigterm_is_killed(tmp_path: Path) -> None:
    async with supervised(tmp_path, [Dummy("kafka", tmp_path, STUBBORN)]) as running:
        pid = (await running.ready()).components["kafka"].pid
    assert pid is not None
    assert not psutil.pid_exists(pid)


@limited
async def test_a_held_child_stays_stopped_until_it_is_let_go(tmp_path: Path) -> None:
    async with supervised(tmp_path, [Dummy("triton", tmp_path)]) as running:
        first = (await running.ready()).components["triton"].pid
        hold = hold_file(tmp_path, "triton")
        hold.parent.mkdir()
        hold.touch()
        held = await running.until(lambda s: s.components["triton"].status == "held")
        assert held.status == "degraded"
        assert first is not None
        assert not psutil.pid_exists(first)
        hold.unlink()
        assert (await running.ready()).components["triton"].restarts == 0


@limited
async def test_after_the_end_the_state_says_stopped(tmp_path: Path) -> None:
    async with supervised(tmp_path, [Dummy("kafka", tmp_path)]) as running:
        await running.ready()
    state = StateFile(tmp_path).read()
    assert state is not None
    assert (state.status, state.components["kafka"].status, state.components["kafka"].pid) == ("stopped",) * 2 + (None,)
