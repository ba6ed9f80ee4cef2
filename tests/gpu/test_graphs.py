"""How a batch is covered with captured ones, and that what comes out is what the network gives."""

from __future__ import annotations

import itertools
import shutil
import sysconfig
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch", reason="needs PyTorch: pip install 'sightlog[stack,gpu]'")

import numpy as np
import onnx
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper
from torch import Tensor, nn

from models.preprocessing import normalise
from tests.gpu.small_graphs import CPU, exported, graph_of, network
from triton_repo.gpu import graphs
from triton_repo.gpu.graphs import BatchSizes, PixelScaling
from triton_repo.gpu.network import UnsupportedGraphError

Array = Any
REPLAY = 12  # rows


def doubling(folder: Path, sizes: tuple[int, ...], *, compiled: bool = False) -> BatchSizes:
    node = helper.make_node("Add", ["images", "images"], ["result"])
    model = graph_of([node], np.zeros(2, np.float32), {"result": TensorProto.FLOAT}, {})
    return BatchSizes(network(model, folder), "images", torch.zeros(1, 2), sizes, lambda rows: rows, compiled=compiled)


@pytest.fixture(scope="module")
def covering(tmp_path_factory: pytest.TempPathFactory) -> BatchSizes:
    return doubling(tmp_path_factory.mktemp("covers"), (1,))


@settings(max_examples=200, deadline=None, derandomize=True, database=None)
@given(sizes=st.lists(st.integers(1, 400), min_size=1, max_size=5, unique=True), count=st.integers(0, 1500))
def test_covers_hold_all_rows_and_no_batch_in_vain(covering: BatchSizes, sizes: list[int], count: int) -> None:
    covering.sizes = tuple(sorted(sizes))
    cover = covering.cover(count)
    assert set(cover) <= set(sizes)
    assert list(cover) == sorted(cover, reverse=True)
    assert sum(cover) >= count
    assert not cover or sum(cover[:-1]) < count


@pytest.mark.parametrize("count", range(1, 45))
def test_no_other_cover_costs_less(covering: BatchSizes, count: int) -> None:
    covering.sizes = (3, 8, 22)

    def cost(cover: tuple[int, ...]) -> int:
        return sum(cover) + REPLAY * len(cover)

    ways = [
        way
        for replays in range(1, 6)
        for way in itertools.combinations_with_replacement(covering.sizes, replays)
        if sum(way) >= count
    ]
    assert cost(covering.cover(count)) == min(map(cost, ways))


def test_one_large_replay_is_preferred_to_many_small_ones(covering: BatchSizes) -> None:
    covering.sizes = (11, 44, 88, 176, 352)
    assert covering.cover(11) == (11,)
    assert covering.cover(40) == (44,)
    assert covering.cover(53) == (44, 11)
    assert covering.cover(80) == (88,)
    assert covering.cover(353) == (352, 11)
    assert covering.cover(1024) == (352, 352, 352)


@pytest.mark.parametrize("sizes", [(1,), (1, 512), (2, 3)])
def test_many_rows_are_covered_with_small_batches_too(covering: BatchSizes, sizes: tuple[int, ...]) -> None:
    covering.sizes = sizes
    assert sum(covering.cover(1024)) >= 1024


def test_every_row_is_kept_once_with_its_own_result(tmp_path: Path) -> None:
    batches = doubling(tmp_path, (2, 5))
    for count in range(14):
        rows = torch.rand(count, 2)
        result = torch.full((count, 2), torch.nan)

        def keep(start: int, stop: int, outputs: tuple[Tensor, ...], result: Tensor = result) -> None:
            assert result[start:stop].isnan().all()
            result[start:stop] = outputs[0][: stop - start]

        batches.run(rows, keep)
        torch.testing.assert_close(result, rows * 2)


def run(batches: BatchSizes, rows: Tensor, dim: int) -> Tensor:
    result = torch.empty(len(rows), dim)

    def keep(start: int, stop: int, outputs: tuple[Tensor, ...]) -> None:
        result[start:stop] = outputs[0][: stop - start]

    with torch.no_grad():
        batches.run(rows, keep)
    return result


@pytest.mark.skipif(
    not (shutil.which("g++") and (Path(sysconfig.get_path("include")) / "Python.h").exists()),
    reason="PyTorch compiles for the CPU with g++ and Python's headers, which are not here",
)
def test_compiled_or_not_all_sizes_give_the_same(tmp_path: Path) -> None:
    layers = (nn.Conv2d(3, 6, 3, 2, 1, groups=3), nn.GELU(), nn.Conv2d(6, 4, 1), nn.Flatten(), nn.Linear(64, 10))
    file = exported(nn.Sequential(*layers), torch.zeros(3, 8, 8), tmp_path / "tower.onnx")
    row = torch.zeros(1, 8, 8, 3, dtype=torch.uint8)
    scaling = PixelScaling(CPU, torch.float32, (0.5, 0.4, 0.3), (0.2, 0.3, 0.4))
    compiled, plain = (
        BatchSizes(network(file, tmp_path), "images", row, (2, 5), scaling, compiled=compiled)
        for compiled in (True, False)
    )
    pixels = torch.randint(0, 256, (9, 8, 8, 3), dtype=torch.uint8)
    for count in (1, 2, 3, 5, 9):
        torch.testing.assert_close(
            run(compiled, pixels[:count], 10), run(plain, pixels[:count], 10), atol=1e-4, rtol=1e-4
        )


def as_long_as_the_batch() -> onnx.ModelProto:
    """Adds a table of zeros with a row for each picture, as exporters write `torch.zeros(len(x), 2)`."""
    nodes = [
        helper.make_node("Shape", ["images"], ["shape"]),
        helper.make_node("ConstantOfShape", ["shape"], ["zeros"]),
        helper.make_node("Add", ["images", "zeros"], ["result"]),
    ]
    return graph_of(nodes, np.zeros(2, np.float32), {"result": TensorProto.FLOAT}, {})


def test_what_cannot_be_written_for_any_length_is_written_for_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UnsupportedGraphError, match="as long as the batch"):
        network(as_long_as_the_batch(), tmp_path).written({"images": torch.zeros(1, 2)}, any_length=True)
    monkeypatch.setattr(graphs, "_compiled", lambda function: function)
    batches = BatchSizes(
        network(as_long_as_the_batch(), tmp_path), "images", torch.zeros(1, 2), (2, 4), lambda x: x, compiled=True
    )
    rows = torch.rand(7, 2)
    torch.testing.assert_close(run(batches, rows, 2), rows)


@pytest.mark.parametrize("bgr", [False, True])
@pytest.mark.parametrize("value_range", [(0.0, 1.0), (0.0, 255.0), (-1.0, 1.0)])
def test_pixels_are_scaled_as_they_are_for_onnxruntime(bgr: bool, value_range: tuple[float, float]) -> None:
    mean, std = (0.48, 0.45, 0.4), (0.26, 0.27, 0.28)
    pixels = np.random.default_rng(0).integers(0, 256, (3, 5, 7, 3), np.uint8)
    found = PixelScaling(CPU, torch.float32, mean, std, value_range, bgr=bgr)(torch.from_numpy(pixels))
    wanted = normalise(pixels, mean, std, value_range, bgr=bgr)
    np.testing.assert_allclose(found.numpy(), wanted, rtol=1e-5, atol=1e-4)
