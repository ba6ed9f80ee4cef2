"""Event to searchable on the whole stack: images a second, and the processor time an image of every part."""

from __future__ import annotations

import os
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
from rich.console import Console

from agents.settings import AgentSettings
from load_tests.publishing import Published, inline, publish_and_wait
from load_tests.running import cpu_seconds
from models.photos import Photo
from sightlog.events import ImageUploaded, new_upload
from stack.local import LocalStack

#: The first and the last receipts are left out of the rate: the stream fills and empties then.
_STEADY = (0.15, 0.85)
_WARM_PART = 5


def measure_stream(
    console: Console, stack: LocalStack, photos: Sequence[Photo], count: int, *, claim_check: bool
) -> dict[str, Any]:
    """Publish `count` events as fast as the broker takes them; `claim_check`: the events carry references to files.

    Processor time is that of every process of a kind together, a kind being e.g. all vision workers.
    """
    settings = AgentSettings.load(data_dir=stack.data_dir)
    tag = f"bench-gpu-{uuid.uuid4().hex[:8]}"
    shown = [photos[number % len(photos)] for number in range(count)]
    upload = _by_reference(settings, photos) if claim_check else inline
    publish_and_wait(console, settings, shown[: max(1, count // _WARM_PART)], f"{tag}-warm", upload=upload)
    before = _processor_s(stack)
    full = publish_and_wait(console, settings, shown, tag, upload=upload)
    after = _processor_s(stack)
    cpu = {kind: round((after[kind] - before.get(kind, 0.0)) * 1000 / count, 3) for kind in after}
    p50, p99 = np.percentile(_waited_ms(full), [50, 99])
    return {
        "images": count,
        "images_per_s": round(_steady_rate(full), 1),
        "images_per_s_overall": round(count / full.seconds, 1),
        "objects_per_image": round(sum(receipt.objects for receipt in full.receipts.values()) / count, 2),
        "backlog_p50_ms": round(float(p50), 1),
        "backlog_p99_ms": round(float(p99), 1),
        "agent_cpu_ms_per_image": cpu.get("worker-vision", 0.0),
        "cpu_ms_per_image": cpu,
    }


def freshness(console: Console, stack: LocalStack, photos: Sequence[Photo], count: int, rate: float) -> dict[str, Any]:
    """How long after its event an image can be found, at `rate` images a second, events inline."""
    settings = AgentSettings.load(data_dir=stack.data_dir)
    tag = f"bench-gpu-{uuid.uuid4().hex[:8]}"
    shown = [photos[number % len(photos)] for number in range(count)]
    p50, p99 = np.percentile(_waited_ms(publish_and_wait(console, settings, shown, tag, rate)), [50, 99])
    return {"images_per_s": round(rate, 1), "p50_ms": round(float(p50), 1), "p99_ms": round(float(p99), 1)}


def _by_reference(settings: AgentSettings, photos: Sequence[Photo]) -> Any:
    """Events that name files, which lie in the folder that the workers may read."""
    folder = settings.uploads_dir.resolve() / "bench"
    folder.mkdir(parents=True, exist_ok=True)
    uris: dict[int, str] = {}
    for number, photo in enumerate(photos):
        path = folder / f"{number}.jpg"
        path.write_bytes(photo.jpeg)
        uris[id(photo.jpeg)] = _uri(path)

    def upload(photo: Photo, tag: str) -> ImageUploaded:
        return new_upload(source="/sightlog/bench", tags=(tag,), dataref=uris[id(photo.jpeg)])

    return upload


def _uri(path: Path) -> str:
    return f"file://{quote(os.fspath(path))}"


def _steady_rate(published: Published) -> float:
    times = sorted(receipt.searchable_at.timestamp() for receipt in published.receipts.values())
    first, last = (int(part * (len(times) - 1)) for part in _STEADY)
    return (last - first) / max(times[last] - times[first], 1e-9)


def _waited_ms(published: Published) -> list[float]:
    return [(r.searchable_at - r.uploaded_at).total_seconds() * 1000 for r in published.receipts.values()]


def _processor_s(stack: LocalStack) -> dict[str, float]:
    """Seconds so far by kind of component: the processes of a worker together."""
    spent: dict[str, float] = {}
    for name in stack.status().components:
        kind, _, number = name.rpartition("-")
        kind = kind if number.isdigit() else name
        spent[kind] = spent.get(kind, 0.0) + cpu_seconds(stack, name)
    return spent
