"""When the engine is closed, breaks or is short of memory, each picture is answered once all the same."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

pytest.importorskip("torch", reason="needs PyTorch and DALI: pip install 'sightlog[stack,gpu]'")
pytest.importorskip("nvidia.dali", reason="needs PyTorch and DALI: pip install 'sightlog[stack,gpu]'")

import torch

from tests.gpu.engine_runs import SECONDS, Answers, Gate, Start
from tests.gpu.small_models import ROWS, SETTINGS, assert_answers, picture
from triton_repo.gpu import engine as engine_module
from triton_repo.gpu.decoding import OutOfGpuMemory
from triton_repo.gpu.engine import Engine, EngineStopped
from triton_repo.gpu.networks import Detector, ImageTower


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
            call.result(SECONDS)
    detector.open()
    closing.join(SECONDS)
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
        calls[40].result(SECONDS)
        engine.close()
    found = answers.wait(len(numbers))
    stopped = [number for number, answer in found.items() if isinstance(answer, EngineStopped)]
    assert stopped
    for number in set(numbers) - set(stopped):
        assert_answers(found[number], number, objects=3)
    assert not broken


def test_who_was_told_that_it_stopped_gets_no_second_answer(
    start: Start, answers: Answers, monkeypatch: pytest.MonkeyPatch
) -> None:
    answering = Gate(monkeypatch, engine_module, "_inference")
    engine = start()
    answering.close()
    for number in range(1, 5):
        engine.submit(picture(number), answers.reply(number))
    answering.wait()
    closing = threading.Thread(target=engine.close)
    closing.start()
    answers.wait(4)
    answering.open()
    closing.join(SECONDS)
    assert not closing.is_alive()
    assert all(isinstance(answer, EngineStopped) for answer in answers.wait(4).values())


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
        assert waits.acquire(timeout=SECONDS)
        closing = threading.Thread(target=engine.close)
        closing.start()
        found = answers.wait(len(numbers))
    tower.open()
    closing.join(SECONDS)
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
