"""All parts of the GPU benchmark for one model set, on servers that wait side by side while another is measured."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from load_tests.gpu_device import Gpu
from load_tests.gpu_engine import Driven, EngineProcess, by_stage
from load_tests.gpu_load import Load, measure_load
from load_tests.gpu_parity import Answer, compare, cpu_answers
from load_tests.gpu_pictures import LARGE, SMALL
from load_tests.gpu_report import Report
from load_tests.gpu_served import new_stack, restarted, served_answers, stage_counters, started, wiped
from load_tests.gpu_stream import freshness, measure_stream
from models.manifest import ModelManifest
from models.photos import Photo
from stack.local import LocalStack
from triton_repo.contract import serving_version
from triton_repo.tuning import Tuning, machine_id, save_tuning

Size = tuple[int, int]
PARTS = ("fused", "sizes", "stream", "ready", "ensemble", "parity", "memory")
#: For batches of up to 16 pictures, at which the memory is told.
_BATCH_16 = {"batch": 16, "detector_sizes": [2, 8, 16], "tower_sizes": [11, 44, 88, 176], "crops": 512}
_FRESHNESS_LOAD, _FRESHNESS_S = 0.5, 4.0  # of the stream's rate; above it one would measure the backlog
_LARGE_IN_FLIGHT = 64
_METRICS_S = 1.2  # until counters of the last second are on the metrics page


@dataclass(frozen=True)
class Options:
    """What is measured, and for how long. `cpu`: the CPU profile and engine instead, to try the benchmark itself."""

    parts: tuple[str, ...] = PARTS
    levels: tuple[int, ...] = (32, 64, 128, 256)
    seconds: float = 3.0
    images: int = 4000
    cpu: bool = False


@dataclass(frozen=True)
class Material:
    """Folders of files by size, the size that most parts show and its photos, and files for parity."""

    folders: dict[Size, Path]
    size: Size
    photos: Sequence[Photo]
    parity: Sequence[Path]

    @property
    def folder(self) -> Path:
        return self.folders[self.size]


class SetBench:
    """Measures one model set and adds its figures to the report; each part is guarded for itself."""

    def __init__(
        self,
        manifest: ModelManifest,
        options: Options,
        material: Material,
        report: Report,
        gpu: Gpu,
        console: Console,
        logs: Path,
    ) -> None:
        self._manifest, self._options, self._material = manifest, options, material
        self._report, self._gpu, self._console, self._logs = report, gpu, console, logs
        self._version = serving_version(manifest.digest)
        self._before = 0.0  # images/s of the engine, last measured
        self._in_flight = options.levels[-1]  # at which the engine does most
        self._served_best = 0.0
        self._ensemble: Future[LocalStack] | None = None
        self._truth: Future[list[Answer]] | None = None

    def run(self) -> None:
        """All parts that were asked for."""
        steps: dict[str, Callable[[], None]] = {
            "fused": lambda: self._serve("fused", self._full),
            "sizes": self._sizes,
            "stream": self._stream,
            "ready": lambda: self._add("ready", {"restart_s": round(restarted(self._full.result()), 1)}),
            "ensemble": lambda: self._serve("ensemble", self._ensemble),
            "parity": self._parity,
        }
        with ExitStack() as ends:
            self._start(ends)
            with self._report.part(self._manifest.name, "ceiling"):
                self._ceiling()
            for name, step in steps.items():
                if name in self._options.parts:
                    with self._report.part(self._manifest.name, name):
                        step()
        if "memory" in self._options.parts and self._gpu:
            with self._report.part(self._manifest.name, "memory"):
                self._memory()

    def _start(self, ends: ExitStack) -> None:
        """Everything at once: what waits costs the GPU nothing."""
        threads = ends.enter_context(ThreadPoolExecutor())
        process = EngineProcess(self._manifest.folder, self._logs / "engine.log", cpu=self._options.cpu)
        ends.callback(process.close)

        def engine() -> EngineProcess:
            self._add("engine_ready_s", round(process.wait(), 1))
            return process

        def up(stack: LocalStack, name: str) -> LocalStack:
            ends.callback(wiped, stack, self._logs)
            self._add(f"{name}_up_s", round(started(stack), 1))
            return stack

        def full() -> LocalStack:
            profile = "cpu" if self._options.cpu else "fused"
            if "stream" in self._options.parts:
                with self._report.part(self._manifest.name, "start of the whole stack"):
                    return up(new_stack(self._manifest, profile, full=True), "stack")
            return up(new_stack(self._manifest, profile, full=False), "fused")

        def ensemble() -> LocalStack:
            return up(new_stack(self._manifest, "ensemble", full=False, second=True), "ensemble")

        def truth() -> list[Answer]:
            return cpu_answers(self._manifest, self._material.parity)

        self._engine = threads.submit(engine)
        self._full = threads.submit(full)
        if "ensemble" in self._options.parts:
            self._ensemble = threads.submit(ensemble)
        if "parity" in self._options.parts:
            self._truth = threads.submit(truth)
        # All are up before anything is measured; a failure is told where its result is needed.
        starting: list[Future[Any] | None] = [self._engine, self._full, self._ensemble, self._truth]
        wait([future for future in starting if future])

    def _ceiling(self) -> None:
        engine, folder = self._engine.result(), self._material.folder
        levels = []
        with self._gpu.watched() as busy:
            for level in self._options.levels:
                levels.append(engine.drive(folder, level, self._options.seconds))
        best = max(levels, key=lambda one: one.images_per_s)
        self._before, self._in_flight = best.images_per_s, best.in_flight
        self._add("ceiling", {**asdict(best), "levels": _rows(levels), "gpu": busy})
        self._add("ceiling_one_at_a_time", asdict(engine.drive(folder, 1, self._options.seconds)))

    def _serve(self, name: str, future: Future[LocalStack] | None) -> None:
        """Through Triton at every level; the engine is measured again afterwards."""
        assert future is not None
        stack, folder = future.result(), self._material.folder
        earlier = stage_counters(stack)
        with self._gpu.watched() as busy:
            levels = self._load(stack, folder, self._options.levels)
        time.sleep(_METRICS_S)
        stages, batch = by_stage(earlier, stage_counters(stack))
        best = max(levels, key=lambda one: one.images_per_s)
        one = self._load(stack, folder, (1,))[0]
        after = self._engine.result().drive(folder, self._in_flight, self._options.seconds).images_per_s
        ceiling = (self._before + after) / 2
        figures = {
            **asdict(best),
            "ceiling_before_after": [self._before, after],
            "ratio": round(best.images_per_s / max(ceiling, 1e-9), 3),
            "levels": _rows(levels),
            "one_at_a_time": asdict(one),
            "stages": stages,
            "batch": batch,
            "gpu": busy,
        }
        self._before = after
        if name == "fused":
            self._served_best = best.images_per_s
        self._add(name, figures)

    def _sizes(self) -> None:
        stack, engine = self._full.result(), self._engine.result()
        for size, in_flight in ((SMALL, self._options.levels[-1]), (LARGE, _LARGE_IN_FLIGHT)):
            in_flight = min(in_flight, self._options.levels[-1])
            folder = self._material.folders[size]
            before = engine.drive(folder, in_flight, self._options.seconds).images_per_s
            served = self._load(stack, folder, (in_flight,))[0]
            after = engine.drive(folder, in_flight, self._options.seconds).images_per_s
            ratio = round(served.images_per_s / max((before + after) / 2, 1e-9), 3)
            figures = {**asdict(served), "ceiling_before_after": [before, after], "ratio": ratio}
            self._add(f"{size[0]}x{size[1]}", figures)

    def _stream(self) -> None:
        """Inline and by claim check; the better one counts as the stream's rate."""
        stack, photos, count = self._full.result(), self._material.photos, self._options.images
        ways: dict[str, Any] = {}
        for way in ("inline", "claim_check"):
            ways[way] = measure_stream(self._console, stack, photos, count, claim_check=way == "claim_check")
            best = max(ways, key=lambda name: ways[name]["images_per_s"])
            rate = ways[best]["images_per_s"]
            ratio = round(rate / self._served_best, 3) if self._served_best else None
            self._add("stream", {"images_per_s": rate, "way": best, "ratio": ratio, **ways})
        paced = rate * _FRESHNESS_LOAD
        self._add("freshness", freshness(self._console, stack, photos, max(1, int(paced * _FRESHNESS_S)), paced))

    def _parity(self) -> None:
        assert self._truth is not None
        truth, files = self._truth.result(), self._material.parity
        names = [path.name for path in files]
        found: dict[str, Any] = {}
        engine = self._engine.result().answers(files[0].parent)
        found["engine"] = compare(self._manifest, names, truth, engine).figures()
        self._add("parity", found)
        for name, future in (("fused", self._full), ("ensemble", self._ensemble)):
            if future is not None:
                answers = served_answers(future.result(), self._manifest, files)
                found[name] = compare(self._manifest, names, truth, answers).figures()
                self._add("parity", found)

    def _memory(self) -> None:
        """Triton alone, in batches of up to 16; what was in use before is not its."""
        before = self._gpu.used_mb() or 0
        stack = new_stack(self._manifest, "fused", full=False)
        stack.data_dir.mkdir(parents=True, exist_ok=True)
        save_tuning(stack.data_dir, Tuning(machine_id(), self._manifest.digest, "fused", gpu=_BATCH_16))
        try:
            seconds = started(stack)
            time.sleep(1.0)  # NVML lags
            idle = self._gpu.used_mb() or 0
            with self._gpu.watched() as busy:
                load = self._load(stack, self._material.folder, (_LARGE_IN_FLIGHT,))[0]
            used = max(busy.get("memory_mb", 0.0), idle) - before
            figures = {"used_mb": used, "idle_mb": idle - before, "up_s": round(seconds, 1), "load": asdict(load)}
            self._add("memory", figures)
        finally:
            wiped(stack, self._logs)

    def _load(self, stack: LocalStack, folder: Path, levels: Sequence[int]) -> list[Load]:
        return measure_load(stack.endpoints().triton_grpc, self._version, folder, levels, self._options.seconds)

    def _add(self, name: str, figures: Any) -> None:
        self._report.add(self._manifest.name, name, figures)


def _rows(levels: Sequence[Driven | Load]) -> list[dict[str, Any]]:
    return [asdict(level) for level in levels]
