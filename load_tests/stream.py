"""`bench stream`: images a second from event to searchable, beside what the same models do in one process."""

from __future__ import annotations

import itertools
import os
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from rich.console import Console

from load_tests.publishing import Published, publish_and_wait
from load_tests.running import cpu_seconds, forget, machine, machine_cpu_seconds, stack_for_bench, warm_up
from models.manifest import load_manifest
from models.photos import STREAM_SEED, STREAM_SIZES, Photo, photos
from stack.local import LocalStack
from triton_repo.inprocess import InProcessPipeline

#: Threads that run models in Triton's default configuration: one for the detector, one for the image tower.
MODEL_THREADS = 2
#: The ceiling and freshness need fewer images than the throughput, whose start and end should not count.
_PART = 3
#: Images of a part of the warm-up, however few are measured.
_WARM_UP = 300
#: Share of the measured throughput at which freshness is taken; above it one would measure the backlog.
_FRESHNESS_LOAD = 0.5


def measure(console: Console, count: int = 900) -> dict[str, Any]:
    """Throughput, its ceiling before and after in the same run, freshness at half load, CPU an image.

    `other_cpu_share`: of the cores' time while the throughput was measured, what neither the stack nor this process
    used. It lowers the ratio too, because refreshes, merges and polls cost per second, and the ceiling has none.
    """
    made = photos(count, STREAM_SEED, STREAM_SIZES)
    tag = f"bench-stream-{uuid.uuid4().hex[:8]}"
    with stack_for_bench(console) as (stack, settings):
        pipeline = InProcessPipeline(load_manifest(settings.model_folder), threads=1)
        try:
            alike = list(itertools.islice(itertools.cycle(made), _WARM_UP))
            for _ in warm_up(lambda: cpu_seconds(stack, "kafka", "opensearch")):
                publish_and_wait(console, settings, alike, f"{tag}-warm")
            before = _ceiling(pipeline, made[::_PART])
            spent = _cpu(stack)
            full = publish_and_wait(console, settings, made, tag)
            cpu = {name: now - spent[name] for name, now in _cpu(stack).items()}
            after = _ceiling(pipeline, made[::_PART])
            images_per_s = count / full.seconds
            paced = publish_and_wait(console, settings, made[::_PART], f"{tag}-paced", images_per_s * _FRESHNESS_LOAD)
        finally:
            for used in (tag, f"{tag}-warm", f"{tag}-paced"):
                forget(settings, used)
    ceiling, ceiling_cpu_ms = np.mean([before, after], axis=0)
    p50, p99 = np.percentile(_freshness_ms(paced), [50, 99])
    others = cpu["machine"] - cpu["supervisor"] - cpu["bench"]
    return {
        "images": count,
        "images_per_s": round(images_per_s, 2),
        "ceiling_images_per_s": round(float(ceiling), 2),
        "ceiling_before_after": [round(before[0], 2), round(after[0], 2)],
        "ratio": round(images_per_s / float(ceiling), 3),
        "freshness_p50_ms": round(float(p50), 1),
        "freshness_p99_ms": round(float(p99), 1),
        "freshness_load": _FRESHNESS_LOAD,
        "cpu_ms_per_image": round(cpu["supervisor"] * 1000 / count, 2),
        "ceiling_cpu_ms_per_image": round(float(ceiling_cpu_ms), 2),
        "agent_cpu_ms_per_image": round(cpu["worker-vision"] * 1000 / count, 2),
        "indexer_cpu_ms_per_image": round(cpu["worker-indexer"] * 1000 / count, 2),
        "jvm_cpu_ms_per_image": round((cpu["kafka"] + cpu["opensearch"]) * 1000 / count, 2),
        "other_cpu_share": round(others / (full.seconds * (os.cpu_count() or 1)), 2),
        "model_threads": MODEL_THREADS,
        "machine": machine(),
    }


def _cpu(stack: LocalStack) -> dict[str, float]:
    """CPU-seconds so far: of components, of the `supervisor` with all of them, of this process, of the machine."""
    components = ("kafka", "opensearch", "worker-vision", "worker-indexer", "supervisor")
    own = {name: cpu_seconds(stack, name) for name in components}
    return {**own, "bench": time.process_time(), "machine": machine_cpu_seconds()}


def _ceiling(pipeline: InProcessPipeline, made: list[Photo]) -> tuple[float, float]:
    """The same decode and models in this process, on as many threads as run models in Triton.

    -> images a second, CPU-milliseconds an image
    """
    with ThreadPoolExecutor(MODEL_THREADS) as threads:
        list(threads.map(pipeline.infer, [photo.jpeg for photo in made[:8]]))
        started, spent = time.monotonic(), time.process_time()
        list(threads.map(pipeline.infer, [photo.jpeg for photo in made]))
        return len(made) / (time.monotonic() - started), (time.process_time() - spent) * 1000 / len(made)


def _freshness_ms(published: Published) -> list[float]:
    """From the event's time, set when it was made, to the receipt."""
    return [(r.searchable_at - r.uploaded_at).total_seconds() * 1000 for r in published.receipts.values()]
