"""How long a training runs and how its learning rate goes: by the clock, so that it ends when it is told to."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator

import torch

_WARM_UP_STEPS = 200
_FINAL_FACTOR = 0.01
_REPORT_EVERY_S = 10.0


class Schedule:
    """A cosine over `minutes` of wall time after a linear warm-up, and a line of figures now and then."""

    def __init__(self, name: str, minutes: float, write: Callable[[str], None] = print) -> None:
        self._name, self._seconds, self._write = name, minutes * 60, write
        self._start = self._last_report = time.monotonic()

    def steps(self, optimizer: torch.optim.Optimizer) -> Iterator[int]:
        """Step numbers from 1 until the time is over; sets the learning rate before each."""
        peaks = [group["lr"] for group in optimizer.param_groups]
        self._start = self._last_report = time.monotonic()
        step = 0
        while (done := self.elapsed / self._seconds) < 1:
            step += 1
            cosine = 0.5 * (1 + math.cos(math.pi * done)) * (1 - _FINAL_FACTOR) + _FINAL_FACTOR
            for group, peak in zip(optimizer.param_groups, peaks, strict=True):
                group["lr"] = peak * min(1.0, step / _WARM_UP_STEPS) * cosine
            yield step

    @property
    def elapsed(self) -> float:
        """Seconds since the first step."""
        return time.monotonic() - self._start

    def is_report(self, step: int) -> bool:
        """Whether this step's figures are due; reading them off the device costs time."""
        return step == 1 or time.monotonic() - self._last_report >= _REPORT_EVERY_S

    def report(self, step: int, **figures: float) -> None:
        """Writes one line."""
        self._last_report = time.monotonic()
        shown = " ".join(
            f"{name} {value:,}" if isinstance(value, int) else f"{name} {value:.4f}" for name, value in figures.items()
        )
        self._write(f"[{self._name}] {self.elapsed:5.0f} s step {step} {shown}")
