"""The ceiling: an engine keeps as many pictures as it is told, and everything that it says is counted."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from load_tests.gpu_engine import CpuEngine, EngineError, EngineProcess, Reply, answers, by_stage, drive
from load_tests.gpu_pictures import SMALL, make_pictures
from models.decoding import ImageError
from models.manifest import TINY_FOLDER, load_manifest
from triton_repo.contract import ImageInference
from triton_repo.inprocess import InProcessPipeline


class SlowEngine:
    """Answers each picture after 5 ms with as many objects as its bytes tell; `b"bad"` is refused."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(32)
        self._lock = threading.Lock()
        self.now = self.most = self.images = 0

    def submit(self, data: bytes, reply: Reply) -> None:
        with self._lock:
            self.now += 1
            self.most = max(self.most, self.now)
        self._threads.submit(self._answer, data, reply)

    def stats(self) -> dict[str, float]:
        return {"images": self.images, "batches": self.images / 4, "embed_seconds": self.images * 0.002}

    def close(self) -> None:
        self._threads.shutdown()

    def _answer(self, data: bytes, reply: Reply) -> None:
        time.sleep(0.005)
        with self._lock:
            self.now -= 1
            self.images += 1
        if data == b"bad":
            reply(ImageError("undecodable", "as told"))
            return
        objects = np.zeros((int(data), 4), np.float32)
        reply(ImageInference(1, 1, objects, objects, objects[:, 0], objects[:, 0].astype(np.int32), objects))


def test_a_level_is_kept_and_never_exceeded() -> None:
    engine = SlowEngine()
    driven = drive(engine, [b"2", b"4"], 8, 0.3, warm=0.1)
    engine.close()

    assert engine.most == 8
    assert engine.now == 0, "nothing is left for the next measurement"
    assert driven.in_flight == 8
    assert driven.mean_objects == pytest.approx(3, abs=0.2)
    assert driven.p50_ms is not None
    assert driven.p50_ms >= 5
    assert (driven.failures, driven.batch) == (0, 4.0)
    assert driven.stages == {"embed": pytest.approx(2.0)}


def test_only_replies_of_the_measured_seconds_count() -> None:
    engine = SlowEngine()
    driven = drive(engine, [b"1"], 4, 0.1, warm=0.4)
    engine.close()

    assert 0 < driven.images_per_s * 0.1 < engine.images / 2


def test_refused_pictures_are_failures_not_throughput() -> None:
    engine = SlowEngine()
    driven = drive(engine, [b"bad"], 4, 0.1, warm=0.0)
    engine.close()

    assert driven.images_per_s == 0
    assert driven.failures > 0
    assert driven.p50_ms is None


def test_stages_are_the_growth_of_counters_an_image() -> None:
    earlier = {"images": 10, "batches": 2, "detect_seconds": 1.0, "memory_bytes": 5}
    later = {"images": 20, "batches": 4, "detect_seconds": 1.5, "memory_bytes": 9}

    assert by_stage(earlier, later) == ({"detect": 50.0}, 5.0)


def test_answers_come_in_the_order_of_the_files() -> None:
    engine = SlowEngine()
    told = answers(engine, [b"3", b"bad", b"1"])
    engine.close()

    assert isinstance(told[0], ImageInference)
    assert isinstance(told[1], ImageError)
    assert isinstance(told[2], ImageInference)
    assert (len(told[0].boxes), len(told[2].boxes)) == (3, 1)


def test_the_process_answers_as_the_pipeline_does_and_tells_refusals(tmp_path: Path) -> None:
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    files = [photo.jpeg for photo in make_pictures(2, SMALL, processes=1)]
    for number, data in enumerate([*files, b"no picture"]):
        (pictures / f"{number}.jpg").write_bytes(data)

    with EngineProcess(TINY_FOLDER, tmp_path / "log", cpu=True) as process:
        assert process.wait() > 0
        found = process.answers(pictures)

    truth = InProcessPipeline(load_manifest(TINY_FOLDER))
    for data, answer in zip(files, found, strict=False):
        assert isinstance(answer, ImageInference)
        assert np.allclose(answer.embedding, truth.infer(data).embedding, atol=1e-5)
    assert str(found[2]).startswith("unsupported_format")


def test_a_process_that_cannot_start_tells_why(tmp_path: Path) -> None:
    with (
        EngineProcess(tmp_path / "nothing", tmp_path / "log", cpu=True) as process,
        pytest.raises(EngineError, match="nothing"),
    ):
        process.wait()


def test_the_cpu_engine_counts_what_it_did() -> None:
    engine = CpuEngine(load_manifest(TINY_FOLDER))
    told = answers(engine, [photo.jpeg for photo in make_pictures(2, SMALL, processes=1)])
    engine.close()

    assert all(isinstance(answer, ImageInference) for answer in told)
    assert engine.stats()["images"] == 2
