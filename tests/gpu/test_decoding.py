"""Batches come out in the order they went in, and nobody is lost who shares one with a picture that cannot be had."""

from __future__ import annotations

import io
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pytest

pytest.importorskip("torch", reason="needs PyTorch and DALI: pip install 'sightlog[stack,gpu]'")
pytest.importorskip("nvidia.dali", reason="needs PyTorch and DALI: pip install 'sightlog[stack,gpu]'")

import numpy as np
from PIL import Image

from models.decoding import ImageError
from models.manifest import ModelManifest
from tests.gpu.small_graphs import CPU
from tests.gpu.small_models import CANVAS, CROP
from tests.parity_cases import small_pictures
from tests.pictures import encoded, photo
from triton_repo.dali_inputs import dali_ready
from triton_repo.gpu.decoding import Decoder, OutOfGpuMemory, Views
from triton_repo.steps import ImageSteps

BATCH = 4


@dataclass(frozen=True)
class Job:
    number: int
    ready: bytes


class Refused:
    def __init__(self) -> None:
        self.errors: dict[int, Exception] = {}

    def __call__(self, job: Job, error: Exception) -> None:
        assert job.number not in self.errors
        self.errors[job.number] = error


@pytest.fixture
def refused() -> Refused:
    return Refused()


Start = Callable[..., Decoder[Job]]


@pytest.fixture
def start(manifest: ModelManifest, refused: Refused) -> Start:
    def started(ahead: int = 3) -> Decoder[Job]:
        return Decoder(manifest, CPU, BATCH, ahead=ahead, threads=1, refused=refused)

    return started


def level(number: int) -> Job:
    """A picture of one grey, which tells its number, and of a size of its own."""
    return Job(number, dali_ready(encoded(Image.new("RGB", (16 + number, 20), (number,) * 3), "PNG")))


def damaged(number: int) -> Job:
    whole = encoded(photo("coffee.png").convert("RGB").resize((64, 64)), "JPEG", progressive=True)
    tables = whole.rindex(b"\xff\xc4") + 5  # of the last scan
    return Job(number, dali_ready(whole[:tables] + b"\xff" * 16 + whole[tables + 16 :]))


def batches(jobs: Sequence[Job]) -> list[list[Job]]:
    return [list(jobs[first : first + BATCH]) for first in range(0, len(jobs), BATCH)]


def taken(decoder: Decoder[Job]) -> Iterator[tuple[list[Job], Views]]:
    """All that is left in it."""
    while len(decoder):
        result = decoder.take()
        if result is not None:
            yield result


def assert_shows(jobs: list[Job], views: Views) -> None:
    count = len(jobs)
    assert views.letterboxed.shape == (count, CANVAS, CANVAS, 3)
    assert views.centre.shape == (count, CROP, CROP, 3)
    assert views.sizes.tolist() == [[16 + job.number, 20] for job in jobs]
    middle = CANVAS // 2
    for row, job in enumerate(jobs):
        assert views.originals[row].shape == (20, 16 + job.number, 3)
        assert (views.originals[row] == job.number).all()
        assert (views.centre[row] == job.number).all()
        assert (views.letterboxed[row, middle, middle] == job.number).all()


def test_batches_come_out_in_order_though_several_were_fed_ahead(start: Start) -> None:
    decoder = start(ahead=3)
    jobs = [level(number) for number in range(1, 38)]
    waiting = deque(batches(jobs))
    held: list[tuple[list[Job], Views]] = []
    while waiting or len(decoder):
        while waiting and len(decoder) < 3:
            decoder.feed(waiting.popleft())
        result = decoder.take()
        assert result is not None
        held.append(result)
    assert [job for batch, _ in held for job in batch] == jobs
    # Held to the end: later batches must not run over earlier ones.
    for batch, views in held:
        assert_shows(batch, views)


def test_more_than_may_be_ahead_waits_its_turn(start: Start) -> None:
    decoder = start(ahead=2)
    jobs = [level(number) for number in range(1, 26)]
    for batch in batches(jobs):
        decoder.feed(batch)
    assert len(decoder) == 7
    results = list(taken(decoder))
    assert [job for batch, _ in results for job in batch] == jobs
    for batch, views in results:
        assert_shows(batch, views)
    assert decoder.take() is None


@pytest.mark.parametrize("where", [0, 5, 19])
def test_a_damaged_file_is_refused_alone(where: int, start: Start, refused: Refused) -> None:
    decoder = start(ahead=2)
    jobs = [damaged(number) if number == where else level(number) for number in range(20)]
    for batch in batches(jobs):
        decoder.feed(batch)
    results = list(taken(decoder))
    assert [job.number for batch, _ in results for job in batch] == [n for n in range(20) if n != where]
    for batch, views in results:
        assert_shows(batch, views)
    (error,) = refused.errors.values()
    assert list(refused.errors) == [where]
    assert isinstance(error, ImageError)
    assert error.code == "undecodable"
    decoder.feed([level(40)])
    ((batch, views),) = taken(decoder)
    assert_shows(batch, views)


