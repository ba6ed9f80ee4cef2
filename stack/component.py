"""What the supervisor needs to know about a component, and nothing more."""

from __future__ import annotations

import signal
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from stack.artifacts import Artifact


@dataclass(frozen=True)
class Identity:
    """The user a child drops to, and the capabilities (numbers of linux/capability.h) that it keeps."""

    uid: int
    gid: int
    capabilities: tuple[int, ...] = ()


@dataclass(frozen=True)
class Launch:
    """One process to start. `env` is complete: nothing is inherited."""

    command: tuple[str, ...]
    env: Mapping[str, str]
    cwd: Path
    identity: Identity | None = None
    stop_signal: signal.Signals = signal.SIGTERM


@dataclass(frozen=True)
class Usage:
    """What a component needs of the machine, for the checks before the start. Megabytes."""

    memory_mb: int = 0
    data_mb: int = 0
    shm_mb: int = 0


class Progress(Protocol):
    """Where `up` tells what it does; calls may come from several threads."""

    def message(self, text: str) -> None:
        """A line for a person."""

    def downloaded(self, name: str, size: int, done: int, total: int) -> None:
        """`size` more bytes of `name` arrived; `done` of `total` bytes of all downloads are here."""

    def waiting(self, states: Mapping[str, str]) -> None:
        """The state of each component, while `up` waits for them."""


class Silent:
    """A progress that says nothing."""

    def message(self, text: str) -> None:
        """Ignore."""

    def downloaded(self, name: str, size: int, done: int, total: int) -> None:
        """Ignore."""

    def waiting(self, states: Mapping[str, str]) -> None:
        """Ignore."""


class Component(Protocol):
    """One supervised process."""

    @property
    def name(self) -> str:
        """Unique in its stack; also the name of its log."""

    @property
    def ports(self) -> Mapping[str, int]:
        """Label to TCP port."""

    @property
    def usage(self) -> Usage:
        """What it needs of the machine."""

    @property
    def ready_timeout_s(self) -> float:
        """Seconds after which a start has failed."""

    def artifacts(self) -> Mapping[str, tuple[Artifact, ...]]:
        """Pinned downloads, by the folder that they are meant for."""

    def prepare(self, progress: Progress) -> None:
        """Write configuration and lay out files; called once by `up`, before the supervisor starts."""

    def launch(self) -> Launch:
        """The process to start."""

    def unready(self) -> str | None:
        """None when it serves, else what is still awaited. May block for about a second."""

    def damage(self, pid: int) -> str | None:
        """Why a running process must be replaced although it lives, or None. May repair it instead, and block."""

    def clean(self) -> None:
        """Remove what a killed process left outside the data folder; called when none of it lives."""
