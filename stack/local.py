"""The local stack from Python: bring it up, ask how it is, break it on purpose, take it down."""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Literal

import psutil

from sightlog.atomic_write import write_atomically
from stack.child import hold_file
from stack.component import Progress, Silent
from stack.composition import Composition, compose
from stack.errors import NotRunningError, StartError
from stack.log_excerpt import log_excerpt
from stack.ports import Endpoints
from stack.preflight import check_machine
from stack.processes import (
    SUPERVISOR_ROLE,
    end_leftovers,
    end_processes,
    identified,
    marked_environment,
)
from stack.settings import StackSettings
from stack.state import ComponentState, StackState, StateFile
from stack.supervisor import SETTINGS_FILE

POLL_S = 0.1
#: Everything that a stack and its clients write into its data folder; `--wipe` removes this and nothing else.
OWNED = (
    "kafka",
    "opensearch",
    "triton",
    "workers",
    "uploads",
    "logs",
    "hold",
    "state.json",
    SETTINGS_FILE,
    "endpoints.json",
    "supervisor.lock",
)

Outcome = Literal["started", "already running"]


class LocalStack:
    """Kafka, OpenSearch and Triton (and the workers) of one data folder, on the loopback interface.

    The object holds no process: any number of them, in any process, may speak of the same folder.
    """

    def __init__(
        self,
        data_dir: Path | None = None,
        port_offset: int | None = None,
        workers: bool | None = None,
        *,
        settings: StackSettings | None = None,
    ) -> None:
        given = {"data_dir": data_dir, "port_offset": port_offset, "workers": workers}
        changes = {name: value for name, value in given.items() if value is not None}
        base = settings or StackSettings()
        self.settings = StackSettings.model_validate({**base.model_dump(), **changes}).resolved()
        self.data_dir = self.settings.data_dir
        self._file = StateFile(self.data_dir)

    def up(self, progress: Progress | None = None) -> Outcome:
        """Start the stack and return when all of it is ready; a running one is left as it is.

        Raises PreflightError, DownloadError or StartError; nothing is left running then.
        """
        told = progress or Silent()
        with self._exclusive():
            self._await_end_of_stopping()
            if self._file.supervised():
                self._await_ready(told)
                return "already running"
            end_leftovers(self.settings.stack_id, self.settings.stop_timeout_s, told.message)
            composition = compose(self.settings)
            self._prepare(composition, told)
            supervisor = self._spawn()
            try:
                self._await_ready(told, supervisor)
            except BaseException:
                self._end()
                raise
        return "started"

    def down(self, wipe: bool = False) -> bool:
        """Stop the stack, and end what a killed one left behind; returns whether anything ran.

        `wipe` also removes what the stack wrote into its data folder, and the folder if it is empty then.
        """
        if not self.data_dir.is_dir():
            return False
        with self._exclusive():
            ran = self._end()
            if wipe:
                for name in OWNED:
                    _remove(self.data_dir / name)
        if wipe:
            (self.data_dir / "up.lock").unlink(missing_ok=True)
            if not any(self.data_dir.iterdir()):
                self.data_dir.rmdir()
        return ran

    def status(self) -> StackState:
        """What the supervisor wrote last; `stopped` if there is none."""
        state = self._file.read()
        if state is not None and self._file.supervised():
            return state
        detail = "the supervisor was killed: run `sightlog up` again" if state and state.status != "stopped" else ""
        components = {
            name: one.model_copy(update={"status": "stopped", "pid": None, "started": None, "detail": ""})
            for name, one in (state.components.items() if state else ())
        }
        return StackState(
            stack_id=self.settings.stack_id,
            detail=detail,
            port_offset=state.port_offset if state else self.settings.port_offset,
            components=components,
        )

    def endpoints(self) -> Endpoints:
        """Where the parts answer: of the running stack if there is one, else as it would start."""
        path = Endpoints.path(self.data_dir)
        if path.exists():
            return Endpoints.model_validate_json(path.read_bytes())
        return Endpoints.of(self.settings)

    def pid(self, name: str) -> int:
        """Process id of a running component, or of the `supervisor`. Raises NotRunningError."""
        return self._process(name).pid

    def kill(self, name: str, number: signal.Signals = signal.SIGKILL) -> int:
        """Signal a running component, or the `supervisor`; returns its pid. For fault tests."""
        process = self._process(name)
        process.send_signal(number)
        return process.pid

    def stop_component(self, name: str, timeout_s: float = 60.0) -> None:
        """Stop one component and keep it stopped until `start_component`, or the next `up`."""
        self._component(name)
        hold = hold_file(self.data_dir, name)
        hold.parent.mkdir(exist_ok=True)
        hold.touch()
        self._await_status(name, "held", timeout_s)

    def start_component(self, name: str, timeout_s: float = 120.0) -> None:
        """Start a component that was stopped, and return when it is ready."""
        self._component(name)
        hold_file(self.data_dir, name).unlink(missing_ok=True)
        self.await_component(name, timeout_s)

    def await_component(self, name: str, timeout_s: float = 120.0, restarts: int = 0) -> ComponentState:
        """Return when a component is ready and was restarted at least `restarts` times. Raises StartError."""
        return self._await_status(name, "ready", timeout_s, restarts)

    def log_path(self, name: str) -> Path:
        """The log of a component, or of the `supervisor`."""
        return self.data_dir / "logs" / f"{name}.log"

    def _component(self, name: str) -> ComponentState:
        components = self.status().components
        if name not in components:
            known = ", ".join(sorted(components)) or "none"
            raise NotRunningError(f"the stack in {self.data_dir} has no component {name!r} (it has: {known})")
        return components[name]

    def _process(self, name: str) -> psutil.Process:
        state = self.status() if name == SUPERVISOR_ROLE else self._component(name)
        process = identified(state.pid, state.started)
        if process is None:
            raise NotRunningError(f"{name} of the stack in {self.data_dir} does not run: `sightlog up` starts it")
        return process

    def _await_status(self, name: str, status: str, timeout_s: float, restarts: int = 0) -> ComponentState:
        deadline = time.monotonic() + timeout_s
        while True:
            state = self._component(name)
            if state.status == status and state.restarts >= restarts:
                return state
            if time.monotonic() > deadline:
                raise StartError(f"{name} is {state.status} ({state.detail}), not {status}, after {timeout_s:.0f} s")
            time.sleep(POLL_S)

    @contextmanager
    def _exclusive(self) -> Iterator[None]:
        """One `up` or `down` of this folder at a time."""
        self.data_dir.mkdir(parents=True, exist_ok=True)
        with (self.data_dir / "up.lock").open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _prepare(self, composition: Composition, told: Progress) -> None:
        shutil.rmtree(self.data_dir / "hold", ignore_errors=True)
        artifacts = [one for part in composition.all for files in part.artifacts().values() for one in files]
        with ExitStack() as held:
            if artifacts:
                held.enter_context(composition.cache.exclusive())
            missing = composition.cache.missing(artifacts)
            check_machine(self.settings, composition.all, cache_complete=not missing)
            if composition.java is not None:
                told.message(f"using {composition.java}")
            if missing:
                composition.cache.fetch(missing, told.downloaded)
            for component in composition.all:
                component.prepare(told)
        write_atomically(self.data_dir / SETTINGS_FILE, self.settings.model_dump_json(indent=1))
        endpoints = Endpoints.of(self.settings).model_dump_json(indent=1)
        write_atomically(Endpoints.path(self.data_dir), endpoints)

    def _spawn(self) -> subprocess.Popen[bytes]:
        """Start the supervisor in a session of its own; it outlives this process."""
        log_path = self.log_path(SUPERVISOR_ROLE)
        log_path.parent.mkdir(parents=True, exist_ok=True)
        self._file.path.unlink(missing_ok=True)
        root = str(Path(__file__).parent.parent)
        search_path = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
        marked = marked_environment(self.settings.stack_id, SUPERVISOR_ROLE)
        with log_path.open("ab") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "stack.supervisor", str(self.data_dir)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.data_dir,
                env={**os.environ, "PYTHONPATH": search_path, **marked},
                start_new_session=True,
            )

    def _await_ready(self, told: Progress, supervisor: subprocess.Popen[bytes] | None = None) -> None:
        """Follow the state file until all is ready. Raises StartError; the supervisor bounds every wait."""
        while True:
            state = self._file.read()
            if state is not None and (supervisor is None or state.pid == supervisor.pid):
                # One that was started earlier may be degraded: that is for `status` to tell, not to wait for.
                if supervisor is None and state.status in ("ready", "degraded"):
                    return
                told.waiting({name: one.detail or one.status for name, one in state.components.items()})
                if state.status == "ready":
                    return
                failed = [name for name, one in state.components.items() if one.status == "failed"]
                if failed:
                    raise StartError(self._failure(failed[0], state.components[failed[0]].detail))
            gone = supervisor.poll() is not None if supervisor else not self._file.supervised()
            if gone:
                raise StartError(self._failure(SUPERVISOR_ROLE, "ended while the stack was starting"))
            time.sleep(POLL_S)

    def _failure(self, name: str, reason: str) -> str:
        return f"{name} did not start: {reason}. {log_excerpt(self.log_path(name))}"

    def _await_end_of_stopping(self) -> None:
        """A supervisor that is on its way out is waited for, not reported as running; a killed one too."""
        while self._file.supervised():
            state = self._file.read()
            leaving = state is not None and state.status in ("stopping", "stopped")
            if state is None or (not leaving and identified(state.pid, state.started)):
                return
            time.sleep(POLL_S)

    def _end(self) -> bool:
        """Stop the supervisor, which stops the rest; then end by marker whatever is still there."""
        state = self._file.read()
        supervisor = identified(state.pid, state.started) if state and self._file.supervised() else None
        # Each child may take its whole limit, one after the other.
        patience = self.settings.stop_timeout_s * 4 + 10
        ended = end_processes([supervisor], patience) if supervisor else []
        ended += end_leftovers(self.settings.stack_id, self.settings.stop_timeout_s)
        Endpoints.path(self.data_dir).unlink(missing_ok=True)
        return bool(ended)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
