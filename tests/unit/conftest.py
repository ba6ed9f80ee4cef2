"""Unit tests see no running stack and no settings of the machine, and repeat the same examples on each run."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

settings.register_profile(
    "unit",
    deadline=None,
    max_examples=60,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("unit")


@pytest.fixture(scope="session")
def empty_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("no-stack")


@pytest.fixture(autouse=True)
def no_settings_of_the_machine(monkeypatch: pytest.MonkeyPatch, empty_folder: Path) -> None:
    for name in os.environ:
        if name.startswith("SIGHTLOG_") and name != "SIGHTLOG_CACHE_DIR":
            monkeypatch.delenv(name)
    monkeypatch.setenv("SIGHTLOG_DATA_DIR", str(empty_folder))
