"""CUDA streams and events, and what stands for them where there is no GPU: there everything is done when it returns."""

from __future__ import annotations

import time
from contextlib import AbstractContextManager, ExitStack
from typing import Any, Protocol

import torch

from triton_repo.gpu_settings import GpuSettings


def device_of(settings: GpuSettings, gpu: int) -> torch.device:
    """The device that a process works on, `gpu` being its number; from here on it takes no more memory than it may."""
    if settings.device == "cpu":
        return torch.device("cpu")
    device = torch.device("cuda", gpu)
    torch.cuda.set_device(device)
    torch.backends.cudnn.benchmark = True
    if settings.memory_mb:
        total = torch.cuda.get_device_properties(device).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, settings.memory_mb * 2**20 / total), device)
    return device


class Mark(Protocol):
    """A point in a stream."""

    def wait(self) -> None:
        """Block this thread until the stream has passed it; other threads run meanwhile."""

    def seconds_since(self, earlier: Any) -> float:
        """Time on the device between two marks that were passed."""


class Stream:
    """Work of one thread on the device, in its order."""

    def __init__(self, device: torch.device, *, urgent: bool = False) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device, priority=-1 if urgent else 0) if device.type == "cuda" else None

    def entered(self) -> AbstractContextManager[Any]:
        """For a `with` around what a thread does: its work goes to this stream of this device, without gradients."""
        stack = ExitStack()
        stack.enter_context(torch.no_grad())
        if self._stream is not None:
            stack.enter_context(torch.cuda.device(self._device))
            stack.enter_context(torch.cuda.stream(self._stream))
        return stack

    def mark(self) -> Mark:
        """Here."""
        return _HostMark() if self._stream is None else _DeviceMark(self._stream)

    def after(self, mark: Mark) -> None:
        """What follows in this stream begins when another stream has passed `mark`."""
        if self._stream is not None:
            assert isinstance(mark, _DeviceMark)
            self._stream.wait_event(mark.event)


class _DeviceMark:
    def __init__(self, stream: torch.cuda.Stream) -> None:
        # Blocking: a thread that waits does not spin, the interpreter lock goes to the others.
        self.event = torch.cuda.Event(enable_timing=True, blocking=True)
        self.event.record(stream)

    def wait(self) -> None:
        self.event.synchronize()

    def seconds_since(self, earlier: _DeviceMark) -> float:
        return float(earlier.event.elapsed_time(self.event)) / 1000


class _HostMark:
    def __init__(self) -> None:
        self._at = time.perf_counter()

    def wait(self) -> None:
        """Nothing is ever under way."""

    def seconds_since(self, earlier: _HostMark) -> float:
        return self._at - earlier._at
