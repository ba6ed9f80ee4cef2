"""The supervisor process of one stack: starts children, watches them, restarts them, stops them in order.

`up` starts it detached with the stack's settings in `<data>/stack.json`; it runs until SIGTERM. It alone writes the
state file.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

import psutil

from stack import launch as launcher
from stack.component import Component, Launch
from stack.composition import Composition, compose
from stack.processes import end_leftovers, end_processes, marked_environment, stack_processes
from stack.settings import StackSettings
from stack.state import ComponentState, StackState, StateFile

#: Pause between two questions of readiness, and between two looks at a hold.
TICK_S = 0.1
#: Looking for damage costs more than waiting for an exit.
DAMAGE_CHECK_S = 1.0
#: A component that never was ready and failed this often will not come up; afterwards it is tried for ever.
FIRST_START_TRIES = 3
BACKOFF_FIRST_S, BACKOFF_LIMIT_S = 0.5, 30.0
#: After this long without a crash the next one is treated as the first.
STABLE_AFTER_S = 60.0
#: A log is set aside at a start when it is larger.
LOG_LIMIT_BYTES = 20 << 20
SETTINGS_FILE = "stack.json"


class Child:
    """One component in its turns of starting, running and failing."""

    def __init__(self, component: Component, settings: StackSettings, supervisor: Supervisor) -> None:
        self.component = component
        self._settings = settings
        self._supervisor = supervisor
        self._process: asyncio.subprocess.Process | None = None
        self._stop_signal = signal.SIGTERM
        self._was_ready = False
        self._backoff_s = BACKOFF_FIRST_S
        self.log = settings.data_dir / "logs" / f"{component.name}.log"
        self.state = ComponentState(ports=dict(component.ports), log=str(self.log))

    def become(self, **changes: Any) -> None:
        """Change the published state."""
        self.state = self.state.model_copy(update=changes)
        self._supervisor.publish()

    async def tend(self) -> None:
        """Keep the component running until cancelled."""
        while True:
            if self._held:
                self.become(status="held", detail="stopped on request", pid=None, started=None)
                while self._held:
                    await asyncio.sleep(TICK_S)
            reason = await self._run_once()
            if reason is None:
                continue
            self.become(restarts=self.state.restarts + 1, pid=None, started=None, detail=reason)
            if not self._was_ready and self.state.restarts >= FIRST_START_TRIES:
                self.become(status="failed")
                return
            self.become(status="restarting", detail=f"{reason}; next start in {self._backoff_s:.1f} s")
            await asyncio.sleep(self._backoff_s)
            self._backoff_s = min(self._backoff_s * 2, BACKOFF_LIMIT_S)

    async def stop(self) -> None:
        """SIGTERM, then SIGKILL after the limit; ends what the process left behind."""
        process = self._process
        if process is not None and process.returncode is None:
            self.become(status="stopping")
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(self._stop_signal)
            try:
                await asyncio.wait_for(process.wait(), self._settings.stop_timeout_s)
            except asyncio.TimeoutError:
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
                await process.wait()
        await self._sweep()
        self.become(status="stopped", pid=None, started=None)

    @property
    def _held(self) -> bool:
        return hold_file(self._settings.data_dir, self.component.name).exists()

    async def _run_once(self) -> str | None:
        """From start to end; returns why it ended, None after a stop on request."""
        process = await self._start()
        begun = time.monotonic()
        self.become(status="starting", detail="starting")
        reason = await self._await_ready(process, begun)
        if reason is None:
            self._was_ready = True
            self.become(status="ready", detail="", ready_after_s=round(time.monotonic() - begun, 2))
            reason = await self._watch(process)
            if time.monotonic() - begun > STABLE_AFTER_S:
                self._backoff_s = BACKOFF_FIRST_S
        if self._held:
            await self.stop()
            return None
        if process.returncode is None:
            await self.stop()
        await self._sweep()
        return reason

    async def _start(self) -> asyncio.subprocess.Process:
        launch = self.component.launch()
        self._stop_signal = launch.stop_signal
        with _open_log(self.log) as log:
            self._process = await asyncio.create_subprocess_exec(
                *_command_line(launch),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=launch.cwd,
                env={**launch.env, **marked_environment(self._settings.stack_id, self.component.name)},
                start_new_session=True,
            )
        process = self._process
        started = None
        with contextlib.suppress(psutil.Error):
            started = psutil.Process(process.pid).create_time()
        self.become(pid=process.pid, started=started)
        return process

    async def _await_ready(self, process: asyncio.subprocess.Process, begun: float) -> str | None:
        limit = self.component.ready_timeout_s
        while True:
            awaited = await asyncio.to_thread(self.component.unready)
            if process.returncode is not None:
                return _exit_reason(process.returncode)
            if awaited is None:
                return None
            if self._held:
                return "stopped on request"
            if time.monotonic() - begun > limit:
                return f"not ready after {limit:.0f} s: {awaited}"
            if awaited != self.state.detail:
                self.become(detail=awaited)
            await asyncio.sleep(TICK_S)

    async def _watch(self, process: asyncio.subprocess.Process) -> str:
        checked = time.monotonic()
        while process.returncode is None and not self._held:
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(asyncio.shield(asyncio.ensure_future(process.wait())), TICK_S)
            if process.returncode is None and time.monotonic() - checked > DAMAGE_CHECK_S:
                checked = time.monotonic()
                with contextlib.suppress(psutil.Error):
                    if damage := self.component.damage(process.pid):
                        return damage
        return "stopped on request" if process.returncode is None else _exit_reason(process.returncode)

    async def _sweep(self) -> None:
        """End descendants that outlived the process, then remove what they shared."""
        orphans = stack_processes(self._settings.stack_id, self.component.name)
        await asyncio.to_thread(end_processes, orphans, 2.0)
        self.component.clean()


class Supervisor:
    """All children of one stack, and the state file that tells about them."""

    def __init__(self, composition: Composition, state_file: StateFile) -> None:
        self._settings = composition.settings
        self._file = state_file
        self._java = composition.java
        self._services = [Child(part, self._settings, self) for part in composition.services]
        self._workers = [Child(part, self._settings, self) for part in composition.workers]
        self._started = psutil.Process().create_time()
        self._stopping = False
        self._stopped = False
        self._published: StackState | None = None

    def publish(self) -> None:
        """Write the state file if something changed."""
        state = self._state()
        if state != self._published:
            self._published = state
            self._file.write(state)

    async def run(self) -> None:
        """Start everything, tend it until SIGTERM or SIGINT, stop everything."""
        asked = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, asked.set)
        self.publish()
        tending = [asyncio.create_task(child.tend()) for child in self._services]
        tending.append(asyncio.create_task(self._tend_workers()))
        asking = asyncio.create_task(asked.wait())
        try:
            done, _ = await asyncio.wait({asking, *tending}, return_when=asyncio.FIRST_COMPLETED)
            while asking not in done:
                # A child that gave up ends its task; an error of ours ends the supervisor.
                for task in done:
                    task.result()
                tending = [task for task in tending if not task.done()]
                done, _ = await asyncio.wait({asking, *tending}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._stopping = True
            await self._stop([*tending, asking])

    async def _tend_workers(self) -> None:
        """Workers need every service for their first start; later they wait for a service themselves."""
        while not all(child.state.status == "ready" for child in self._services):
            await asyncio.sleep(TICK_S)
        await asyncio.gather(*(child.tend() for child in self._workers))

    async def _stop(self, tasks: Sequence[asyncio.Task[Any]]) -> None:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self.publish()
        # Consumers first, so that they commit; the log they commit to last.
        await asyncio.gather(*(child.stop() for child in self._workers))
        for child in sorted(self._services, key=lambda child: STOP_ORDER.index(child.component.name)):
            await child.stop()
        self._stopped = True
        self.publish()

    def _state(self) -> StackState:
        children = [*self._services, *self._workers]
        states = {child.component.name: child.state for child in children}
        statuses = {state.status for state in states.values()}
        failed = [name for name, state in states.items() if state.status == "failed"]
        was_ready = self._published is not None and self._published.status in ("ready", "degraded")
        if self._stopped:
            status = "stopped"
        elif self._stopping:
            status = "stopping"
        elif failed:
            status = "failed"
        elif statuses <= {"ready"}:
            status = "ready"
        else:
            status = "degraded" if was_ready else "starting"
        return StackState.model_validate(
            {
                "stack_id": self._settings.stack_id,
                "status": status,
                "detail": ", ".join(f"{name}: {states[name].detail}" for name in failed),
                "pid": os.getpid(),
                "started": self._started,
                "port_offset": self._settings.port_offset,
                "java": str(self._java or ""),
                "components": states,
            }
        )


STOP_ORDER = ("triton", "opensearch", "kafka")


def hold_file(data_dir: Path, name: str) -> Path:
    """While this file exists the supervisor keeps the component stopped."""
    return data_dir / "hold" / name


def _command_line(launch: Launch) -> list[str]:
    identity = "-"
    if launch.identity is not None:
        capabilities = ",".join(map(str, launch.identity.capabilities))
        identity = f"{launch.identity.uid}:{launch.identity.gid}:{capabilities}"
    wrapper = [sys.executable, "-I", "-S", str(launcher.__file__), str(os.getpid()), identity, "--"]
    return [*wrapper, *launch.command]


def _open_log(path: Path) -> IO[bytes]:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists() and path.stat().st_size > LOG_LIMIT_BYTES:
        path.replace(path.with_suffix(".log.1"))
    return path.open("ab")


def _exit_reason(code: int) -> str:
    if code < 0:
        with contextlib.suppress(ValueError):
            return f"ended by {signal.Signals(-code).name}"
    return f"exited with {code}"


def main(data_dir: Path) -> int:
    """Run the supervisor of a data folder; 1 if another one runs already."""
    settings = StackSettings.model_validate_json((data_dir / SETTINGS_FILE).read_bytes())
    state_file = StateFile(data_dir)
    # Whoever asks "is it supervised?" holds the lock for an instant, so one failed try means little.
    for _ in range(50):
        with state_file.owned() as mine:
            if mine:
                try:
                    asyncio.run(Supervisor(compose(settings), state_file).run())
                finally:
                    end_leftovers(settings.stack_id, grace_s=1.0)
                return 0
        time.sleep(TICK_S)
    return 1


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
