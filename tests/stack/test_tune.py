"""`sightlog tune` on the real Triton: what it tries reaches the server, and what it finds is used by the next start."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from click.testing import CliRunner
from rich.console import Console

from load_tests.gpu_pictures import SMALL, make_pictures
from load_tests.tune import PLOT_FILE, run, tune
from load_tests.tune_servers import TritonServers
from load_tests.tune_sweep import Change, Choice
from models.manifest import load_manifest
from stack.settings import StackSettings
from triton_repo.tuning import TUNING_FILE, load_tuning


@pytest.fixture
def settings(tmp_path: Path) -> StackSettings:
    return StackSettings(data_dir=tmp_path / "data").resolved()


def test_a_choice_reaches_the_server_that_is_measured(settings: StackSettings, tmp_path: Path) -> None:
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for number, photo in enumerate(make_pictures(3, SMALL, processes=1)):
        (pictures / f"{number}.jpg").write_bytes(photo.jpeg)
    servers = TritonServers(settings, load_manifest(), pictures, seconds=1.0)
    server = servers.open(Choice(2, {"detector_instances": 2}))
    try:
        config = (server.stack.data_dir / "triton" / "repository" / "detector" / "config.pbtxt").read_text()
        load = server.measure(2)
    finally:
        server.close()

    assert re.search(r"count: 2", config)
    assert (load.in_flight, load.failures) == (2, 0)
    assert load.images_per_s > 0
    assert not server.stack.data_dir.exists()


def test_a_short_sweep_measures_every_candidate_and_cleans_up(settings: StackSettings) -> None:
    table = [[Change("load", {"in_flight": 4})], [Change("serving", {"max_batch_size": 0})]]
    tuning, outcomes = run(Console(stderr=True), settings, table, budget=300, measured_s=1.0)

    assert [outcome.change for outcome in outcomes] == ["start", "in_flight 4", "max_batch_size 0"]
    assert outcomes[0].images_per_s > 0
    assert "must be 1 or more" in outcomes[2].refused
    assert (tuning.digest, tuning.profile, len(tuning.measured)) == (load_manifest().digest, "cpu", 3)


def test_the_command_writes_what_the_next_start_reads(settings: StackSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SIGHTLOG_DATA_DIR", str(settings.data_dir))
    monkeypatch.setattr("load_tests.tune._MEASURED_S", 1.0)
    outcome = CliRunner().invoke(tune, ["--quick", "--seconds", "1"], catch_exceptions=False)

    assert outcome.exit_code == 0
    found = load_tuning(settings.data_dir, load_manifest().digest, "cpu")
    assert found is not None
    assert found.vision_concurrency == 16
    assert (settings.data_dir / PLOT_FILE).read_text().startswith("<svg")
    assert (settings.data_dir / TUNING_FILE).exists()
