"""Every picture that the engine takes is answered once, with what belongs to it and to no other."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest

pytest.importorskip("torch", reason="needs PyTorch and DALI: pip install 'sightlog[stack,gpu]'")
pytest.importorskip("nvidia.dali", reason="needs PyTorch and DALI: pip install 'sightlog[stack,gpu]'")

import numpy as np
import torch

from models.decoding import ImageError
from models.manifest import load_manifest
from models.photos import STREAM_SEED, STREAM_SIZES, photos
from tests.gpu.engine_runs import SECONDS, Answers, Gate, Start
from tests.gpu.small_models import ROWS, SETTINGS, assert_answers, picture
from tests.pictures import encoded, photo, truncated_jpeg
from triton_repo.contract import ImageInference
from triton_repo.gpu.engine import Cancelled, Engine
from triton_repo.gpu.networks import Detector, ImageTower
from triton_repo.inprocess import InProcessPipeline


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
    counts = {2: 5, 3: 6, 4: 4, 5: 0}
    for number, objects in counts.items():
        engine.submit(picture(number, objects=objects), answers.reply(number))
    detector.open()
    found = answers.wait(5)
    for number, objects in counts.items():
        assert_answers(found[number], number, objects=objects)
    assert calls == [1, 6, 12, 1]


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
    thread.join(SECONDS)
    for number in pictures:
        assert_answers(found[number], number)


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


def test_counters_may_be_asked_for_at_any_time(start: Start, answers: Answers) -> None:
    engine = start()
    assert "images" not in engine.stats()
    engine.submit(picture(1, objects=2), answers.reply(1))
    answers.wait(1)
    stats = engine.stats()
    assert (stats["images"], stats["crops"]) == (1, 3)
    assert {"decode_wait_seconds", "detect_seconds", "crop_seconds", "embed_seconds"} <= set(stats)
