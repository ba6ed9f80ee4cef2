"""The stack that a benchmark runs on: the one that is up in the data folder, else one of its own."""

from __future__ import annotations

import asyncio
import math
import os
import random
import shutil
import socket
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
from rich.console import Console

from agents.index.connection import connect
from agents.settings import AgentSettings
from sightlog.settings import default_data_dir
from stack.component import Progress
from stack.local import LocalStack
from stack.settings import StackSettings

#: Port offsets tried for a stack of our own, far from the default.
#: From 13,200 on some ports would lie among those that the kernel gives to clients.
_OFFSETS = range(4000, 13_200, 400)
#: A part of the warm-up that takes more than this share of the cheapest before it is not cheaper.
_CHEAPER = 0.9
#: Parts of a warm-up at most, where a busy machine lets it never settle.
_MOST_PARTS = 10


@contextmanager
def stack_for_bench(
    console: Console, progress: Progress | None = None, components: tuple[str, ...] | None = None
) -> Iterator[tuple[LocalStack, AgentSettings]]:
    """A running stack and settings that point at it; one of our own is wiped at the end.

    `components`: all that is needed of one of our own; everything, with the workers, if not given.
    """
    running = LocalStack(default_data_dir())
    if running.status().status in ("ready", "degraded"):
        console.print(f"using the stack in {running.data_dir}", style="dim")
        yield running, AgentSettings.load()
        return
    folder = Path(tempfile.mkdtemp(prefix="sightlog-bench-"))
    part = StackSettings() if components is None else StackSettings(components=components)
    own = LocalStack(folder, port_offset=free_port_offset(), workers=components is None, settings=part)
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


def cpu_seconds(stack: LocalStack, *components: str) -> float:
    """User and system time that components, and what they started, have used so far; of the `supervisor`: all."""
    total = 0.0
    for component in components:
        process = psutil.Process(stack.pid(component))
        for one in (process, *process.children(recursive=True)):
            times = one.cpu_times()
            total += times.user + times.system
    return total


def machine_cpu_seconds() -> float:
    """Time that all cores were busy so far, whoever kept them busy."""
    times = psutil.cpu_times()
    return float(times.user + times.nice + times.system + times.irq + times.softirq + times.steal)


def warm_up(cpu: Callable[[], float]) -> Iterator[int]:
    """Number parts of work, all alike, until two in a row are no cheaper; `cpu`: seconds spent so far.

    The virtual machines of Kafka and OpenSearch compile what is hot during the first thousand images and more; until
    then that takes as much CPU as their work.
    """
    cheapest, no_cheaper, part = math.inf, 0, 0
    while no_cheaper < 2 and part < _MOST_PARTS:
        part += 1
        before = cpu()
        yield part
        cost = cpu() - before
        no_cheaper = 0 if cost < _CHEAPER * cheapest else no_cheaper + 1
        cheapest = min(cheapest, cost)


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
    """An offset at which the first port of every component is free; any, so that two who ask at once differ."""
    for offset in random.sample(_OFFSETS, len(_OFFSETS)):
        try:
            for port in (19092, 18000, 19200):
                with socket.socket() as probe:
                    probe.bind(("127.0.0.1", port + offset))
        except OSError:
            continue
        return offset
    raise RuntimeError("no free range of ports found")
