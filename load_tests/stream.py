"""`bench stream`: images a second from event to searchable, beside what the same models do in one process."""

from __future__ import annotations

import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from rich.console import Console

from load_tests.publishing import Published, publish_and_wait
from load_tests.running import cpu_seconds, forget, machine, stack_for_bench
from models.manifest import load_manifest
from models.photos import STREAM_SEED, STREAM_SIZES, Photo, photos
from triton_repo.inprocess import InProcessPipeline

#: Threads that run models in Triton's default configuration: one for the detector, one for the image tower.
MODEL_THREADS = 2
#: The ceiling and freshness need fewer images than the throughput, whose start and end should not count.
_PART = 3
#: Share of the measured throughput at which freshness is taken; above it one would measure the backlog.
_FRESHNESS_LOAD = 0.5


def measure(console: Console, count: int = 900) -> dict[str, Any]:
    """Throughput, its ceiling before and after in the same run, freshness at half load, CPU of the vision worker."""
    made = photos(count, STREAM_SEED, STREAM_SIZES)
    tag = f"bench-stream-{uuid.uuid4().hex[:8]}"
    with stack_for_bench(console) as (stack, settings):
        pipeline = InProcessPipeline(load_manifest(settings.model_folder), threads=1)
        try:
            # The virtual machines of Kafka and OpenSearch compile what is hot during the first few hundred images.
            publish_and_wait(console, settings, made[::_PART], f"{tag}-warm")
            before = _ceiling(pipeline, made[::_PART])
            cpu = {name: cpu_seconds(stack, name) for name in ("worker-vision", "worker-indexer")}
            full = publish_and_wait(console, settings, made, tag)
            cpu = {name: (cpu_seconds(stack, name) - spent) * 1000 / count for name, spent in cpu.items()}
            after = _ceiling(pipeline, made[::_PART])
            images_per_s = count / full.seconds
            paced = publish_and_wait(console, settings, made[::_PART], f"{tag}-paced", images_per_s * _FRESHNESS_LOAD)
        finally:
            for used in (tag, f"{tag}-warm", f"{tag}-paced"):
                forget(settings, used)
    ceiling = (before + after) / 2
    p50, p99 = np.percentile(_freshness_ms(paced), [50, 99])
    return {
        "images": count,
        "images_per_s": round(images_per_s, 2),
        "ceiling_images_per_s": round(ceiling, 2),
        "ceiling_before_after": [round(before, 2), round(after, 2)],
        "ratio": round(images_per_s / ceiling, 3),
        "freshness_p50_ms": round(float(p50), 1),
        "freshness_p99_ms": round(float(p99), 1),
        "freshness_load": _FRESHNESS_LOAD,
        "agent_cpu_ms_per_image": round(cpu["worker-vision"], 2),
        "indexer_cpu_ms_per_image": round(cpu["worker-indexer"], 2),
        "model_threads": MODEL_THREADS,
        "machine": machine(),
    }


def _ceiling(pipeline: InProcessPipeline, made: list[Photo]) -> float:
    """Images a second of the same decode and models in this process, on as many threads as run models in Triton."""
    with ThreadPoolExecutor(MODEL_THREADS) as threads:
        list(threads.map(pipeline.infer, [photo.jpeg for photo in made[:8]]))
        started = time.monotonic()
        list(threads.map(pipeline.infer, [photo.jpeg for photo in made]))
        return len(made) / (time.monotonic() - started)


def _freshness_ms(published: Published) -> list[float]:
    """From the event's time, set when it was made, to the receipt."""
    return [(r.searchable_at - r.uploaded_at).total_seconds() * 1000 for r in published.receipts.values()]
