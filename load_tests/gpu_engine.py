"""The engine without Triton, in a process of its own: the ceiling of what is served, and its answers for parity.

The process stays between measurements and costs the GPU nothing then, so the ceiling can be taken before and after what
it is compared with.
"""

from __future__ import annotations

import argparse
import json
import os
import pickle
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

from load_tests.gpu_load import percentiles_ms
from models.decoding import ImageError
from models.manifest import ModelManifest, load_manifest
from sightlog.errors import SightlogError
from stack.settings import StackSettings
from triton_repo.contract import ImageInference

Answer = ImageInference | ImageError | Exception
Reply = Callable[[Answer], None]
_WARM_S = 1.0
_STAGE = "_seconds"  # ends the names of an engine's counters of time
_REPLY_S = 120.0  # nothing of the engine may take as long


class EngineError(SightlogError):
    """The engine's process failed, or gave no answer."""


class InferenceEngine(Protocol):
    """What answers pictures, several at once, in any order. `stats`: counters since the start."""

    def submit(self, data: bytes, reply: Reply) -> None: ...

    def stats(self) -> dict[str, float]: ...

    def close(self) -> None: ...


@dataclass(frozen=True)
class Driven:
    """An engine under load. `stages`: milliseconds an image in each; they overlap. `batch`: pictures, mean."""

    in_flight: int
    images_per_s: float
    p50_ms: float | None
    p99_ms: float | None
    mean_objects: float
    failures: int
    stages: dict[str, float] = field(default_factory=dict)
    batch: float = 0.0


class CpuEngine:
    """The CPU path in the engine's clothes, to try the benchmark where there is no GPU."""

    def __init__(self, manifest: ModelManifest, threads: int = 2) -> None:
        from triton_repo.inprocess import InProcessPipeline

        self._pipeline = InProcessPipeline(manifest)
        self._threads = ThreadPoolExecutor(threads)
        self._spent, self._images = 0.0, 0

    def submit(self, data: bytes, reply: Reply) -> None:
        self._threads.submit(self._work, data, reply)

    def stats(self) -> dict[str, float]:
        return {"images": self._images, "batches": self._images, "model_seconds": self._spent}

    def close(self) -> None:
        self._threads.shutdown()

    def _work(self, data: bytes, reply: Reply) -> None:
        began = time.perf_counter()
        try:
            answer: Answer = self._pipeline.infer(data)
        except ImageError as error:
            answer = error
        self._spent += time.perf_counter() - began
        self._images += 1
        reply(answer)


def drive(
    engine: InferenceEngine, files: Sequence[bytes], in_flight: int, seconds: float, warm: float = _WARM_S
) -> Driven:
    """Keep `in_flight` pictures in the engine for `seconds` after a warm-up, the files in turns."""
    slots = threading.Semaphore(in_flight)
    lock = threading.Lock()
    latencies: list[float] = []
    objects = failures = replies = 0
    began = time.perf_counter()
    counted, ends = began + warm, began + warm + seconds

    def answered(answer: Answer, sent: float) -> None:
        nonlocal objects, failures, replies
        got = time.perf_counter()
        with lock:
            if not isinstance(answer, ImageInference):
                failures += 1
            elif counted <= got < ends:
                replies += 1
                objects += len(answer.boxes)
                if sent >= counted:
                    latencies.append((got - sent) * 1000)
        slots.release()

    number, earlier = 0, dict(engine.stats())
    while time.perf_counter() < ends:
        if slots.acquire(timeout=0.1):
            sent = time.perf_counter()
            engine.submit(files[number % len(files)], lambda answer, sent=sent: answered(answer, sent))  # type: ignore[misc]
            number += 1
    for _ in range(in_flight):  # what is still under way must not meet the next measurement
        if not slots.acquire(timeout=_REPLY_S):
            raise EngineError("the engine did not answer all pictures that it was given")
    stages, batch = by_stage(earlier, engine.stats())
    p50, p99 = percentiles_ms(latencies)
    return Driven(
        in_flight=in_flight,
        images_per_s=round(replies / seconds, 1),
        p50_ms=p50,
        p99_ms=p99,
        mean_objects=round(objects / max(replies, 1), 2),
        failures=failures,
        stages=stages,
        batch=batch,
    )


