"""Every picture that the engine takes is answered once, with what belongs to it, whatever happens meanwhile."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from models.decoding import ImageError
from models.manifest import ModelManifest, load_manifest
from models.photos import STREAM_SEED, STREAM_SIZES, photos
from tests.gpu.small_models import ROWS, SETTINGS, assert_answers, colour_manifest, picture
from tests.pictures import encoded, photo, truncated_jpeg
from triton_repo.contract import ImageInference
from triton_repo.gpu import engine as engine_module
from triton_repo.gpu.decoding import OutOfGpuMemory
from triton_repo.gpu.engine import Cancelled, Engine, EngineStopped
from triton_repo.gpu.networks import Detector, ImageTower
from triton_repo.gpu_settings import GpuSettings
from triton_repo.inprocess import InProcessPipeline

_SECONDS = 30


class Answers:
    """By what each picture was submitted as."""

    def __init__(self) -> None:
        self.of: dict[Any, list[Any]] = {}
        self._changed = threading.Condition()

    def reply(self, key: Any) -> Callable[[Any], None]:
        def called(answer: Any) -> None:
            with self._changed:
                self.of.setdefault(key, []).append(answer)
                self._changed.notify_all()

        return called

    def wait(self, count: int) -> dict[Any, Any]:
        """When there are `count`, each of another picture."""
        with self._changed:
            assert self._changed.wait_for(lambda: sum(map(len, self.of.values())) >= count, _SECONDS)
            assert all(len(answers) == 1 for answers in self.of.values())
            assert len(self.of) == count
            return {key: answers[0] for key, answers in self.of.items()}


class Gate:
    """Stands in front of a stage; open, until it is closed."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, owner: Any, name: str) -> None:
        self.reached, self._open = threading.Semaphore(0), threading.Event()
        self._open.set()
        stage = getattr(owner, name)

        def gated(*arguments: Any) -> Any:
            self.reached.release()
            assert self._open.wait(_SECONDS)
            return stage(*arguments)

        monkeypatch.setattr(owner, name, gated)

    def close(self) -> None:
        self._open.clear()

    def open(self) -> None:
        self._open.set()

    def wait(self, times: int = 1) -> None:
        """Until somebody stands there."""
        for _ in range(times):
            assert self.reached.acquire(timeout=_SECONDS)


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> ModelManifest:
    return colour_manifest(tmp_path_factory.mktemp("models"))


Start = Callable[..., Engine]


@pytest.fixture
def start(manifest: ModelManifest) -> Iterator[Start]:
    """Engines that are closed when the test ends."""
    engines: list[Engine] = []

    def started(settings: GpuSettings = SETTINGS, **options: Any) -> Engine:
        engines.append(Engine(manifest, settings, **options))
        return engines[-1]

    yield started
    for engine in engines:
        engine.close()


@pytest.fixture
def answers() -> Answers:
    return Answers()


def test_photographs_give_what_they_give_in_one_process(answers: Answers) -> None:
    manifest = load_manifest()
    pictures = [scene.jpeg for scene in photos(6, STREAM_SEED, STREAM_SIZES)]
    engine = Engine(manifest, replace(SETTINGS, crops=64))
    for number, data in enumerate(pictures):
        engine.submit(data, answers.reply(number))
    found = answers.wait(len(pictures))
    engine.close()
    truth = InProcessPipeline(manifest)
    seen = 0
    for number, data in enumerate(pictures):
        one, wanted = found[number], truth.infer(data)
        assert isinstance(one, ImageInference)
        assert (one.width, one.height) == (wanted.width, wanted.height)
        assert one.embedding @ wanted.embedding >= 0.9999
        assert one.class_ids.tolist() == wanted.class_ids.tolist()
        np.testing.assert_allclose(one.scores, wanted.scores, atol=5e-3)
        np.testing.assert_allclose(one.boxes, wanted.boxes, atol=0.1)
        assert ((one.object_embeddings * wanted.object_embeddings).sum(1) >= 0.999).all()
        seen += len(one.boxes)
    assert seen > len(pictures)


