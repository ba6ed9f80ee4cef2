"""Settings of the GPU profiles: wrong ones fail where they are read, with the setting's name."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from typing import Any

import pytest

from sightlog.errors import ConfigurationError
from triton_repo.gpu_settings import GpuSettings


def test_settings_come_back_from_json_as_they_were() -> None:
    settings = GpuSettings(batch=7, tower_sizes=(3, 9), compiled=False, device="cpu")
    assert GpuSettings.from_json(json.loads(json.dumps(asdict(settings)))) == settings


def test_what_json_leaves_out_has_its_default() -> None:
    assert GpuSettings.from_json({"batch": 5}) == replace(GpuSettings(), batch=5)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("batch", 0),
        ("batch", "32"),
        ("batch", 2.5),
        ("batch", True),
        ("batch", [8]),
        ("decode_ahead", 0),
        ("tower_sizes", []),
        ("tower_sizes", [4, 0]),
        ("tower_sizes", ["4"]),
        ("tower_sizes", 4),
        ("compiled", 1),
        ("memory_mb", -1),
        ("device", "gpu"),
        ("device", None),
        ("slots", 3),
    ],
)
def test_a_wrong_value_is_refused_by_name(name: str, value: Any) -> None:
    with pytest.raises(ConfigurationError, match=f"GPU setting {name} is"):
        GpuSettings.from_json({name: value})


def test_as_many_slots_as_batches_ahead_need_are_enough() -> None:
    assert GpuSettings(decode_ahead=5, slots=7).slots == 7
    with pytest.raises(ConfigurationError, match="slots"):
        GpuSettings(decode_ahead=5, slots=6)


def test_an_unknown_setting_is_refused_with_those_that_there_are() -> None:
    with pytest.raises(ConfigurationError, match=r"bacth.*there are: .*batch"):
        GpuSettings.from_json({"bacth": 8})
