"""Stacks for the GPU benchmark: Triton alone, or with all that makes an event searchable; each wiped at its end."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from agents.delivery.failures import DependencyDown, ItemBroken
from agents.inference.client import TritonClient
from load_tests.running import free_port_offset
from models.manifest import ModelManifest
from stack.local import LocalStack
from stack.ports import http_get
from stack.settings import StackSettings
from triton_repo.contract import ImageInference

#: For a machine with a GPU, whose streams are faster than a laptop's; what the environment says goes before.
GPU_MACHINE: Mapping[str, str] = {
    "SIGHTLOG_VISION_WORKERS": "4",
    # Its pictures repeat, and each is to be inferred.
    "SIGHTLOG_REUSE_BYTES": "0",
    "SIGHTLOG_INDEXER_WORKERS": "2",
    "SIGHTLOG_VISION_CONCURRENCY": "64",
    "SIGHTLOG_VISION_UNACKED": "128",
    "SIGHTLOG_VISION_UNACKED_BYTES": str(128 << 20),
    # Bulks that wait for a refresh of 1 s each: many images in them, and many bulks at once.
    "SIGHTLOG_INDEXER_UNACKED": "4096",
    "SIGHTLOG_INDEXER_UNACKED_BYTES": str(256 << 20),
    "SIGHTLOG_INDEXER_CONCURRENCY": "32",
    # Building the graph with the default of 512 takes 21 ms of a core an image with ten objects, with 128 it takes 16.
    "SIGHTLOG_INDEX_EF_CONSTRUCTION": "128",
    "SIGHTLOG_KAFKA_HEAP_MB": "1024",
    "SIGHTLOG_OPENSEARCH_HEAP_MB": "6144",
}
_SECOND_STACK = 200  # ports from the first to the second stack; their steps are 400 apart
_TIMEOUT_S = 120.0
_STAGE = re.compile(r'^sightlog_gpu_stage_seconds_total\{[^}]*stage="(\w+)"[^}]*\} (\S+)', re.MULTILINE)
_ITEM = re.compile(r'^sightlog_gpu_items_total\{[^}]*item="(\w+)"[^}]*\} (\S+)', re.MULTILINE)


@contextmanager
def gpu_machine() -> Iterator[None]:
    """Settings of GPU_MACHINE in the environment, which the stack and its workers read."""
    fresh = {name: value for name, value in GPU_MACHINE.items() if name not in os.environ}
    os.environ.update(fresh)
    try:
        yield
    finally:
        for name in fresh:
            del os.environ[name]


def new_stack(manifest: ModelManifest, profile: str, *, full: bool, second: bool = False) -> LocalStack:
    """A stack with a folder of its own that serves the models, not started; `second`: beside another new one."""
    settings = StackSettings.model_validate(
        {
            **StackSettings().model_dump(),
            "models": manifest.folder,
            "triton_profile": profile,
            "components": ("kafka", "opensearch", "triton") if full else ("triton",),
            "workers": full,
            "worker_names": ("vision", "indexer"),
        }
    )
    folder = Path(tempfile.mkdtemp(prefix="sightlog-bench-"))
    return LocalStack(folder, free_port_offset() + (_SECOND_STACK if second else 0), full, settings=settings)


def started(stack: LocalStack) -> float:
    """Bring it up; seconds until all of it was ready."""
    began = time.monotonic()
    stack.up()
    return time.monotonic() - began


def stage_counters(stack: LocalStack) -> dict[str, float]:
    """What the models of a GPU tell on Triton's metrics page, by item or `<stage>_seconds`; empty on CPU."""
    host, _, port = stack.endpoints().triton_metrics.rpartition(":")
    page = http_get(int(port), "/metrics", host)[1].decode()
    counters = {f"{stage}_seconds": float(value) for stage, value in _STAGE.findall(page)}
    return counters | {item: float(value) for item, value in _ITEM.findall(page)}


def restarted(stack: LocalStack, timeout_s: float = 400.0) -> float:
    """Stop Triton and start it again; seconds from its start until it was ready."""
    stack.stop_component("triton")
    began = time.monotonic()
    stack.start_component("triton", timeout_s)
    return time.monotonic() - began


def wiped(stack: LocalStack, keep_logs_in: Path) -> None:
    """Stop it and remove its folder; the ends of its logs are kept."""
    for log in stack.log_path("triton").parent.glob("*.log"):
        kept = keep_logs_in / f"{log.stem}-{stack.data_dir.name}.log"
        kept.write_text(log.read_text(encoding="utf-8", errors="replace")[-60_000:], encoding="utf-8")
    stack.down(wipe=True)
    shutil.rmtree(stack.data_dir, ignore_errors=True)


def served_answers(stack: LocalStack, manifest: ModelManifest, files: Sequence[Path]) -> list[ImageInference | str]:
    """What Triton says to each file, through the client of the agents; a refusal or failure as its words."""

    async def ask() -> list[ImageInference | str]:
        async with TritonClient(stack.endpoints().triton_grpc, manifest.digest) as client:

            async def one(path: Path) -> ImageInference | str:
                try:
                    return await client.infer_image(path.read_bytes(), _TIMEOUT_S)
                except (ItemBroken, DependencyDown) as error:
                    return str(error)

            return await asyncio.gather(*(one(path) for path in files))

    return asyncio.run(ask())
