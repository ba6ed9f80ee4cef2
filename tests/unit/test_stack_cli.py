"""The stack's commands where nothing runs, and its settings: friendly answers, errors that name what to change."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import orjson
import pytest
from click.testing import CliRunner, Result

from sightlog.cli import cli, main
from sightlog.errors import ConfigurationError
from stack import ports
from stack.cli import load_settings
from stack.composition import compose
from stack.errors import NotRunningError
from stack.state import ComponentState, StackState, StateFile

#: What a stack of the default components and workers listens on at offset 0.
DEFAULT_PORTS = {19092, 19093, 18000, 18001, 18002, 19200, 19300}


def run(*arguments: str) -> Result:
    return CliRunner().invoke(cli, arguments)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data folder that no stack ever used, and that does not exist."""
    data_dir = tmp_path / "data"
    monkeypatch.setenv("SIGHTLOG_DATA_DIR", str(data_dir))
    return data_dir


@pytest.mark.parametrize("name", ["up", "down", "status", "logs"])
def test_every_command_has_help_with_examples(name: str) -> None:
    result = run(name, "--help")
    assert result.exit_code == 0
    examples = result.output.partition("Examples:")[2]
    assert f"  sightlog {name}" in examples


def test_status_where_nothing_runs_is_one_line_and_exit_1(folder: Path) -> None:
    result = run("status")
    assert result.exit_code == 1
    assert result.output.splitlines() == [f"stopped: stack in {folder}"]
    assert not folder.exists()


def test_status_as_json_where_nothing_runs_is_a_document(folder: Path) -> None:
    result = run("status", "--json")
    assert result.exit_code == 1
    document = orjson.loads(result.stdout)
    assert (document["status"], document["pid"], document["components"]) == ("stopped", None, {})
    assert document["data_dir"] == str(folder)
    assert document["endpoints"]["kafka"] == "127.0.0.1:19092"


def test_status_after_a_killed_supervisor_says_what_to_do_though_its_pid_is_in_use_again(folder: Path) -> None:
    folder.mkdir()
    # All that a killed supervisor leaves: its state, and its lock file, which nobody holds.
    (folder / "supervisor.lock").touch()
    kafka = ComponentState(status="ready", pid=os.getpid(), started=1.0)
    left = StackState(stack_id="abc", status="ready", pid=os.getpid(), started=1.0, components={"kafka": kafka})
    StateFile(folder).write(left)
    result = run("status", "--json")
    document = orjson.loads(result.stdout)
    assert document["status"] == "stopped"
    assert "sightlog up" in document["detail"]
    assert document["components"]["kafka"]["pid"] is None
    assert "the supervisor was killed" in run("status").output


@pytest.mark.parametrize("flags", [(), ("--wipe",)])
def test_down_where_nothing_runs_says_so_and_makes_no_folder(folder: Path, flags: tuple[str, ...]) -> None:
    result = run("down", *flags)
    assert result.exit_code == 0
    assert f"the stack in {folder} was not running" in result.output
    assert not folder.exists()


def test_logs_where_nothing_ran_says_that_there_are_none(folder: Path) -> None:
    result = run("logs", "kafka")
    assert isinstance(result.exception, NotRunningError)
    assert str(result.exception) == f"no log of 'kafka' in {folder / 'logs'}; there are: none yet"


def test_logs_of_an_unknown_name_are_one_line_with_the_known_ones(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "logs").mkdir(parents=True)
    for name in ("triton", "kafka"):
        (folder / "logs" / f"{name}.log").touch()
    monkeypatch.setattr(sys, "argv", ["sightlog", "logs", "kafak"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("sightlog: no log of 'kafak'")
    assert line.endswith("there are: kafka, triton")


def test_logs_prints_the_last_lines_even_if_some_bytes_are_no_text(folder: Path) -> None:
    (folder / "logs").mkdir(parents=True)
    (folder / "logs" / "kafka.log").write_bytes(b"first\nsecond \xff\nthird\n")
    result = run("logs", "kafka", "-n", "2")
    assert result.exit_code == 0
    assert result.output == "second \N{REPLACEMENT CHARACTER}\nthird\n"


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("SIGHTLOG_KAFKA_HEAP_MB", "12"),
        ("SIGHTLOG_OPENSEARCH_HEAP_MB", "many"),
        ("SIGHTLOG_PORT_OFFSET", "-1"),
        ("SIGHTLOG_WORKERS", "perhaps"),
        ("SIGHTLOG_STOP_TIMEOUT_S", "0"),
        ("SIGHTLOG_COMPONENTS", '["kafak"]'),
    ],
)
def test_a_wrong_setting_is_an_error_that_names_its_variable(
    variable: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(ConfigurationError, match=variable):
        load_settings()


def test_settings_that_are_not_json_name_their_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SIGHTLOG_COMPONENTS", "kafka,triton")
    with pytest.raises(ConfigurationError, match="SIGHTLOG_COMPONENTS"):
        load_settings()


def test_the_command_line_wins_over_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SIGHTLOG_PORT_OFFSET", "300")
    assert load_settings(port_offset=None).port_offset == 300
    assert load_settings(port_offset=200).port_offset == 200


@pytest.mark.parametrize("offset", [0, 1300])
def test_the_offset_moves_every_port_of_every_component(offset: int) -> None:
    parts = compose(load_settings(port_offset=offset)).all
    listened = [port for part in parts for port in part.ports.values()]
    assert sorted(listened) == sorted(port + offset for port in DEFAULT_PORTS)


def test_no_two_components_share_a_default_port() -> None:
    bases = [value for name, value in vars(ports).items() if name.startswith(("KAFKA", "TRITON", "OPENSEARCH"))]
    assert set(bases) == DEFAULT_PORTS
    assert len(bases) == len(DEFAULT_PORTS)
