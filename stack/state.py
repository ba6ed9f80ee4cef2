"""The state file of a stack: written by its supervisor, read by everybody else."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from sightlog.atomic_write import write_atomically

ComponentStatus = Literal["waiting", "starting", "ready", "held", "restarting", "failed", "stopping", "stopped"]
StackStatus = Literal["starting", "ready", "degraded", "failed", "stopping", "stopped"]


class ComponentState(BaseModel):
    """One component: what it does now, as which process, and how often it had to be restarted."""

    model_config = ConfigDict(frozen=True)

    status: ComponentStatus = "waiting"
    detail: str = ""
    pid: int | None = None
    started: float | None = None
    ready_after_s: float | None = None
    restarts: int = 0
    ports: dict[str, int] = {}
    log: str = ""


class StackState(BaseModel):
    """The whole stack. `started` values are process start times in seconds since the epoch."""

    model_config = ConfigDict(frozen=True)

    stack_id: str
    status: StackStatus = "stopped"
    detail: str = ""
    pid: int | None = None
    started: float | None = None
    port_offset: int = 0
    java: str = ""
    components: dict[str, ComponentState] = {}


class StateFile:
    """`<data>/state.json`, and the lock that tells whether its supervisor lives."""

    def __init__(self, data_dir: Path) -> None:
        self.path = data_dir / "state.json"
        self._lock = data_dir / "supervisor.lock"

    def read(self) -> StackState | None:
        """The last state written; None if there is none, or it cannot be read."""
        with suppress(FileNotFoundError, ValidationError):
            return StackState.model_validate_json(self.path.read_bytes())
        return None

    def write(self, state: StackState) -> None:
        """Replace the state."""
        write_atomically(self.path, state.model_dump_json(indent=1))

    @contextmanager
    def owned(self) -> Iterator[bool]:
        """Hold the supervisor's lock; yields False if another process holds it. The kernel frees it on a kill."""
        self._lock.parent.mkdir(parents=True, exist_ok=True)
        with self._lock.open("a") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
            else:
                yield True

    def supervised(self) -> bool:
        """Whether a supervisor lives."""
        if not self._lock.exists():
            return False
        with self.owned() as free:
            return not free
