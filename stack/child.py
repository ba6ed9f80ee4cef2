"""One supervised child: started, asked until it is ready, watched, restarted with growing pauses, stopped."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import psutil

from stack import launch as launcher
from stack.component import Component, Launch
from stack.processes import end_processes, marked_environment, stack_processes
from stack.settings import StackSettings
from stack.state import ComponentState

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


class Child:
    """One component in its turns of starting, running and failing."""

    def __init__(self, component: Component, settings: StackSettings, publish: Callable[[], None]) -> None:
        self.component = component
        self._settings = settings
        self._publish = publish
        self._process: asyncio.subprocess.Process | None = None
        self._stop_signal = signal.SIGTERM
        self._was_ready = False
        self._backoff_s = BACKOFF_FIRST_S
        self.log = settings.data_dir / "logs" / f"{component.name}.log"
        self.state = ComponentState(ports=dict(component.ports), log=str(self.log))

    def become(self, **changes: Any) -> None:
        """Change the published state."""
        self.state = self.state.model_copy(update=changes)
        self._publish()

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
            # The first look: from now on the component knows which processes belong to it.
            await self._damage(process)
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
            await asyncio.sleep(TICK_S)
            if process.returncode is None and time.monotonic() - checked > DAMAGE_CHECK_S:
                damage = await self._damage(process)
                checked = time.monotonic()
                if damage:
                    # What is damaged may not be able to end in order, were it only because it is suspended.
                    with contextlib.suppress(ProcessLookupError):
                        process.kill()
                    await process.wait()
                    return damage
        return "stopped on request" if process.returncode is None else _exit_reason(process.returncode)

    async def _damage(self, process: asyncio.subprocess.Process) -> str | None:
        with contextlib.suppress(psutil.Error):
            return await asyncio.to_thread(self.component.damage, process.pid)
        return None

    async def _sweep(self) -> None:
        """End descendants that outlived the process, then remove what they shared."""
        orphans = stack_processes(self._settings.stack_id, self.component.name)
        await asyncio.to_thread(end_processes, orphans, 2.0)
        self.component.clean()


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
