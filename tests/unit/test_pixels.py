"""Pixels under way are bounded, and the header alone says how many a picture has."""

from __future__ import annotations

import asyncio
import io
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from agents.inference.pixels import UNKNOWN_PIXELS, Budget, PixelBound, picture_pixels
from tests.unit.deliveries import spin


def picture(kind: str, width: int, height: int, **options: Any) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (width, height), (200, 30, 30)).save(file, kind, **options)
    return file.getvalue()


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("JPEG", {}),
        ("JPEG", {"progressive": True}),
        ("JPEG", {"exif": b"Exif\x00\x00" + b"x" * 3000, "icc_profile": b"p" * 70_000}),
        ("PNG", {}),
        ("GIF", {}),
        ("WEBP", {}),
        ("WEBP", {"lossless": True}),
        ("WEBP", {"exif": b"Exif\x00\x00MM\x00*\x00\x00\x00\x08\x00\x00"}),
    ],
)
def test_size_is_read_from_the_header(kind: str, options: dict[str, Any]) -> None:
    assert picture_pixels(picture(kind, 321, 123, **options)) == 321 * 123


@pytest.mark.parametrize(
    "data", [b"", b"\xff\xd8", b"\xff\xd8\xff\xc0", b"\x89PNG\r\n\x1a\n", b"RIFF....WEBPVP8L", b"no"]
)
def test_file_without_a_readable_size_counts_as_a_usual_one(data: bytes) -> None:
    assert picture_pixels(data) == UNKNOWN_PIXELS


def test_file_of_nothing_but_segments_takes_no_time() -> None:
    assert picture_pixels(b"\xff\xd8" + b"\xff\xe0\x00\x02" * 2_000_000) == UNKNOWN_PIXELS


@given(st.sampled_from([b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF89a", b"RIFF1234WEBPVP8 "]), st.binary(max_size=64))
def test_no_header_raises(start: bytes, rest: bytes) -> None:
    assert picture_pixels(start + rest) > 0


async def test_budget_is_never_exceeded_and_a_heavy_one_is_alone() -> None:
    budget, most, alone = Budget(100), 0, []

    async def take(weight: int) -> None:
        nonlocal most
        async with budget.taking(weight):
            if weight > 100:
                alone.append(budget.used == weight)
            else:
                most = max(most, budget.used)
            await asyncio.sleep(0)

    await asyncio.gather(*(take(weight) for weight in [30, 60, 20, 500, 50, 50, 100, 1, 250]))
    assert alone == [True, True]
    assert 80 <= most <= 100
    assert budget.used == 0


async def test_heavy_one_is_not_overtaken() -> None:
    budget, order = Budget(100), []
    release = asyncio.Event()

    async def take(name: str, weight: int) -> None:
        async with budget.taking(weight):
            order.append(name)
            await release.wait()

    tasks = [asyncio.create_task(take(*one)) for one in (("first", 60), ("heavy", 90), ("light", 10))]
    await spin()
    assert order == ["first"]
    release.set()
    await asyncio.gather(*tasks)
    assert order == ["first", "heavy", "light"]


async def test_who_gives_up_waiting_takes_nothing() -> None:
    budget, release = Budget(100), asyncio.Event()

    async def take(weight: int) -> None:
        async with budget.taking(weight):
            await release.wait()

    held = asyncio.create_task(take(100))
    await spin()
    waiting = [asyncio.create_task(take(50)) for _ in range(3)]
    await spin()
    waiting[0].cancel()
    release.set()
    # Cancelled in the very moment in which it has its turn.
    await asyncio.sleep(0)
    waiting[1].cancel()
    await asyncio.wait([held, *waiting])
    assert budget.used == 0
    async with budget.taking(100):
        assert budget.used == 100


async def test_pictures_wait_for_pixels_and_not_for_a_number() -> None:
    class Seer:
        now = most = 0

        async def infer_image(self, data: bytes, timeout: float) -> Any:
            self.now += 1
            self.most = max(self.most, self.now)
            await spin(3)
            self.now -= 1
            return len(data)

    seer = Seer()
    large, small = picture("PNG", 1000, 1000), picture("PNG", 10, 10)
    bound = PixelBound(seer, 2.0)
    await asyncio.gather(*(bound.infer_image(large, 1.0) for _ in range(6)))
    assert seer.most == 2
    seer.most = 0
    await asyncio.gather(*(bound.infer_image(small, 1.0) for _ in range(50)))
    assert seer.most == 50
