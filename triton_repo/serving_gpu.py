"""What Triton's python backend runs in the profile `fused`: the pipeline of a GPU as one model."""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import triton_python_backend_utils as pb

from triton_repo import contract
from triton_repo.contract import ImageInference, StepTensors
from triton_repo.gpu.engine import Answer, Cancelled, Engine
from triton_repo.gpu.networks import TextTower
from triton_repo.gpu.streams import device_of
from triton_repo.gpu_settings import GpuSettings
from triton_repo.serving import ServedModel, failure, seen_answer, tensor
from triton_repo.serving_onnx import TowerModel

_log = logging.getLogger(__name__)
#: Time for replies to leave before a broken process ends.
_LAST_REPLIES_S = 0.5
#: Seconds until a thread that waits for Python's lock gets it from one that computes. With the usual 5 ms a batch on
#: the GPU is over before the next one is on its way.
_SWITCH_S = 0.0005


class FusedModel(ServedModel):
    """`fused_pipeline`: takes requests without waiting for them, and answers each when its picture is done."""

    def start(self) -> None:
        started = time.monotonic()
        sys.setswitchinterval(_SWITCH_S)
        self._engine = Engine(
            self.manifest,
            GpuSettings.from_json(self.parameters["gpu"]),
            gpu=self.device,
            broken=end_process,
            progress=lambda line: print(f"fused_pipeline: {line}, {time.monotonic() - started:.1f} s", flush=True),
        )
        self._metrics = _Metrics(self._engine, self.device)

    def execute(self, requests: Sequence[Any]) -> None:  # type: ignore[override]
        """Answers come from other threads, through the requests' senders."""
        for request in requests:
            sender = request.get_response_sender()
            ready = tensor(request, StepTensors.DALI_IMAGE)[0]
            pixels = int(tensor(request, StepTensors.DALI_PIXELS)[0, 0])
            # The request is kept until it is answered, and with it these bytes, which lie in shared memory.
            self._engine.submit_ready(ready, pixels, _Reply(request, sender), sender.is_cancelled)

    def finalize(self) -> None:
        """Called by Triton before it ends or unloads the model."""
        self._metrics.stop()
        self._engine.close()


class _Reply:
    def __init__(self, request: Any, sender: Any) -> None:
        self._request, self._sender = request, sender

    def __call__(self, result: Answer) -> None:
        self._sender.send(_response(result), flags=pb.TRITONSERVER_RESPONSE_COMPLETE_FINAL)


class GpuTextModel(TowerModel):
    """`clip_text`: tokens to vectors."""

    _input = contract.TOKENS

    def start(self) -> None:
        settings = GpuSettings.from_json(self.parameters["gpu"])
        device = device_of(settings, self.device)
        self._tower = TextTower(self.manifest, device, settings, lambda line: None)


class _Metrics:
    """Stage times and memory on the server's metrics page: Triton's own stop when `execute` returns."""

    _PERIOD_S = 1.0

    def __init__(self, engine: Engine, device: int) -> None:
        self._engine = engine
        labels = {"gpu": str(device)}
        stages = pb.MetricFamily(
            name="sightlog_gpu_stage_seconds_total", description="Seconds by stage", kind=pb.MetricFamily.COUNTER
        )
        counts = pb.MetricFamily(
            name="sightlog_gpu_items_total", description="Images, crops and batches", kind=pb.MetricFamily.COUNTER
        )
        memory = pb.MetricFamily(
            name="sightlog_gpu_memory_bytes", description="GPU memory by owner", kind=pb.MetricFamily.GAUGE
        )
        self._families = stages, counts, memory
        self._labels = labels
        self._metrics: dict[str, Any] = {}
        self._stopped = threading.Event()
        threading.Thread(target=self._publish, name="metrics", daemon=True).start()

    def stop(self) -> None:
        """No more updates."""
        self._stopped.set()

    def _publish(self) -> None:
        while not self._stopped.wait(self._PERIOD_S):
            for name, value in self._engine.stats().items():
                metric = self._metric(name)
                if name.endswith("_bytes"):
                    metric.set(value)
                else:
                    metric.increment(value - metric.value())

    def _metric(self, name: str) -> Any:
        if name not in self._metrics:
            stages, counts, memory = self._families
            if name.endswith("_seconds"):
                self._metrics[name] = stages.Metric(labels=self._labels | {"stage": name.removesuffix("_seconds")})
            elif name.endswith("_bytes"):
                self._metrics[name] = memory.Metric(labels=self._labels | {"owner": name.removesuffix("_bytes")})
            else:
                self._metrics[name] = counts.Metric(labels=self._labels | {"item": name})
        return self._metrics[name]


def _response(result: Answer) -> Any:
    if isinstance(result, ImageInference):
        size = np.array([[result.width, result.height]], np.int32)
        return seen_answer(result, result.embedding[None], result.object_embeddings, size)
    if isinstance(result, Cancelled):
        return pb.InferenceResponse(error=pb.TritonError(str(result), pb.TritonError.CANCELLED))
    return failure(result)


def end_process(error: BaseException) -> None:
    """After a CUDA error nothing works in this process; its end makes the server restart, and events wait for it."""
    _log.critical("the GPU pipeline broke, this process ends: %s", error, exc_info=error)
    time.sleep(_LAST_REPLIES_S)
    os._exit(1)
