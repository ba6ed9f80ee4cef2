"""The figures of the GPU benchmark: a JSON file that is whole after each of them, bars, tables and pictures."""

from __future__ import annotations

import json
import os
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from load_tests.charts import lines, stacked_bars
from load_tests.running import machine
from sightlog.atomic_write import write_atomically

Figures = dict[str, Any]
#: Bars for these towers in one set with YOLOX-S; a set is told by the tower's name in its own.
_S0, _S2 = "MobileCLIP2-S0", "MobileCLIP2-S2"


class Report:
    """Figures by model set and name, written to `path` whenever one is added: a run can be cut off at any time.

    May be told from several threads.
    """

    def __init__(self, path: Path, console: Console, arguments: Mapping[str, Any]) -> None:
        self.path = path
        self._console = console
        self._lock = threading.Lock()
        self._began = time.monotonic()
        self.document: Figures = {
            "bench": "gpu",
            "machine": machine(),
            "settings": {name: value for name, value in os.environ.items() if name.startswith("SIGHTLOG_")},
            "arguments": dict(arguments),
            "sets": {},
            "errors": {},
        }
        self._write()

    def add(self, models: str, name: str, figures: Any) -> None:
        """One figure, or several that belong together, of a model set."""
        with self._lock:
            self.document["sets"].setdefault(models, {})[name] = figures
            self._write()
        self._console.print(f"{time.monotonic() - self._began:5.0f} s  {models}  {name}: {json.dumps(figures)}")

    @contextmanager
    def part(self, models: str, name: str) -> Iterator[None]:
        """What fails inside is recorded, and the benchmark goes on with the next part."""
        try:
            yield
        except Exception as error:
            with self._lock:
                self.document["errors"][f"{models}: {name}"] = traceback.format_exc()[-3000:]
                self._write()
            self._console.print(f"{models}  {name} failed: {type(error).__name__}: {error}", style="red")

    def finish(self) -> None:
        """Judge the figures, and draw them beside the JSON file."""
        self.document["seconds"] = round(time.monotonic() - self._began, 1)
        self.document["bars"] = judged(self.document["sets"])
        self.document["breakdown"] = {models: breakdown(figures) for models, figures in self.document["sets"].items()}
        self._write()
        for name, svg in pictures(self.document["sets"]).items():
            self.path.with_name(f"{self.path.stem}-{name}.svg").write_text(svg, encoding="utf-8")

    def _write(self) -> None:
        write_atomically(self.path, json.dumps(self.document, indent=2) + "\n")


@dataclass(frozen=True)
class Bar:
    """`path`: to the figure in a set; `at_least`: else at most. `only`: the sets with this tower."""

    name: str
    path: tuple[str, ...]
    limit: float
    at_least: bool = True
    only: str | None = None


BARS = (
    Bar("fused through Triton / in process", ("fused", "ratio"), 0.95),
    Bar("ensemble through Triton / in process", ("ensemble", "ratio"), 0.85),
    Bar("through Triton, images/s", ("fused", "images_per_s"), 800, only=_S0),
    Bar("through Triton, images/s", ("fused", "images_per_s"), 450, only=_S2),
    Bar("event to searchable / through Triton", ("stream", "ratio"), 0.85),
    Bar("event to searchable, images/s", ("stream", "images_per_s"), 650, only=_S0),
    Bar("event to searchable, images/s", ("stream", "images_per_s"), 400, only=_S2),
    Bar("one image at a time, p50 ms", ("fused", "one_at_a_time", "p50_ms"), 12, at_least=False),
    Bar("agent CPU, inline, ms an image", ("stream", "inline", "agent_cpu_ms_per_image"), 2.5, at_least=False),
    Bar(
        "agent CPU, claim check, ms an image", ("stream", "claim_check", "agent_cpu_ms_per_image"), 1.5, at_least=False
    ),
    Bar("seconds to ready, warm cache", ("ready", "restart_s"), 40, at_least=False),
    Bar("GPU memory at batch 16, MB", ("memory", "used_mb"), 6500, at_least=False),
    Bar("parity: smallest cosine of a picture", ("parity", "engine", "global_cosine_min"), 0.995),
    Bar("parity: smallest cosine of an object", ("parity", "engine", "object_cosine_min"), 0.995),
    Bar("parity: smallest IoU of a box", ("parity", "engine", "box_iou_min"), 0.95),
)


def judged(sets: Mapping[str, Figures]) -> list[Figures]:
    """Each bar for each set that has its figure."""
    found = []
    for models, figures in sets.items():
        for bar in BARS:
            value = _at(figures, bar.path)
            if value is not None and (bar.only is None or bar.only.lower() in models.lower()):
                met = value >= bar.limit if bar.at_least else value <= bar.limit
                limit = f"{'>=' if bar.at_least else '<='} {bar.limit:g}"
                found.append({"models": models, "figure": bar.name, "value": value, "bar": limit, "met": bool(met)})
    return found


def breakdown(figures: Figures) -> dict[str, dict[str, float]]:
    """Milliseconds an image: by the engine's stages, which overlap, and on processors by part of the stack."""
    bars: dict[str, dict[str, float]] = {}
    for name, where in (("in process", "ceiling"), ("fused", "fused")):
        if stages := _at(figures, (where, "stages")):
            bars[f"engine, {name}"] = dict(stages)
    for way in ("inline", "claim_check"):
        if cpu := _at(figures, ("stream", way, "cpu_ms_per_image")):
            bars[f"processors, {way.replace('_', ' ')}"] = {
                name.removeprefix("worker-") + (" agent" if name.startswith("worker-") else ""): value
                for name, value in cpu.items()
            }
    return bars


def pictures(sets: Mapping[str, Figures]) -> dict[str, str]:
    """SVG by name."""
    bars = {f"{models}: {name}": bar for models, figures in sets.items() for name, bar in breakdown(figures).items()}
    series = {
        f"{models} {way}": [(level["in_flight"], level["images_per_s"]) for level in figures[way]["levels"]]
        for models, figures in sets.items()
        for way in ("ceiling", "fused", "ensemble")
        if figures.get(way, {}).get("levels")
    }
    drawn: dict[str, Callable[[], str]] = {}
    if bars:
        drawn["stages"] = lambda: stacked_bars("Where the time of an image goes", "milliseconds an image", bars)
    if series:
        drawn["load"] = lambda: lines("Pictures of 1920x1080", "pictures under way", "images a second", series)
    return {name: draw() for name, draw in drawn.items()}


def _at(figures: Any, path: tuple[str, ...]) -> Any:
    for key in path:
        figures = figures.get(key) if isinstance(figures, dict) else None
    return figures