def test_each_of_many_threads_gets_the_answer_to_its_own_picture(start: Start, answers: Answers) -> None:
    engine = start()
    numbers = range(1, 161)

    def submit(number: int) -> None:
        objects = number % (ROWS + 1)
        engine.submit(picture(number, 255 - number, objects), answers.reply(number))

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(submit, numbers))
    found = answers.wait(len(numbers))
    for number in numbers:
        assert_answers(found[number], number, 255 - number, number % (ROWS + 1))
    stats = engine.stats()
    assert stats["images"] == len(numbers)
    assert stats["crops"] == sum(1 + number % (ROWS + 1) for number in numbers)


def test_refused_pictures_leave_their_neighbours_alone(start: Start, answers: Answers) -> None:
    broken = {"empty": b"", "unsupported_format": b"no picture", "undecodable": truncated_jpeg()}
    engine = start()
    for number in range(1, 9):
        engine.submit(picture(number, objects=2), answers.reply(number))
        for code, data in broken.items():
            engine.submit(data, answers.reply((number, code)))
    found = answers.wait(8 * 4)
    for number in range(1, 9):
        assert_answers(found[number], number, objects=2)
        for code in broken:
            assert isinstance(found[number, code], ImageError)
            assert found[number, code].code == code


def damaged_jpeg() -> bytes:
    """Only who decodes it sees that it is."""
    whole = encoded(photo("coffee.png").convert("RGB").resize((64, 64)), "JPEG", progressive=True)
    tables = whole.rindex(b"\xff\xc4") + 5  # of the last scan
    return whole[:tables] + b"\xff" * 16 + whole[tables + 16 :]


def test_damage_that_only_decoding_shows_costs_nobody_else_an_answer(start: Start, answers: Answers) -> None:
    engine = start()
    for number in range(1, 13):
        engine.submit(damaged_jpeg() if number == 6 else picture(number, objects=1), answers.reply(number))
    found = answers.wait(12)
    assert found.pop(6).code == "undecodable"
    for number, answer in found.items():
        assert_answers(answer, number, objects=1)


def test_the_limit_of_pixels_is_the_callers(start: Start, answers: Answers) -> None:
    engine = start(max_pixels=64 * 64)
    engine.submit(picture(9), answers.reply("small"))
    engine.submit(picture(9, side=65), answers.reply("large"))
    found = answers.wait(2)
    assert_answers(found["small"], 9)
    assert found["large"].code == "too_many_pixels"


def test_a_picture_that_nobody_waits_for_is_not_looked_at(
    start: Start, answers: Answers, monkeypatch: pytest.MonkeyPatch
) -> None:
    detector = Gate(monkeypatch, Detector, "start")
    engine = start()
    detector.close()
    engine.submit(picture(1), answers.reply(1))
    detector.wait()
    gone = threading.Event()
    for number in range(2, 10):  # two batches may wait
        engine.submit(picture(number), answers.reply(number), gone.is_set if number % 2 else lambda: False)
    gone.set()
    detector.open()
    found = answers.wait(9)
    assert {number for number, answer in found.items() if isinstance(answer, Cancelled)} == {3, 5, 7, 9}
    for number in (1, 2, 4, 6, 8):
        assert_answers(found[number], number)
    assert engine.stats()["images"] == 5


def test_a_picture_is_asked_for_once_and_then_answered_though_it_was_given_up(start: Start, answers: Answers) -> None:
    engine = start()
    asked: list[int] = []

    def cancelled() -> bool:
        asked.append(1)
        return len(asked) > 1

    engine.submit(picture(5), answers.reply(5), cancelled)
    assert_answers(answers.wait(1)[5], 5)
    assert len(asked) == 1


def test_crops_of_a_batch_that_exceed_a_slot_are_split(
    start: Start, answers: Answers, monkeypatch: pytest.MonkeyPatch
) -> None:
    detector = Gate(monkeypatch, Detector, "start")
    calls: list[int] = []
    embed = ImageTower.start

    def counted(tower: ImageTower, crops: torch.Tensor, vectors: torch.Tensor) -> None:
        calls.append(len(crops))
        embed(tower, crops, vectors)

    monkeypatch.setattr(ImageTower, "start", counted)
    engine = start(replace(SETTINGS, crops=12))
    detector.close()
    engine.submit(picture(1), answers.reply(1))
    detector.wait()
    counts = {2: 5, 3: 5, 4: ROWS, 5: 0}
    for number, objects in counts.items():
        engine.submit(picture(number, objects=objects), answers.reply(number))
    detector.open()
    found = answers.wait(5)
    for number, objects in counts.items():
        assert_answers(found[number], number, objects=objects)
    assert calls == [1, 12, 10]


