"""What NVML tells about the first GPU: its name, memory in use, and how busy its parts were meanwhile."""

from __future__ import annotations

import importlib
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

_EVERY_S = 0.2


class Gpu:
    """The first GPU of the machine; one that is not there has no figures. Use as a context manager."""

    def __init__(self) -> None:
        self._nvml: Any = None
        with suppress(ModuleNotFoundError):
            self._nvml = importlib.import_module("pynvml")
        self._device: Any = None

    def __enter__(self) -> Gpu:
        if self._nvml is not None:
            try:
                self._nvml.nvmlInit()
                self._device = self._nvml.nvmlDeviceGetHandleByIndex(0)
            except self._nvml.NVMLError:
                self._nvml = None
        return self

    def __exit__(self, *_: object) -> None:
        if self._nvml is not None:
            self._nvml.nvmlShutdown()

    def __bool__(self) -> bool:
        return self._nvml is not None

    @property
    def name(self) -> str | None:
        """As NVIDIA calls it."""
        if self._nvml is None:
            return None
        name = self._nvml.nvmlDeviceGetName(self._device)
        return name.decode() if isinstance(name, bytes) else str(name)

    def used_mb(self) -> int | None:
        """Megabytes in use by everybody together, contexts of processes included."""
        return None if self._nvml is None else int(self._nvml.nvmlDeviceGetMemoryInfo(self._device).used) >> 20

    @contextmanager
    def watched(self) -> Iterator[dict[str, float]]:
        """Means over the block, filled in at its end: `sm` and `jpeg` percent busy, `watt`, most `memory_mb`."""
        means: dict[str, float] = {}
        if self._nvml is None:
            yield means
            return
        samples: list[dict[str, float]] = []
        stop = threading.Event()

        def sample() -> None:
            while not stop.wait(_EVERY_S):
                samples.append(self._sample())

        thread = threading.Thread(target=sample, daemon=True)
        thread.start()
        try:
            yield means
        finally:
            stop.set()
            thread.join()
            for key in {key for one in samples for key in one}:
                values = [one[key] for one in samples if key in one]
                means[key] = round(max(values) if key == "memory_mb" else sum(values) / len(values), 1)

    def _sample(self) -> dict[str, float]:
        nvml, device = self._nvml, self._device
        readings: dict[str, Callable[[], Any]] = {
            "sm": lambda: nvml.nvmlDeviceGetUtilizationRates(device).gpu,
            "jpeg": lambda: nvml.nvmlDeviceGetJpgUtilization(device)[0],
            "watt": lambda: nvml.nvmlDeviceGetPowerUsage(device) / 1000,
            "memory_mb": lambda: nvml.nvmlDeviceGetMemoryInfo(device).used >> 20,
        }
        found: dict[str, float] = {}
        for name, read in readings.items():
            with suppress(nvml.NVMLError, AttributeError):  # not every machine tells everything
                found[name] = float(read())
        return found
