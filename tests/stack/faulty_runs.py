"""Runs of `tests.stack.faulty_work` against a broker: start, kill, and what each run wrote."""

from __future__ import annotations

import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

from confluent_kafka import Producer

from stack.kafka import TopicSpec, ensure_topics

REPOSITORY = Path(__file__).parents[2]


class Run:
    """One worker process at a time, and everything that its predecessors and it finished."""

    def __init__(self, mode: str, bootstrap: str, topic: str, folder: Path, *more: str) -> None:
        self._out, self._log = folder / f"{topic}-{mode}.out", folder / f"{topic}-{mode}.log"
        self._out.touch()
        name = "tests.stack.faulty_work"
        self._command = [sys.executable, "-m", name, mode, bootstrap, topic, str(self._out), *more]
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(self._command, cwd=REPOSITORY, stdout=log, stderr=log)

    def kill(self) -> None:
        """SIGKILL."""
        assert self._process is not None
        self._process.kill()
        self._process.wait(10)

    def end(self, timeout: float = 20.0) -> int:
        """SIGTERM; its exit status. A process that does not end in time is a failure."""
        assert self._process is not None
        self._process.terminate()
        try:
            return self._process.wait(timeout)
        finally:
            self._process.kill()

    @property
    def alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def finished(self) -> Counter[str]:
        """How often each event was finished."""
        return Counter(self._out.read_text().split())

    @property
    def log(self) -> str:
        return self._log.read_text(errors="replace")

    def await_finished(self, events: int, *, patience: float) -> bool:
        """Wait until so many events were finished; False when nothing new came for `patience` seconds."""
        seen, heard = -1, time.monotonic()
        while (count := len(self.finished)) < events:
            if count != seen:
                seen, heard = count, time.monotonic()
            if time.monotonic() - heard > patience:
                return False
            time.sleep(0.05)
        return True


def publish(bootstrap: str, topic: str, count: int, partitions: int = 4) -> set[str]:
    """Make a topic with `count` small events; what they are."""
    ensure_topics(bootstrap, [TopicSpec(topic, partitions)])
    producer = Producer({"bootstrap.servers": bootstrap})
    events = {f"{number:06d}" for number in range(count)}
    for event in sorted(events):
        producer.produce(topic, event.encode(), event.encode())
        producer.poll(0)
    assert producer.flush(30) == 0
    return events