def test_a_slot_holds_what_one_picture_brings_though_less_was_set(start: Start, answers: Answers) -> None:
    engine = start(replace(SETTINGS, crops=2))
    for number in range(1, 10):
        engine.submit(picture(number, objects=ROWS), answers.reply(number))
    for number, answer in answers.wait(9).items():
        assert_answers(answer, number, objects=ROWS)


@pytest.mark.parametrize(("side", "batches"), [(64, [1, 4]), (800, [1, 1, 1, 1, 1]), (600, [1, 2, 2])])
def test_large_pictures_make_smaller_batches(
    side: int, batches: list[int], start: Start, answers: Answers, monkeypatch: pytest.MonkeyPatch
) -> None:
    detector = Gate(monkeypatch, Detector, "start")
    looked_at: list[int] = []
    rows = Detector.rows

    def counted(found: Detector, count: int) -> Any:
        looked_at.append(count)
        return rows(found, count)

    monkeypatch.setattr(Detector, "rows", counted)
    engine = start(replace(SETTINGS, batch_megapixels=1))
    detector.close()
    engine.submit(picture(1, side=side), answers.reply(1))
    detector.wait()
    for number in range(2, 6):
        engine.submit(picture(number, objects=2, side=side), answers.reply(number))
    detector.open()
    found = answers.wait(5)
    for number in range(2, 6):
        assert_answers(found[number], number, objects=2, side=side)
    # The thread that decodes may take what is there when only a part of them waits.
    assert max(looked_at) <= max(batches)
    assert sum(looked_at) == 5


def test_who_submits_waits_while_two_batches_wait(
    start: Start, answers: Answers, monkeypatch: pytest.MonkeyPatch
) -> None:
    detector = Gate(monkeypatch, Detector, "start")
    engine = start()
    detector.close()
    pictures = {number: picture(number) for number in range(1, 61)}

    def submit() -> None:
        for number, data in pictures.items():
            engine.submit(data, answers.reply(number))

    thread = threading.Thread(target=submit)
    thread.start()
    detector.wait()
    thread.join(0.5)  # far longer than to submit all of them
    assert thread.is_alive()
    assert len(engine._waiting) == 2 * SETTINGS.batch
    detector.open()
    found = answers.wait(len(pictures))
    thread.join(_SECONDS)
    for number in pictures:
        assert_answers(found[number], number)


def test_who_waits_to_submit_is_told_when_the_engine_is_closed(
    start: Start, answers: Answers, monkeypatch: pytest.MonkeyPatch
) -> None:
    detector = Gate(monkeypatch, Detector, "start")
    broken: list[BaseException] = []
    engine = start(broken=broken.append)
    detector.close()
    numbers = range(1, 61)
    with ThreadPoolExecutor(60) as threads:
        calls = [threads.submit(engine.submit, picture(n), answers.reply(n)) for n in numbers]
        detector.wait()
        closing = threading.Thread(target=engine.close)
        closing.start()
        found = answers.wait(len(numbers))
        for call in calls:
            call.result(_SECONDS)
    detector.open()
    closing.join(_SECONDS)
    assert not closing.is_alive()
    assert all(isinstance(answer, EngineStopped) for answer in found.values())
    assert not broken
    engine.submit(picture(1), answers.reply("late"))
    assert isinstance(answers.of["late"][0], EngineStopped)


def test_closing_in_the_midst_of_work_answers_each_once(start: Start, answers: Answers) -> None:
    broken: list[BaseException] = []
    engine = start(broken=broken.append)
    numbers = range(1, 121)
    with ThreadPoolExecutor(6) as threads:
        calls = [threads.submit(engine.submit, picture(n, objects=3), answers.reply(n)) for n in numbers]
        calls[40].result(_SECONDS)
        engine.close()
    found = answers.wait(len(numbers))
    stopped = [number for number, answer in found.items() if isinstance(answer, EngineStopped)]
    assert stopped
    for number in set(numbers) - set(stopped):
        assert_answers(found[number], number, objects=3)
    assert not broken


