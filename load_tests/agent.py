"""`bench agent`: a vision worker beside a bare loop that only consumes, asks and produces; Triton answers at once.

Triton's model does not look at what it is sent, so the worker is the bottleneck. Everything is real: the broker,
Triton, the worker's process with its settings, 100 KB images inline. Both get the same records, in turns, which way it
begins changes from round to round.
"""

from __future__ import annotations

import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from confluent_kafka import Consumer, TopicPartition
from rich.console import Console

from agents.settings import AgentSettings
from load_tests.backlog import publish, running_module, services, vision_worker
from load_tests.echo_triton import build_echo
from load_tests.running import machine
from models.manifest import load_manifest
from stack.settings import StackSettings

#: Bytes of an image.
_SIZE = 100_000
_ROUNDS = 4
#: Share of a round's images before the clock starts: connections, first fetches, code that is loaded late.
_LEAD = 0.25
_POLL_S = 0.02
_PATIENCE_S = 120.0


@dataclass(frozen=True)
class Run:
    """Of one process over one round."""

    images_per_s: float
    cpu_ms_per_image: float


def measure(console: Console, count: int = 4000) -> dict[str, Any]:
    """Images/s and CPU of both; `ratio`: of the throughputs, median over the rounds. `count`: images of a round."""
    folder = Path(tempfile.mkdtemp(prefix="sightlog-bench-agent-"))
    runs: dict[str, list[Run]] = {"agent": [], "bare": []}
    try:
        with _services(folder) as (bootstrap, triton):
            starts: dict[str, Callable[[], AbstractContextManager[subprocess.Popen[bytes]]]] = {
                "agent": lambda: vision_worker(bootstrap, triton, folder),
                "bare": lambda: _bare_loop(bootstrap, triton, folder),
            }
            for number in range(_ROUNDS):
                publish(bootstrap, count, _SIZE)
                for name in sorted(starts, reverse=bool(number % 2)):
                    runs[name].append(_run(bootstrap, count, starts[name]))
                    console.print(f"round {number + 1}: {name} {runs[name][-1].images_per_s:.0f} images/s", style="dim")
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    agent, bare = runs["agent"], runs["bare"]
    ratios = [one.images_per_s / other.images_per_s for one, other in zip(agent, bare, strict=True)]
    return {
        "images": count,
        "image_bytes": _SIZE,
        "images_per_s": round(statistics.median(run.images_per_s for run in agent), 1),
        "bare_images_per_s": round(statistics.median(run.images_per_s for run in bare), 1),
        "ratio": round(statistics.median(ratios), 3),
        "ratio_rounds": [round(ratio, 3) for ratio in ratios],
        "cpu_ms_per_image": round(statistics.median(run.cpu_ms_per_image for run in agent), 3),
        "bare_cpu_ms_per_image": round(statistics.median(run.cpu_ms_per_image for run in bare), 3),
        "concurrency": AgentSettings.load().vision_concurrency,
        "machine": machine(),
    }


@contextmanager
def _services(folder: Path) -> Iterator[tuple[str, str]]:
    """The addresses of a broker and of a Triton that answers at once."""
    repository = build_echo(load_manifest(AgentSettings.load().model_folder), folder / "models")
    settings = StackSettings(components=("kafka", "triton"), workers=False, triton_repository=repository)
    with services(folder / "stack", settings) as endpoints:
        yield endpoints.kafka, endpoints.triton_grpc


def _run(bootstrap: str, count: int, start: Callable[[], AbstractContextManager[subprocess.Popen[bytes]]]) -> Run:
    """Let a process see one round's images; the clock runs from when it has done the first part of them."""
    before = _embedded(bootstrap)
    deadline = time.monotonic() + _PATIENCE_S
    lead: tuple[int, float, float] | None = None
    with start() as running:
        process = psutil.Process(running.pid)
        with _watched(bootstrap) as embedded:
            while True:
                done, now, cpu = embedded() - before, time.monotonic(), _cpu_s(process)
                if lead is None and done >= count * _LEAD:
                    lead = done, now, cpu
                if lead is not None and done >= count:
                    break
                if running.poll() is not None or now > deadline:
                    raise RuntimeError(f"{done} of {count} images were seen; the process is stuck or gone")
                time.sleep(_POLL_S)
    seen = done - lead[0]
    return Run(seen / (now - lead[1]), (cpu - lead[2]) * 1000 / seen)


def _cpu_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def _embedded(bootstrap: str) -> int:
    with _watched(bootstrap) as embedded:
        return embedded()


@contextmanager
def _watched(bootstrap: str) -> Iterator[Callable[[], int]]:
    """Asks how many embedding documents the log has."""
    consumer = Consumer({"bootstrap.servers": bootstrap, "group.id": "bench-watch", "enable.auto.commit": False})
    try:
        partitions = consumer.list_topics("images.embedded", 10).topics["images.embedded"].partitions
        places = [TopicPartition("images.embedded", number) for number in partitions]
        yield lambda: sum(consumer.get_watermark_offsets(place, timeout=10)[1] for place in places)
    finally:
        consumer.close()


def _bare_loop(bootstrap: str, triton: str, folder: Path) -> AbstractContextManager[subprocess.Popen[bytes]]:
    concurrency = str(AgentSettings.load().vision_concurrency)
    return running_module(folder / "bare.log", "load_tests.bare_agent", bootstrap, triton, concurrency)
