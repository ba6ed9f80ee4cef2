"""The Multi-Process Service is started for the processes that share a GPU, and missed without harm."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from stack.mps import PROGRAM, MultiProcessService
from stack.settings import StackSettings
from stack.triton import Triton


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A stand-in for NVIDIA's program, which writes down how it was called; to be filled with what it does then."""
    folder = tmp_path / "bin"
    folder.mkdir()
    program = folder / PROGRAM
    program.write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/called\nenv >> {tmp_path}/called\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    return program


def test_clients_find_the_daemon_of_their_own_stack(installed: Path, tmp_path: Path) -> None:
    left = tmp_path / "mps" / "pipes" / "control"
    left.parent.mkdir(parents=True)
    left.touch()
    clients = MultiProcessService(tmp_path / "mps").start({"MARK": "mine"})
    assert clients == {
        "CUDA_MPS_PIPE_DIRECTORY": str(tmp_path / "mps" / "pipes"),
        "CUDA_MPS_LOG_DIRECTORY": str(tmp_path / "mps" / "logs"),
    }
    called, *environment = (tmp_path / "called").read_text().splitlines()
    assert called == "-d"
    assert {"MARK=mine", *(f"{name}={value}" for name, value in clients.items())} <= set(environment)
    assert not left.exists()  # of a daemon that was killed


def test_without_the_program_all_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert MultiProcessService(tmp_path).start({}) == {}
    assert f"{PROGRAM} is not installed" in caplog.text


def test_a_daemon_that_does_not_start_is_missed_without_harm(
    installed: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    installed.write_text("#!/bin/sh\necho no device\nexit 1\n")
    assert MultiProcessService(tmp_path / "mps").start({}) == {}
    assert "going on without" in caplog.text
    assert (tmp_path / "mps" / "logs" / "start.log").read_text() == "no device\n"


def test_a_repository_that_names_memory_of_gpus_gets_it_and_the_daemon(installed: Path, tmp_path: Path) -> None:
    repository = tmp_path / "repository"
    repository.mkdir()
    settings = StackSettings(data_dir=tmp_path / "data", triton_profile="ensemble", triton_repository=repository)
    plain = Triton(settings).launch()
    assert "CUDA_MPS_PIPE_DIRECTORY" not in plain.env
    (repository / "server.args").write_text("--cuda-memory-pool-byte-size=0:5\n--cuda-memory-pool-byte-size=1:5\n")
    launch = Triton(settings).launch()
    assert set(launch.command) - set(plain.command) == {
        "--cuda-memory-pool-byte-size=0:5",
        "--cuda-memory-pool-byte-size=1:5",
    }
    assert Path(launch.env["CUDA_MPS_PIPE_DIRECTORY"]).is_relative_to(settings.data_dir)
    # By these marks the daemon ends with the server, also after a kill.
    marks = {f"SIGHTLOG_STACK_ID={settings.stack_id}", "SIGHTLOG_STACK_ROLE=triton"}
    assert marks <= set((tmp_path / "called").read_text().splitlines())
