"""What the benchmark reads about a GPU and from Triton, and the settings it gives to a stack."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from load_tests.gpu_device import Gpu
from load_tests.gpu_served import GPU_MACHINE, gpu_machine, new_stack, stage_counters
from models.manifest import load_manifest

PAGE = b"""# HELP sightlog_gpu_stage_seconds_total Seconds by stage
# TYPE sightlog_gpu_stage_seconds_total counter
sightlog_gpu_stage_seconds_total{gpu="0",stage="embed"} 1.5
sightlog_gpu_stage_seconds_total{stage="decode_wait",gpu="0"} 2e-3
sightlog_gpu_items_total{gpu="0",item="images"} 300
sightlog_gpu_memory_bytes{gpu="0",owner="torch_reserved"} 5
"""


def test_counters_of_the_models_are_read_off_tritons_page(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def get(port: int, path: str, host: str) -> tuple[int, bytes]:
        asked.append((host, port, path))
        return 200, PAGE

    monkeypatch.setattr("load_tests.gpu_served.http_get", get)
    stack: Any = SimpleNamespace(endpoints=lambda: SimpleNamespace(triton_metrics="127.0.0.1:18002"))

    assert stage_counters(stack) == {"embed_seconds": 1.5, "decode_wait_seconds": 0.002, "images": 300}
    assert asked == [("127.0.0.1", 18002, "/metrics")]


def test_settings_of_a_gpu_machine_give_way_to_the_environment_and_leave_it_as_it_was(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SIGHTLOG_VISION_WORKERS", "7")
    monkeypatch.delenv("SIGHTLOG_INDEXER_WORKERS", raising=False)
    with gpu_machine():
        stack = new_stack(load_manifest(), "cpu", full=True)
        alone = new_stack(load_manifest(), "cpu", full=False, second=True)
    for made in (stack, alone):
        made.data_dir.rmdir()

    assert stack.settings.vision_workers == 7
    assert stack.settings.indexer_workers == int(GPU_MACHINE["SIGHTLOG_INDEXER_WORKERS"])
    assert alone.settings.components == ("triton",)
    assert not alone.settings.workers
    assert alone.settings.port_offset != stack.settings.port_offset
    assert "SIGHTLOG_INDEXER_WORKERS" not in os.environ


def test_a_machine_without_a_gpu_has_no_figures_of_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    with Gpu() as gpu, gpu.watched() as busy:
        assert not gpu
        assert (gpu.name, gpu.used_mb()) == (None, None)
    assert busy == {}


def test_a_gpu_is_watched_while_something_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    class Unsupported(Exception):
        pass

    def refuse(device: object) -> None:
        raise Unsupported

    used = iter(range(100, 1000))
    nvml = SimpleNamespace(
        NVMLError=Unsupported,
        nvmlInit=lambda: None,
        nvmlShutdown=lambda: None,
        nvmlDeviceGetHandleByIndex=lambda number: number,
        nvmlDeviceGetName=lambda device: b"NVIDIA X",
        nvmlDeviceGetMemoryInfo=lambda device: SimpleNamespace(used=next(used) << 20),
        nvmlDeviceGetUtilizationRates=lambda device: SimpleNamespace(gpu=80),
        nvmlDeviceGetPowerUsage=lambda device: 350_000,
        nvmlDeviceGetJpgUtilization=refuse,
    )
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    monkeypatch.setattr("load_tests.gpu_device._EVERY_S", 0.005)
    with Gpu() as gpu:
        assert (gpu.name, gpu.used_mb()) == ("NVIDIA X", 100)
        with gpu.watched() as busy:
            while next(used) < 200:
                time.sleep(0.001)

    assert (busy["sm"], busy["watt"]) == (80, 350)
    assert busy["memory_mb"] > 110
    assert "jpeg" not in busy


def test_logs_of_a_stack_outlive_it(tmp_path: Path) -> None:
    from load_tests.gpu_served import wiped

    stack = new_stack(load_manifest(), "cpu", full=False)
    stack.log_path("triton").parent.mkdir()
    for name in ("triton", "opensearch", "vision-1"):
        stack.log_path(name).write_text(f"why {name} failed")
    wiped(stack, tmp_path)

    kept = {path.name.split("-sightlog")[0]: path.read_text() for path in tmp_path.iterdir()}
    assert kept == {name: f"why {name} failed" for name in ("triton", "opensearch", "vision-1")}
    assert not stack.data_dir.exists()
