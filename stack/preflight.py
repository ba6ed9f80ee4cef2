"""Checks before a start: each finding is one line that says what is wrong and what to change."""

from __future__ import annotations

import shutil
import sys
import uuid
from collections.abc import Iterable, Sequence
from pathlib import Path

import psutil

from stack import ports
from stack.component import Component
from stack.errors import PreflightError
from stack.processes import SHARED_MEMORY
from stack.settings import StackSettings

OLDEST_PYTHON, NEWEST_PYTHON = (3, 10), (3, 12)
#: All downloads, the assembled OpenSearch and Triton's backend.
CACHE_MB = 400
_CGROUP = Path("/sys/fs/cgroup")


def check_python(version: tuple[int, ...] = tuple(sys.version_info[:2])) -> str | None:
    """The bundled Triton and Faust fit these versions only."""
    if OLDEST_PYTHON <= version[:2] <= NEWEST_PYTHON:
        return None
    return f"Python {version[0]}.{version[1]} is not supported: use Python 3.10, 3.11 or 3.12"


def check_writable(folder: Path, setting: str) -> str | None:
    """Whether the folder can be made and written to."""
    probe = folder / f".writable-{uuid.uuid4().hex}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as error:
        return f"cannot write to {folder} ({error.strerror}): set {setting} to a folder of yours"
    return None


def check_ports(components: Iterable[Component], offset: int) -> list[str]:
    """One line for each port that somebody else listens on."""
    wanted = {port: f"{part.name} {label}" for part in components for label, port in part.ports.items()}
    taken = [port for port in wanted if ports.in_use(port)]
    if not taken:
        return []
    other = ports.free_offset([port - offset for port in wanted])
    return [
        f"port {port} ({wanted[port]}) is in use by {ports.listener(port) or 'a process of another user'}: stop it, "
        f"or move this stack, e.g. `sightlog up --port-offset {other}`"
        for port in taken
    ]


def check_memory(needed_mb: int, available_mb: int) -> str | None:
    """Memory for all heaps and processes."""
    if available_mb >= needed_mb:
        return None
    return (
        f"{needed_mb} MB of free memory are needed, {available_mb} MB are available: close something, or lower "
        "SIGHTLOG_OPENSEARCH_HEAP_MB and SIGHTLOG_KAFKA_HEAP_MB (512 each)"
    )


def check_disk(folder: Path, needed_mb: int, setting: str) -> str | None:
    """Space where the folder lies."""
    free_mb = shutil.disk_usage(folder).free >> 20
    if free_mb >= needed_mb:
        return None
    return f"{folder} needs {needed_mb} MB of free disk, {free_mb} MB are free: make room, or set {setting}"


def check_shared_memory(needed_mb: int, folder: Path = SHARED_MEMORY) -> str | None:
    """Triton hands tensors to its Python models through /dev/shm."""
    if not folder.is_dir():
        return f"{folder} is missing, which Triton needs: mount it (mount -t tmpfs shm {folder})"
    free_mb = shutil.disk_usage(folder).free >> 20
    if free_mb >= needed_mb:
        return None
    return (
        f"{folder} needs {needed_mb} MB free, {free_mb} MB are: enlarge it (mount -o remount,size=1g {folder}; in a "
        "container: --shm-size=1g)"
    )


def available_memory_mb(cgroup: Path = _CGROUP) -> int:
    """What this process may still use: the machine's MemAvailable, or less if its control group says so."""
    available = int(psutil.virtual_memory().available)
    try:
        limit = (cgroup / "memory.max").read_text(encoding="ascii").strip()
        if limit != "max":
            used = int((cgroup / "memory.current").read_text(encoding="ascii"))
            statistics = dict(line.split() for line in (cgroup / "memory.stat").read_text().splitlines())
            reclaimable = int(statistics.get("inactive_file", 0))
            available = min(available, int(limit) - used + reclaimable)
    except (OSError, ValueError):
        return available >> 20
    return max(available, 0) >> 20


def check_machine(settings: StackSettings, components: Sequence[Component], cache_complete: bool) -> None:
    """Run every check. Raises PreflightError with one line a finding."""
    folders = ((settings.data_dir, "SIGHTLOG_DATA_DIR"), (settings.cache_dir, "SIGHTLOG_CACHE_DIR"))
    lines = [check_python(), *(check_writable(folder, setting) for folder, setting in folders)]
    if not any(lines):
        usages = [component.usage for component in components]
        cache_mb = 0 if cache_complete else CACHE_MB
        data_mb = sum(usage.data_mb for usage in usages)
        same_disk = settings.data_dir.stat().st_dev == settings.cache_dir.stat().st_dev
        lines += [
            check_disk(settings.data_dir, data_mb + (cache_mb if same_disk else 0), "SIGHTLOG_DATA_DIR"),
            check_disk(settings.cache_dir, cache_mb, "SIGHTLOG_CACHE_DIR"),
            check_memory(sum(usage.memory_mb for usage in usages), available_memory_mb()),
            *check_ports(components, settings.port_offset),
        ]
        shm_mb = max((usage.shm_mb for usage in usages), default=0)
        if shm_mb:
            lines.append(check_shared_memory(shm_mb))
    found = [line for line in lines if line]
    if found:
        raise PreflightError("\n".join(found))
