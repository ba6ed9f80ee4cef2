"""The kernels in Triton's language compute what PyTorch and Pillow compute; by Triton's interpreter where no GPU is."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from typing import Any

import pytest

pytest.importorskip("torch", reason="needs PyTorch: pip install 'sightlog[stack,gpu]'")

import numpy as np
import torch
from torch.nn import functional as F

from models.manifest import ModelManifest, load_manifest
from models.preprocessing import square_crop
from tests.gpu import interpreted_kernels
from tests.pictures import photo
from triton_repo.gpu import suppression

Array = Any
Launch = Callable[..., Any]


@pytest.fixture(
    scope="module",
    params=[
        "interpreter",
        pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here")),
    ],
)
def launch(request: pytest.FixtureRequest) -> Iterator[Launch]:
    """Calls a function of `interpreted_kernels` with the device as its first argument."""
    if request.param == "cuda":
        yield lambda function, *arguments, **named: function("cuda", *arguments, **named)
        return
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, spawn, initializer=interpreted_kernels.in_interpreter) as worker:
        yield lambda function, *arguments, **named: worker.submit(function, "cpu", *arguments, **named).result(120)


def manifest_for(interpolation: str, size: int) -> ModelManifest:
    tiny = load_manifest()
    return replace(tiny, clip=replace(tiny.clip, image_size=size, interpolation=interpolation))


def noise(height: int, width: int) -> Array:
    return np.random.default_rng(height).integers(0, 256, (height, width, 3), np.uint8)


def photograph(height: int, width: int) -> Array:
    return np.asarray(photo("astronaut.png").convert("RGB").resize((width, height)))


#: Boxes in parts of width and height: all, inside, at two corners, wide, tiny, without area.
PLACES = np.array(
    [
        [0, 0, 1, 1],
        [0.31, 0.42, 0.53, 0.71],
        [0, 0, 0.3, 0.35],
        [0.8, 0.7, 1, 1],
        [0.02, 0.4, 0.98, 0.5],
        [0.501, 0.502, 0.503, 0.504],
        [1, 1, 1, 1],
    ],
    np.float32,
)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_crops_are_those_of_pillow(interpolation: str, launch: Launch) -> None:
    size = 5  # no power of two; the interpreter takes a millisecond for each pixel of a filter
    manifest = manifest_for(interpolation, size)
    # Wider and higher than a crop, smaller, one pixel, one line.
    pictures = [noise(5, 9), photograph(8, 6), noise(4, 3), noise(1, 1), noise(1, 7)]
    places = [PLACES, PLACES[:3], PLACES[:2], PLACES[:1], PLACES[:1]]
    boxes = [
        part * np.array([*picture.shape[1::-1]] * 2, np.float32) for part, picture in zip(places, pictures, strict=True)
    ]
    found = launch(interpreted_kernels.crops, manifest, pictures, boxes)
    row = 0
    for picture, of_picture in zip(pictures, boxes, strict=True):
        for box in of_picture:
            wanted = square_crop(
                picture,
                box,
                size,
                margin=manifest.preprocessing.crop_margin,
                pad_value=manifest.detector.pad_value,
                interpolation=interpolation,
            )
            difference = np.abs(found[row].astype(int) - wanted)
            assert difference.max() <= 1, (picture.shape, box)
            assert difference.mean() < 0.05, (picture.shape, box)
            row += 1
    assert row == len(found)


def test_pictures_without_boxes_are_passed_over(launch: Launch) -> None:
    manifest = manifest_for("bilinear", 8)
    pictures = [np.full((20, 20, 3), level, np.uint8) for level in (10, 90, 170)]
    none, one = np.zeros((0, 4), np.float32), np.array([[4, 4, 12, 12]], np.float32)
    found = launch(interpreted_kernels.crops, manifest, pictures, [one, none, one])
    assert [np.unique(crop).tolist() for crop in found] == [[10], [170]]


@pytest.mark.parametrize(("count", "classes"), [(1, 1), (7, 1), (32, 3), (45, 2), (50, 80)])
def test_suppression_keeps_what_it_keeps_on_cpu(count: int, classes: int, launch: Launch) -> None:
    rng = np.random.default_rng(count)
    start = rng.uniform(-20, 10, (3, count, 2))
    boxes = np.concatenate([start, start + rng.uniform(5, 60, (3, count, 2))], -1).astype(np.float32)
    boxes[:, -1, 2:] = boxes[:, -1, :2]  # without area
    scores = np.sort(rng.uniform(0, 1, (3, count)).astype(np.float32))[:, ::-1].copy()
    scores[2] *= 0.2  # none is good enough
    kinds = rng.integers(0, classes, (3, count))
    found = launch(interpreted_kernels.suppressed, boxes, scores, kinds, 0.45, 0.25)
    tensors = (torch.from_numpy(boxes), torch.from_numpy(scores), torch.from_numpy(kinds))
    wanted = suppression.suppress(*tensors, 0.45, 0.25).numpy()
    np.testing.assert_array_equal(found, wanted)
    assert not found[2].any()
    assert count == 1 or classes == 80 or 0 < (found[0] > 0).sum() < (scores[0] > 0.25).sum()


@pytest.mark.parametrize("gelu", [False, True])
@pytest.mark.parametrize(
    ("channels", "multiple", "kernel", "stride", "height", "width"),
    [
        (6, 1, 3, 1, 9, 11),
        (6, 2, 7, 2, 17, 13),
        (70, 1, 7, 1, 8, 8),
        (33, 2, 3, 2, 7, 5),
        (5, 3, 3, 1, 4, 10),
        (64, 1, 3, 2, 16, 16),
    ],
)
def test_depthwise_convolutions_are_those_of_pytorch(
    channels: int, multiple: int, kernel: int, stride: int, height: int, width: int, gelu: bool, launch: Launch
) -> None:
    rng = np.random.default_rng(channels)
    x = rng.normal(0, 1, (2, channels, height, width)).astype(np.float32)
    weight = rng.normal(0, 1, (channels * multiple, 1, kernel, kernel)).astype(np.float32)
    bias = rng.normal(0, 1, channels * multiple).astype(np.float32)
    rows = np.ascontiguousarray(weight.reshape(channels * multiple, -1).T)
    found, together = launch(interpreted_kernels.convolved, x, rows, bias, kernel, stride, kernel // 2, gelu=gelu)
    tensors = (torch.from_numpy(x), torch.from_numpy(weight), torch.from_numpy(bias))
    wanted = F.conv2d(*tensors, stride, kernel // 2, groups=channels)
    wanted = F.gelu(wanted) if gelu else wanted
    np.testing.assert_allclose(found, wanted.numpy(), rtol=1e-4, atol=1e-4)
    assert together
    on_cpu = torch.ops.sightlog.depthwise(
        tensors[0], torch.from_numpy(rows), tensors[2], kernel, stride, kernel // 2, gelu
    )
    torch.testing.assert_close(on_cpu, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here")
def test_a_matrix_with_its_activation_is_near_what_it_is_on_cpu() -> None:
    x, weight, bias = torch.randn(33, 64), torch.randn(48, 64) / 8, torch.randn(48)
    wanted = torch.ops.sightlog.linear_gelu(x, weight, bias)
    found = torch.ops.sightlog.linear_gelu(*(tensor.to("cuda", torch.float16) for tensor in (x, weight, bias)))
    torch.testing.assert_close(found.float().cpu(), wanted, rtol=1e-2, atol=1e-2)
