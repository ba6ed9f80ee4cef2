"""The stack that a benchmark runs on: the one that is up in the data folder, else one of its own."""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
from rich.console import Console

from agents.index.connection import connect
from agents.settings import AgentSettings
from sightlog.settings import default_data_dir
from stack.component import Progress
from stack.local import LocalStack

#: Port offsets tried for a stack of our own, far from the default.
_OFFSETS = range(4000, 20_000, 400)


@contextmanager
def stack_for_bench(console: Console, progress: Progress | None = None) -> Iterator[tuple[LocalStack, AgentSettings]]:
    """A running stack with workers, and settings that point at it; one of our own is wiped at the end."""
    running = LocalStack(default_data_dir())
    if running.status().status in ("ready", "degraded"):
        console.print(f"using the stack in {running.data_dir}", style="dim")
        yield running, AgentSettings.load()
        return
    folder = Path(tempfile.mkdtemp(prefix="sightlog-bench-"))
    own = LocalStack(folder, port_offset=free_port_offset(), workers=True)
    console.print("no stack is up here: starting one for this benchmark", style="dim")
    own.up(progress)
    os.environ["SIGHTLOG_DATA_DIR"] = str(folder)
    try:
        yield own, AgentSettings.load()
    finally:
        del os.environ["SIGHTLOG_DATA_DIR"]
        own.down(wipe=True)
        shutil.rmtree(folder, ignore_errors=True)


def forget(settings: AgentSettings, tag: str) -> None:
    """Remove what a benchmark put into the indices."""

    async def delete() -> None:
        async with connect(settings.opensearch) as client:
            for alias in (settings.index.images, settings.index.objects):
                body = {"query": {"term": {"tags": tag}}}
                await client.delete_by_query(index=alias, body=body, params={"refresh": "true", "conflicts": "proceed"})

    asyncio.run(delete())


def cpu_seconds(stack: LocalStack, component: str) -> float:
    """User and system time that a component has used so far."""
    times = psutil.Process(stack.pid(component)).cpu_times()
    return times.user + times.system


def machine() -> dict[str, str | int]:
    """The machine that a figure was measured on."""
    model = next(
        (
            line.split(":", 1)[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if "model name" in line
        ),
        "unknown",
    )
    return {"cpu": model, "cores": os.cpu_count() or 0, "memory_gib": round(psutil.virtual_memory().total / 2**30)}


def free_port_offset() -> int:
    """An offset at which the first port of every component is free."""
    for offset in _OFFSETS:
        try:
            for port in (19092, 18000, 19200):
                with socket.socket() as probe:
                    probe.bind(("127.0.0.1", port + offset))
        except OSError:
            continue
        return offset
    raise RuntimeError("no free range of ports found")