def by_stage(earlier: Mapping[str, float], later: Mapping[str, float]) -> tuple[dict[str, float], float]:
    """Milliseconds an image in each stage, and pictures a batch, between two readings of an engine's counters."""
    grown = {name: value - earlier.get(name, 0) for name, value in later.items()}
    images = max(grown.get("images", 0), 1)
    spent = {name.removesuffix(_STAGE): value for name, value in grown.items() if name.endswith(_STAGE)}
    milliseconds = {stage: round(value * 1000 / images, 3) for stage, value in spent.items()}
    return milliseconds, round(images / max(grown.get("batches", 0), 1), 1)


def answers(engine: InferenceEngine, files: Sequence[bytes]) -> list[Answer]:
    """What the engine says to each file, all given to it at once, in the order of the files."""
    futures: list[Future[Answer]] = [Future() for _ in files]
    for data, future in zip(files, futures, strict=True):
        engine.submit(data, future.set_result)
    return [future.result(timeout=_REPLY_S) for future in futures]


class EngineProcess:
    """The engine of one model set, started at once and ready after `wait`; use as a context manager."""

    def __init__(self, models: Path, log: Path, *, cpu: bool = False) -> None:
        self._log = log
        command = [sys.executable, "-m", "load_tests.gpu_engine", str(models), *(["--cpu"] if cpu else [])]
        # What Triton's start compiled, or will find compiled.
        compiled = StackSettings().resolved().cache_dir / "torchinductor"
        caches = {"TORCHINDUCTOR_CACHE_DIR": str(compiled), "TRITON_CACHE_DIR": str(compiled / "triton")}
        with log.open("ab") as errors:
            self._process = subprocess.Popen(
                command,
                env={**os.environ, **caches},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                cwd=Path(__file__).parent.parent,
            )
        self._began = time.monotonic()

    @property
    def pid(self) -> int:
        return self._process.pid

    def wait(self) -> float:
        """Seconds from the start until it was ready, models loaded and warmed up. Raises EngineError."""
        self._hear()
        return time.monotonic() - self._began

    def drive(self, pictures: Path, in_flight: int, seconds: float) -> Driven:
        """Load, with the files of a folder. Raises EngineError."""
        return Driven(**self._ask(do="drive", pictures=str(pictures), in_flight=in_flight, seconds=seconds))

    def answers(self, pictures: Path) -> list[ImageInference | str]:
        """Answers to the files of a folder, in the order of their names; a refusal as its words. Raises EngineError."""
        found: list[ImageInference | str] = pickle.loads(
            bytes.fromhex(self._ask(do="answers", pictures=str(pictures))["pickled"])
        )
        return found

    def close(self) -> None:
        """End the process."""
        if self._process.poll() is None:
            self._process.terminate()
        self._process.wait()

    def __enter__(self) -> EngineProcess:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _ask(self, **command: Any) -> Any:
        assert self._process.stdin is not None
        print(json.dumps(command), file=self._process.stdin, flush=True)
        return self._hear()

    def _hear(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            end = self._log.read_text(encoding="utf-8", errors="replace").splitlines()[-8:]
            raise EngineError("the engine's process ended: " + " | ".join(end))
        said = json.loads(line)
        if "error" in said:
            raise EngineError(said["error"])
        return said["result"]


def _open(manifest: ModelManifest, *, cpu: bool) -> InferenceEngine:
    if cpu:
        return CpuEngine(manifest)
    from triton_repo.gpu.engine import Engine

    engine: InferenceEngine = Engine(manifest)
    return engine


def _do(engine: InferenceEngine, command: dict[str, Any]) -> Any:
    files = [path.read_bytes() for path in sorted(Path(command["pictures"]).iterdir())]
    if command["do"] == "answers":
        told = [answer if isinstance(answer, ImageInference) else str(answer) for answer in answers(engine, files)]
        return {"pickled": pickle.dumps(told).hex()}
    return asdict(drive(engine, files, command["in_flight"], command["seconds"]))


def main() -> None:
    """Reads commands, one JSON object a line, and answers each with one."""
    parser = argparse.ArgumentParser()
    parser.add_argument("models", type=Path)
    parser.add_argument("--cpu", action="store_true")
    said = parser.parse_args()
    # Libraries print to the standard output, which is for answers here.
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    engine = _open(load_manifest(said.models), cpu=said.cpu)
    print(json.dumps({"result": "ready"}), file=out, flush=True)
    for line in sys.stdin:
        try:
            answer = {"result": _do(engine, json.loads(line))}
        except Exception as error:  # told to the parent, which records it and asks for the next figure
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), file=out, flush=True)
    engine.close()


if __name__ == "__main__":
    main()
