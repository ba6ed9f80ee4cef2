"""Recognises the processes and shared memory of one stack, and ends them by pid.

A process belongs to a stack if its environment says so; a pid alone proves nothing, since it may be in use again.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import psutil

MARKER = "SIGHTLOG_STACK_ID"
ROLE = "SIGHTLOG_STACK_ROLE"
SUPERVISOR_ROLE = "supervisor"
SHARED_MEMORY = Path("/dev/shm")
#: Start times come from clock ticks (10 ms) relative to the boot time; a pid is not in use again within this.
START_TOLERANCE_S = 0.05
POLL_S = 0.02
#: SIGKILL cannot be refused, but a process in the middle of disk I/O ends only after that.
KILL_WAIT_S = 5.0


def marked_environment(stack_id: str, role: str) -> dict[str, str]:
    """What a process of the stack carries in its environment."""
    return {MARKER: stack_id, ROLE: role}


def stack_processes(stack_id: str, role: str | None = None) -> Iterator[psutil.Process]:
    """Living processes that carry the marker of this stack (and role); never the caller itself."""
    for process in psutil.process_iter():
        if process.pid == os.getpid():
            continue
        try:
            if process.status() == psutil.STATUS_ZOMBIE:
                continue
            environment = process.environ()
        except (psutil.Error, OSError):
            continue
        if environment.get(MARKER) == stack_id and role in (None, environment.get(ROLE)):
            yield process


def identified(pid: int | None, started: float | None) -> psutil.Process | None:
    """The living process with this pid *and* start time (seconds since the epoch), else None."""
    if pid is None or started is None:
        return None
    try:
        process = psutil.Process(pid)
        if abs(process.create_time() - started) > START_TOLERANCE_S:
            return None
        # A process that is on its way out has no memory any more, but still holds its files and locks.
        return process if process.status() != psutil.STATUS_ZOMBIE and process.cmdline() else None
    except psutil.Error:
        return None


def end_processes(processes: Iterable[psutil.Process], grace_s: float) -> list[int]:
    """SIGTERM, wait up to `grace_s` seconds, then SIGKILL what is left; returns the pids that were ended.

    psutil compares start times before it signals, so a pid in use again is left alone.
    """
    found = list(processes)
    _signal_all(found, signal.SIGTERM)
    alive = _still_alive(found, grace_s)
    _signal_all(alive, signal.SIGKILL)
    _still_alive(alive, KILL_WAIT_S)
    return [process.pid for process in found]


def end_leftovers(stack_id: str, grace_s: float, told: Callable[[str], None] | None = None) -> list[int]:
    """End every process of a stack whose supervisor is gone, and remove its shared memory; returns the pids."""
    found = sorted(stack_processes(stack_id), key=_supervisor_first)
    if found and told is not None:
        named = ", ".join(f"{process.pid} ({_name(process)})" for process in found)
        told(f"ending what a killed run left behind: {named}")
    ended = end_processes(found, grace_s)
    # A child started between the listing and the end of its parent.
    ended += end_processes(stack_processes(stack_id), 0)
    remove_shared_memory(stack_id)
    return ended


def shared_memory_prefix(stack_id: str) -> str:
    """Name prefix of this stack's regions in /dev/shm."""
    return f"sightlog-{stack_id}-"


def remove_shared_memory(stack_id: str, folder: Path = SHARED_MEMORY) -> list[str]:
    """Remove this stack's regions, which survive a killed Triton; returns their names."""
    regions = list(folder.glob(f"{shared_memory_prefix(stack_id)}*"))
    for region in regions:
        region.unlink(missing_ok=True)
    return [region.name for region in regions]


def _still_alive(processes: list[psutil.Process], timeout_s: float) -> list[psutil.Process]:
    """Those that live after at most `timeout_s` seconds.

    A zombie counts as gone: in a container nobody may ever collect it, and `psutil.wait_procs` would wait on.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        processes = [process for process in processes if not _gone(process)]
        if not processes or time.monotonic() > deadline:
            return processes
        time.sleep(POLL_S)


def _gone(process: psutil.Process) -> bool:
    try:
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def _signal_all(processes: Iterable[psutil.Process], number: signal.Signals) -> None:
    for process in processes:
        try:
            process.send_signal(number)
        except psutil.NoSuchProcess:
            continue


def _name(process: psutil.Process) -> str:
    try:
        return str(process.environ().get(ROLE, process.name()))
    except (psutil.Error, OSError):
        return "ended"


def _supervisor_first(process: psutil.Process) -> bool:
    """Sort key: the supervisor ends before it could restart the others."""
    return _name(process) != SUPERVISOR_ROLE
