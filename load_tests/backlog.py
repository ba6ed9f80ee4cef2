"""What a backlog does to a vision worker: its memory while it drains many events that were there before it started.

A real broker and a real worker process; Triton is a stand-in that answers at once, so the worker is as busy as it gets.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from confluent_kafka import KafkaException, Producer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from load_tests.running import free_port_offset
from sightlog.events import new_upload
from sightlog.settings import MAX_RECORD_BYTES
from stack.kafka import ensure_topics, group_lag
from stack.local import LocalStack
from stack.ports import Endpoints
from stack.settings import StackSettings

DEFAULT_EVENTS = 200_000
#: Like a small picture that nobody can see: the stand-in does not look.
_SMALL = 1_000
_SAMPLE_S = 0.5
#: Events after which caches are warm and the libraries loaded.
_WARM = 2_000
_PATIENCE_S = 120.0


@dataclass(frozen=True)
class Sample:
    """The worker's resident memory when so many events were done."""

    done: int
    rss_mb: float


def measure(console: Console, count: int = DEFAULT_EVENTS) -> dict[str, Any]:
    """Figures of `sightlog bench backlog`."""
    folder = Path(tempfile.mkdtemp(prefix="sightlog-backlog-"))
    try:
        with broker(folder / "stack") as bootstrap:
            console.print(f"publishing {count:,} events", style="dim")
            publish(bootstrap, count, _SMALL)
            started = time.monotonic()
            samples = drain_backlog(bootstrap, folder, count, console)
            return figures(samples, count, time.monotonic() - started)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def figures(samples: Sequence[Sample], events: int, seconds: float) -> dict[str, Any]:
    """`rss_slope`: MiB for each 100,000 events, of the straight line through the second half."""
    warm = [sample for sample in samples if sample.done >= min(_WARM, events // 4)]
    later = warm[len(warm) // 2 :]
    slope = 0.0
    if len({sample.done for sample in later}) > 1:
        slope = float(np.polyfit([s.done / 1e5 for s in later], [s.rss_mb for s in later], 1)[0])
    return {
        "events": events,
        "rss_start_mb": round(warm[0].rss_mb, 1),
        "rss_max_mb": round(max(sample.rss_mb for sample in samples), 1),
        "rss_end_mb": round(samples[-1].rss_mb, 1),
        "rss_slope": round(slope, 2),
        "events_per_s": round(events / seconds, 1),
    }


@contextmanager
def broker(data_dir: Path) -> Iterator[str]:
    """The address of a Kafka of its own."""
    with services(data_dir, StackSettings(components=("kafka",), workers=False)) as endpoints:
        yield endpoints.kafka


@contextmanager
def services(data_dir: Path, settings: StackSettings) -> Iterator[Endpoints]:
    """The addresses of a stack of its own that has a broker, with all topics."""
    local = LocalStack(data_dir, port_offset=free_port_offset(), settings=settings)
    local.up()
    try:
        ensure_topics(local.endpoints().kafka)
        yield local.endpoints()
    finally:
        local.down(wipe=True)


def publish(bootstrap: str, count: int, size: int) -> None:
    """Uploads of `size` bytes each, all different."""
    producer = Producer(
        {
            "bootstrap.servers": bootstrap,
            "linger.ms": 20,
            "queue.buffering.max.kbytes": 64 * 1024,
            "message.max.bytes": MAX_RECORD_BYTES,
        }
    )
    filling = os.urandom(size)
    for number in range(count):
        value, headers = new_upload(b"\xff\xd8\xff" + number.to_bytes(8, "big") + filling, source="/bench").to_kafka()
        while True:
            try:
                producer.produce("images", value, f"backlog-{number}", headers=headers)
                break
            except BufferError:
                producer.poll(0.1)
        producer.poll(0)
    if producer.flush(120):
        raise RuntimeError("the broker did not take the backlog")


def drain_backlog(bootstrap: str, folder: Path, count: int, console: Console) -> list[Sample]:
    """Start a vision worker and sample it until the group `sightlog-vision` has no lag."""
    samples: list[Sample] = []
    columns = (TextColumn("{task.description:>10}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with (
        instant_triton(folder) as triton,
        Progress(*columns, console=console) as progress,
        vision_worker(bootstrap, triton, folder) as worker,
    ):
        task = progress.add_task("seen", total=count)
        heard = time.monotonic()
        while not samples or samples[-1].done < count:
            time.sleep(_SAMPLE_S)
            done = count - _lag(bootstrap, count)
            if not samples or done > samples[-1].done:
                heard = time.monotonic()
            if worker.poll() is not None or time.monotonic() - heard > _PATIENCE_S:
                raise RuntimeError(f"the worker stopped: {(folder / 'worker.log').read_text()[-2000:]}")
            samples.append(Sample(done, psutil.Process(worker.pid).memory_info().rss / 2**20))
            progress.update(task, completed=done)
    return samples


@contextmanager
def instant_triton(folder: Path) -> Iterator[str]:
    """The address of a stand-in for Triton."""
    file = folder / "port"
    file.unlink(missing_ok=True)
    with running_module(folder / "triton.log", "load_tests.instant_triton", str(file)):
        deadline = time.monotonic() + 30
        while not file.exists():
            if time.monotonic() > deadline:
                raise RuntimeError("the stand-in for Triton does not start")
            time.sleep(0.05)
        yield f"127.0.0.1:{file.read_text()}"


@contextmanager
def vision_worker(bootstrap: str, triton: str, folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A vision worker without an index to look into; its log is `worker.log` in the folder."""
    environment = {
        "SIGHTLOG_KAFKA": bootstrap,
        "SIGHTLOG_TRITON": triton,
        "SIGHTLOG_DATA_DIR": str(folder),
        "SIGHTLOG_REUSE_LOOKUP": "false",
    }
    with running_module(folder / "worker.log", "sightlog", "worker", "vision", environment=environment) as worker:
        yield worker


def _lag(bootstrap: str, count: int) -> int:
    try:
        return group_lag(bootstrap, "sightlog-vision", "images")
    except KafkaException:  # a group that is new has no coordinator yet
        return count


@contextmanager
def running_module(
    log: Path, *module: str, environment: dict[str, str] | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """A Python module with its arguments, run until the end of the block."""
    with log.open("ab") as output:
        running = subprocess.Popen(
            [sys.executable, "-m", *module], stdout=output, stderr=output, env={**os.environ, **(environment or {})}
        )
    try:
        yield running
    finally:
        running.terminate()
        try:
            running.wait(20)
        except subprocess.TimeoutExpired:
            running.kill()
            running.wait()
