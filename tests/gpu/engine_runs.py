"""Engines that end with their test, the answers they give, and a gate before any of their stages."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from models.manifest import ModelManifest
from tests.gpu.small_models import SETTINGS
from triton_repo.gpu.engine import Engine
from triton_repo.gpu_settings import GpuSettings

SECONDS = 30  #: that nothing takes
Start = Callable[..., Engine]


class Answers:
    """By what each picture was submitted as."""

    def __init__(self) -> None:
        self.of: dict[Any, list[Any]] = {}
        self._changed = threading.Condition()

    def reply(self, key: Any) -> Callable[[Any], None]:
        def called(answer: Any) -> None:
            with self._changed:
                self.of.setdefault(key, []).append(answer)
                self._changed.notify_all()

        return called

    def wait(self, count: int) -> dict[Any, Any]:
        """When there are `count`, each of another picture."""
        with self._changed:
            assert self._changed.wait_for(lambda: sum(map(len, self.of.values())) >= count, SECONDS)
            assert all(len(answers) == 1 for answers in self.of.values())
            assert len(self.of) == count
            return {key: answers[0] for key, answers in self.of.items()}


class Gate:
    """Stands in front of a stage; open, until it is closed."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, owner: Any, name: str) -> None:
        self.reached, self._open = threading.Semaphore(0), threading.Event()
        self._open.set()
        stage = getattr(owner, name)

        def gated(*arguments: Any) -> Any:
            self.reached.release()
            assert self._open.wait(SECONDS)
            return stage(*arguments)

        monkeypatch.setattr(owner, name, gated)

    def close(self) -> None:
        self._open.clear()

    def open(self) -> None:
        self._open.set()

    def wait(self, times: int = 1) -> None:
        """Until somebody stands there."""
        for _ in range(times):
            assert self.reached.acquire(timeout=SECONDS)


@contextmanager
def engines(manifest: ModelManifest) -> Iterator[Start]:
    """Starts them, and closes them all."""
    running: list[Engine] = []

    def start(settings: GpuSettings = SETTINGS, **options: Any) -> Engine:
        running.append(Engine(manifest, settings, **options))
        return running[-1]

    yield start
    for engine in running:
        engine.close()