def test_nothing_is_left_of_a_batch_of_damaged_files(start: Start, refused: Refused) -> None:
    decoder = start()
    decoder.feed([damaged(1), damaged(2)])
    decoder.feed([level(3)])
    assert decoder.take() is None
    assert set(refused.errors) == {1, 2}
    ((batch, views),) = taken(decoder)
    assert_shows(batch, views)


def test_every_kind_of_file_shows_what_it_shows_on_cpu(start: Start, manifest: ModelManifest) -> None:
    decoder, steps = start(), ImageSteps(manifest)
    pictures = list(small_pictures().values())
    for batch in batches([Job(number, dali_ready(data)) for number, data in enumerate(pictures)]):
        decoder.feed(batch)
    seen = 0
    for jobs, views in taken(decoder):
        for row, job in enumerate(jobs):
            wanted = steps.prepare(pictures[job.number])
            assert views.sizes[row].tolist() == wanted.size.tolist()
            assert (views.originals[row].numpy() == wanted.original).all()
            seen += 1
    assert seen == len(pictures)


class ShortOfMemory:
    """A pipeline that fails as DALI's does: with a batch that is too large, and then for ever."""

    def __init__(self, most: int, ahead: int, message: str, too_large: Sequence[int] = ()) -> None:
        self._most, self._ahead, self._message, self._too_large = most, ahead, message, too_large
        self._fed: deque[list[bytes]] = deque()
        self._broken = False

    def feed_input(self, name: str, files: list[Any]) -> None:
        assert not self._broken
        self._fed.append([bytes(file) for file in files])
        assert len(self._fed) <= self._ahead

    def schedule_run(self) -> None:
        assert not self._broken

    def release_outputs(self) -> None:
        assert not self._broken

    def share_outputs(self) -> Sequence[Any]:
        assert not self._broken
        pixels = [np.asarray(Image.open(io.BytesIO(data))) for data in self._fed.popleft()]
        if len(pixels) > self._most or any(one[0, 0, 0] in self._too_large for one in pixels):
            self._broken = True
            raise RuntimeError(self._message)
        return [
            _Tensors([np.full((CANVAS, CANVAS, 3), one[0, 0, 0], np.uint8) for one in pixels]),
            _Tensors([np.full((CROP, CROP, 3), one[0, 0, 0], np.uint8) for one in pixels]),
            _Tensors(pixels),
            _Tensors([np.array(one.shape[1::-1], np.int32) for one in pixels]),
        ]


class _Tensors(list[Any]):
    def as_tensor(self) -> Any:
        return np.stack(self)


#: As DALI 2 and its libraries say it.
MESSAGES = [
    "CUDA allocation failed: Out of memory. Can't allocate 123 bytes",
    "Error in thread 0: std::bad_alloc",
    "nvjpeg error: memory allocation failed",
]


@pytest.mark.parametrize("message", MESSAGES)
@pytest.mark.parametrize("most", [1, 2, 3])
def test_a_batch_that_does_not_fit_into_memory_is_halved(
    most: int, message: str, start: Start, refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Decoder, "_built", lambda decoder: ShortOfMemory(most, 3, message))
    decoder = start(ahead=3)
    jobs = [level(number) for number in range(1, 23)]
    for batch in batches(jobs):
        decoder.feed(batch)
    results = list(taken(decoder))
    assert [job for batch, _ in results for job in batch] == jobs
    assert max(len(batch) for batch, _ in results) <= most
    for batch, views in results:
        assert_shows(batch, views)
    assert not refused.errors


def test_one_picture_that_never_fits_is_refused_as_short_of_memory(
    start: Start, refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Decoder, "_built", lambda decoder: ShortOfMemory(BATCH, 2, MESSAGES[0], too_large=[6]))
    decoder = start(ahead=2)
    jobs = [level(number) for number in range(1, 14)]
    for batch in batches(jobs):
        decoder.feed(batch)
    results = list(taken(decoder))
    assert [job.number for batch, _ in results for job in batch] == [n for n in range(1, 14) if n != 6]
    for batch, views in results:
        assert_shows(batch, views)
    assert list(refused.errors) == [6]
    assert isinstance(refused.errors[6], OutOfGpuMemory)


def test_another_failure_is_decided_on_cpu_whatever_size_the_picture_has(
    start: Start, refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever prepared the file knows the limit of pixels, and it may be higher than the default."""
    monkeypatch.setattr(ImageSteps.__init__, "__defaults__", (None, 10))
    monkeypatch.setattr(Decoder, "_built", lambda decoder: ShortOfMemory(0, 2, "Assert on nvjpeg failed"))
    decoder = start(ahead=2)
    decoder.feed([level(1), level(2)])
    ((batch, views),) = taken(decoder)
    assert_shows(batch, views)
    assert not refused.errors


def test_a_part_of_views_is_that_part(start: Start) -> None:
    decoder = start()
    decoder.feed([level(number) for number in (1, 2, 3, 4)])
    ((jobs, views),) = taken(decoder)
    assert_shows(jobs[1:3], views.part(1, 3))
    assert views.part(1, 3).letterboxed.data_ptr() == views.letterboxed[1].data_ptr()