def test_closing_while_all_slots_are_taken_is_no_error(
    start: Start, answers: Answers, monkeypatch: pytest.MonkeyPatch
) -> None:
    tower = Gate(monkeypatch, ImageTower, "start")
    waits = threading.Semaphore(0)
    take = Engine._slot

    def watched(engine: Engine, *, block: bool = True) -> Any:
        if block and engine._free.empty():
            waits.release()
        return take(engine, block=block)

    monkeypatch.setattr(Engine, "_slot", watched)
    broken: list[BaseException] = []
    engine = start(broken=broken.append)
    tower.close()
    numbers = range(1, 4 * SETTINGS.batch * SETTINGS.slots)
    with ThreadPoolExecutor(len(numbers)) as threads:
        for number in numbers:
            threads.submit(engine.submit, picture(number % 250 + 1, objects=ROWS), answers.reply(number))
        assert waits.acquire(timeout=_SECONDS)
        closing = threading.Thread(target=engine.close)
        closing.start()
        found = answers.wait(len(numbers))
    tower.open()
    closing.join(_SECONDS)
    assert not closing.is_alive()
    assert all(isinstance(answer, EngineStopped) for answer in found.values())
    assert not broken


@pytest.mark.parametrize(
    ("owner", "name"),
    [
        (Detector, "start"),
        (Detector, "rows"),
        (ImageTower, "start"),
        (engine_module, "detections_of"),
        (engine_module, "_inference"),
        (engine_module.Decoder, "take"),
        (engine_module.Decoder, "__init__"),
        (engine_module.Cropper, "__call__"),
    ],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_a_bug_in_any_stage_answers_all_and_is_told_once(
    owner: Any, name: str, start: Start, answers: Answers, monkeypatch: pytest.MonkeyPatch
) -> None:
    def bug(*arguments: Any, **named: Any) -> Any:
        raise ZeroDivisionError("a bug")

    told: list[BaseException] = []
    monkeypatch.setattr(owner, name, bug)
    engine = start(broken=told.append)
    for number in range(1, 31):
        engine.submit(picture(number, objects=2), answers.reply(number))
    found = answers.wait(30)
    engine.close()  # ends when the threads have
    assert all(isinstance(answer, EngineStopped) and "a bug" in str(answer) for answer in found.values())
    assert [type(error) for error in told] == [ZeroDivisionError]


def test_a_picture_without_a_finite_vector_is_refused_alone(start: Start, answers: Answers) -> None:
    engine = start()
    for number in range(12):
        engine.submit(picture(0 if number % 5 == 3 else number + 1, objects=1), answers.reply(number))
    found = answers.wait(12)
    for number, answer in found.items():
        if number % 5 == 3:
            assert isinstance(answer, ImageError)
            assert answer.code == "unembeddable"
        else:
            assert_answers(answer, number + 1, objects=1)


def test_a_batch_too_large_for_the_memory_is_halved_and_one_picture_alone_is_given_up(
    start: Start, answers: Answers, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin = Detector.start

    def short_of_memory(detector: Detector, letterboxed: torch.Tensor) -> None:
        if len(letterboxed) > 2 or (letterboxed[:, 0, 0, 0] == 7).any():
            raise torch.OutOfMemoryError("CUDA out of memory")
        begin(detector, letterboxed)

    monkeypatch.setattr(Detector, "start", short_of_memory)
    broken: list[BaseException] = []
    engine = start(broken=broken.append)
    for number in range(1, 17):
        engine.submit(picture(number, objects=3), answers.reply(number))
    found = answers.wait(16)
    assert isinstance(found.pop(7), OutOfGpuMemory)
    for number, answer in found.items():
        assert_answers(answer, number, objects=3)
    assert not broken


def test_counters_may_be_asked_for_at_any_time(start: Start, answers: Answers) -> None:
    engine = start()
    assert "images" not in engine.stats()
    engine.submit(picture(1, objects=2), answers.reply(1))
    answers.wait(1)
    stats = engine.stats()
    assert (stats["images"], stats["crops"]) == (1, 3)
    assert {"decode_wait_seconds", "detect_seconds", "crop_seconds", "embed_seconds"} <= set(stats)
