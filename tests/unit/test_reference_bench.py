"""`bench parity`: passes for the CPU path, sees a path that differs, and says what it could not measure."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence

import numpy as np
import pytest

from load_tests import parity
from load_tests.parity_pictures import Picture, pictures
from models.decoding import decode_upright
from models.manifest import ModelManifest
from models.photos import photos
from models.preprocessing import letterbox
from triton_repo.steps import ImageSteps, Prepared, StepFunctions


@pytest.fixture(autouse=True)
def two_pictures(monkeypatch: pytest.MonkeyPatch) -> list[Picture]:
    """Two photos that are smaller than those of the benchmark; no random weights."""
    shown = [
        Picture(f"photo-{number}", photo.jpeg, np.array([thing.box for thing in photo.objects], np.float32))
        for number, photo in enumerate(photos(2, 5, [(640, 480), (333, 500)]))
    ]
    monkeypatch.setattr(parity, "pictures", lambda count: shown)
    monkeypatch.setattr(parity, "_random_tower", lambda name, size: None)
    return shown


def test_the_cpu_path_passes_and_what_is_missing_is_said() -> None:
    figures = parity.measure(None, devices=["python_cpu"])
    assert figures["pass"] is True
    assert figures["min_cosine"] == min(value for key, value in figures.items() if key.endswith("_cosine_min"))
    assert figures["min_cosine"] >= 0.9999
    assert figures["python_cpu_decode_max"] == 0
    assert figures["mobileclip2_s0"] == "not measured: install sightlog[export]"
    for step in ("decode", "cap", "letterbox", "centre_crop", "object_crop", "boxes", "clip_input"):
        assert 0 <= figures[f"python_cpu_{step}_mean"] <= figures[f"python_cpu_{step}_max"]
    json.dumps(figures)


def with_functions(functions: StepFunctions) -> parity.Prepare:
    def prepare(manifest: ModelManifest, files: Sequence[bytes]) -> list[Prepared]:
        return [ImageSteps(manifest, functions).prepare(data) for data in files]

    return prepare


def test_a_path_that_crops_elsewhere_does_not_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    squashed = StepFunctions(centre_crop=lambda image, size, interpolation: np.asarray(image.resize((size, size))))
    monkeypatch.setattr(parity, "_path", lambda name: with_functions(squashed))
    figures = parity.measure(None, devices=["python_cpu"])
    assert figures["pass"] is False
    assert figures["python_cpu_tiny_global_cosine_min"] < parity.MUST_COSINE
    assert figures["python_cpu_tiny_crop_cosine_min"] > parity.MUST_COSINE


def test_another_shape_is_an_error_that_names_step_and_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = StepFunctions(letterbox=lambda image, canvas, pad, centred: letterbox(image, canvas + 1, pad))
    monkeypatch.setattr(parity, "_path", lambda name: with_functions(wrong))
    with pytest.raises(parity.ParityError, match=r"letterbox of shape .* for photo-0"):
        parity.measure(None, devices=["python_cpu"])


def test_a_tower_that_tells_nothing_apart_does_not_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    def blind(images: parity.Float32) -> parity.Float32:
        return np.ones((len(images), 1), np.float32)

    monkeypatch.setattr(parity, "_onnx_tower", lambda path: blind)
    figures = parity.measure(None, devices=["python_cpu"])
    assert figures["min_cosine"] == 1
    assert figures["pass"] is False


def test_the_module_runs_by_itself_and_ends_with_its_verdict(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["parity", "--device", "cpu", "--images", "1"])
    monkeypatch.setattr(parity, "_path", lambda name: with_functions(StepFunctions()))
    with pytest.raises(SystemExit) as ended:
        parity.main()
    printed = json.loads(capsys.readouterr().out)
    assert ended.value.code == 0
    assert printed["bench"] == "parity"
    assert "dali_cpu_tiny_global_cosine_min" in printed
    assert not any(key.startswith("dali_gpu") for key in printed)


def test_without_dali_its_paths_say_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    figures = parity.measure(None)
    assert figures["dali_cpu"] == figures["dali_gpu"] == "not measured: install sightlog[dali]"
    assert figures["pass"] is True


def test_pictures_cover_every_orientation_and_come_out_upright(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("load_tests.parity_pictures.SIZES", ((90, 60),))
    monkeypatch.setattr("load_tests.parity_pictures._photographs", lambda: [])
    shown = pictures(8)[:8]
    assert [picture.name for picture in shown] == [f"scene-90x60-exif-{orientation}" for orientation in range(1, 9)]
    for picture in shown:
        assert decode_upright(picture.data).pixels.size == (90, 60)
