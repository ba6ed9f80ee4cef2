"""What was tuned counts for its machine, models and profile alone, and never breaks a start silently."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from triton_repo.serving_settings import ServingSettings
from triton_repo.tuning import TUNING_FILE, Tuning, TuningError, load_tuning, machine_id, save_tuning

FOUND = Tuning(machine_id(), "a" * 64, "cpu", {"detector_instances": 3}, {"batch": 16}, 24, ({"change": "start"},))


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    save_tuning(tmp_path, FOUND)

    assert load_tuning(tmp_path, FOUND.digest, "cpu") == FOUND


def test_nothing_was_tuned(tmp_path: Path) -> None:
    assert load_tuning(tmp_path, FOUND.digest, "cpu") is None


@pytest.mark.parametrize(("digest", "profile"), [("b" * 64, "cpu"), ("a" * 64, "fused")])
def test_other_models_and_profiles_keep_their_defaults(tmp_path: Path, digest: str, profile: str) -> None:
    save_tuning(tmp_path, FOUND)

    assert load_tuning(tmp_path, digest, profile) is None


def test_another_machine_keeps_its_defaults(tmp_path: Path) -> None:
    path = save_tuning(tmp_path, FOUND)
    path.write_text(path.read_text().replace(machine_id(), "another machine"))

    assert load_tuning(tmp_path, FOUND.digest, "cpu") is None


def test_settings_come_with_the_defaults_of_the_rest() -> None:
    assert FOUND.serving_settings() == ServingSettings(detector_instances=3)


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"machine": 1, "digest": 1, "profile": 1, "serving": 5}'])
def test_a_damaged_file_is_an_error_that_names_it(tmp_path: Path, content: str) -> None:
    (tmp_path / TUNING_FILE).write_text(content)

    with pytest.raises(TuningError, match=r"tuning\.json.*sightlog tune"):
        load_tuning(tmp_path, FOUND.digest, "cpu")


def test_a_setting_that_is_not_known_is_an_error(tmp_path: Path) -> None:
    path = save_tuning(tmp_path, FOUND)
    path.write_text(path.read_text().replace("detector_instances", "detector_insects"))
    tuning = load_tuning(tmp_path, FOUND.digest, "cpu")

    assert tuning is not None
    with pytest.raises(TuningError, match="detector_insects"):
        tuning.serving_settings()


def test_the_file_tells_people_what_was_measured(tmp_path: Path) -> None:
    document = json.loads(save_tuning(tmp_path, FOUND).read_text())

    assert document["agents"] == {"vision_concurrency": 24}
    assert document["measured"] == [{"change": "start"}]
