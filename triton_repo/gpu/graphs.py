"""A network captured as CUDA graphs, one for each of a few batch sizes, and how a batch is covered with them."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx.experimental.symbolic_shapes import ConstraintViolationError

from triton_repo.gpu.network import Network, UnsupportedGraphError

#: Runs before the capture, so that libraries have chosen their kernels and made their workspaces.
_WARM_RUNS = 3
#: What one more replay costs, in rows of the tower: launching graphs of small batches leaves most of a GPU idle.
_REPLAY_ROWS = 12


Function = Callable[[Tensor], tuple[Tensor, ...]]


class PixelScaling:
    """uint8 RGB to what a network expects, as `models.preprocessing.normalise`."""

    def __init__(
        self,
        device: torch.device,
        dtype: torch.dtype,
        mean: Sequence[float] = (0, 0, 0),
        std: Sequence[float] = (1, 1, 1),
        value_range: tuple[float, float] = (0, 1),
        *,
        bgr: bool = False,
    ) -> None:
        low, high = value_range
        factor = [(high - low) / 255 / deviation for deviation in std]
        offset = [(low - middle) / deviation for middle, deviation in zip(mean, std, strict=True)]
        # Made now: a CUDA graph cannot hold a copy from the host.
        self._factor = torch.tensor(factor, device=device).view(1, 3, 1, 1)
        self._offset = torch.tensor(offset, device=device).view(1, 3, 1, 1)
        self._dtype, self._bgr = dtype, bgr

    def __call__(self, pixels: Tensor) -> Tensor:
        """uint8 [n, h, w, 3] -> [n, 3, h, w], channels last in memory."""
        channels = pixels.permute(0, 3, 1, 2)
        if self._bgr:
            channels = channels.flip(1)
        return (channels * self._factor + self._offset).to(self._dtype)


class Captured:
    """One batch size: fill `inputs`, `replay`, read `outputs`. The three stay where they are in memory."""

    def __init__(self, function: Function, inputs: Tensor, pool: Any, stream: Any) -> None:
        self.inputs = inputs
        self._function = function
        if inputs.device.type != "cuda":
            self.outputs = function(inputs)
            return
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(_WARM_RUNS):
                function(inputs)
        torch.cuda.current_stream().wait_stream(stream)
        torch.cuda.synchronize()
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph, pool=pool, stream=stream):
            self.outputs = function(inputs)

    def replay(self) -> None:
        """Run on the current stream; returns before it is done where there is a GPU."""
        if self.inputs.device.type == "cuda":
            self._graph.replay()
        else:
            for kept, fresh in zip(self.outputs, self._function(self.inputs), strict=True):
                kept.copy_(fresh)


class BatchSizes:
    """A network captured for several batch sizes; for one thread and one stream at a time."""

    def __init__(
        self,
        network: Network,
        name: str,
        row: Tensor,
        sizes: Sequence[int],
        prepare: Callable[[Tensor], Tensor],
        *,
        compiled: bool,
        progress: Callable[[str], None] = lambda line: None,
    ) -> None:
        """`row`: an input for one, [1, ...], on the device; `name`: of the network's input; `prepare`: row to input."""
        self.sizes = tuple(sorted(set(sizes)))
        self._network, self._name, self._prepare, self._row = network, name, prepare, row
        # Graphs that never run at the same time share their memory.
        self._pool = torch.cuda.graph_pool_handle() if row.device.type == "cuda" else None
        # A stream of their own, because matrix libraries keep a workspace for each stream: two networks captured on one
        # would write into the same when they run side by side.
        self._stream = torch.cuda.Stream() if row.device.type == "cuda" else None
        self._captured: dict[int, Captured] = {}
        once = compiled and len(self.sizes) > 1 and self.sizes[0] > 1
        function = self._compiled_once() if once else None
        for size in reversed(self.sizes):
            inputs = self._inputs(size)
            if function is not None:
                # The bounds tell that 32 bits are enough to count with, and that no size is 1.
                torch._dynamo.mark_dynamic(inputs, 0, min=2, max=self.sizes[-1])
            try:
                self._captured[size] = Captured(
                    function or self._for_one(inputs, compiled), inputs, self._pool, self._stream
                )
            except ConstraintViolationError:
                # Some kernel is chosen by the length of the batch.
                function, inputs = None, self._inputs(size)
                self._captured[size] = Captured(self._for_one(inputs, compiled), inputs, self._pool, self._stream)
            progress(f"captured a batch of {size}")

    def _inputs(self, size: int) -> Tensor:
        return self._row.repeat(size, *[1] * (self._row.ndim - 1))

    def _compiled_once(self) -> Function | None:
        try:
            module = self._network.written({self._name: self._prepare(self._row)}, any_length=True)
        except UnsupportedGraphError:
            return None  # the length of the batch cannot be left open in it
        return _compiled(lambda rows: module(self._prepare(rows)))

    def _for_one(self, inputs: Tensor, compiled: bool) -> Function:
        module = self._network.written({self._name: self._prepare(inputs)})

        def function(rows: Tensor) -> tuple[Tensor, ...]:
            outputs: tuple[Tensor, ...] = module(self._prepare(rows))
            return outputs

        return _compiled(function) if compiled else function

    def run(self, rows: Tensor, keep: Callable[[int, int, tuple[Tensor, ...]], None]) -> None:
        """All of `rows`, in as many replays as are cheapest; `keep(start, stop, outputs)` copies what it needs of each.

        The rows of `outputs` after `stop - start` mean nothing. Asynchronous on a GPU's current stream.
        """
        start = 0
        for size in self.cover(len(rows)):
            stop = min(start + size, len(rows))
            captured = self._captured[size]
            captured.inputs[: stop - start].copy_(rows[start:stop])
            captured.replay()
            keep(start, stop, captured.outputs)
            start = stop

    def cover(self, count: int) -> tuple[int, ...]:
        """The sizes, largest first, that hold `count` rows at the lowest cost."""
        largest = self.sizes[-1]
        full = max(0, -(-count // largest) - 2)
        return (largest,) * full + _covers(self.sizes)[count - full * largest]


def _compiled(function: Function) -> Function:
    compiled: Function = torch.compile(function, fullgraph=True)
    return compiled


@functools.cache
def _covers(sizes: tuple[int, ...]) -> list[tuple[int, ...]]:
    """For each number of rows up to two of the largest batches."""
    covers: list[tuple[int, ...]] = [()]
    for count in range(1, 2 * sizes[-1] + 1):
        ways = [(size, *covers[max(0, count - size)]) for size in sizes]
        best = min(ways, key=lambda cover: sum(cover) + _REPLAY_ROWS * len(cover))
        covers.append(tuple(sorted(best, reverse=True)))
    return covers
