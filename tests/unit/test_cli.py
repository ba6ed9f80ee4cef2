"""The command line: its help, its settings, its errors in one line."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path
from typing import Any

import orjson
import pytest
from click.testing import CliRunner, Result

from agents.settings import AgentSettings
from models.cli import _COMMANDS as MODELS
from sightlog import cli as module
from sightlog.cli import cli, main
from sightlog.errors import NoReply
from sightlog.lazy_group import Lazy
from sightlog.search import Hit, SearchReply, SearchRequest

ROOT = Path(__file__).parents[2]


def run(*arguments: str) -> Result:
    return CliRunner().invoke(cli, arguments)


def run_as_a_person_does(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str
) -> tuple[int, str]:
    """Exit status and what is printed on stderr."""
    monkeypatch.setattr(sys, "argv", ["sightlog", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    status = ended.value.code
    return (status if isinstance(status, int) else 0 if status is None else 1), capsys.readouterr().err


def test_help_names_every_command_without_importing_any(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(name: str) -> Any:
        raise AssertionError(f"{name} is imported for the help")

    monkeypatch.setattr("sightlog.lazy_group.importlib.import_module", refuse)
    for flag in ("--help", "-h"):
        result = run(flag)
        assert result.exit_code == 0
        for name in module._COMMANDS:
            assert re.search(rf"^  {name}\s+\S", result.output, re.MULTILINE)


@pytest.mark.parametrize("name", ["ingest", "search", "worker", "config", "models", *(f"models {n}" for n in MODELS)])
def test_every_command_has_help_with_examples(name: str) -> None:
    result = run(*name.split(), "--help")
    assert result.exit_code == 0
    assert f"sightlog {name}" in result.output
    assert "Examples:" in result.output


@pytest.mark.parametrize("command", [*module._COMMANDS.values(), *MODELS.values()], ids=lambda one: one.target)
def test_every_command_is_where_its_group_says(command: Lazy) -> None:
    assert importlib.util.find_spec(command.target.split(":")[0]) is not None


def test_unknown_command_is_a_usage_error() -> None:
    result = run("fly")
    assert (result.exit_code, "No such command" in result.output) == (2, True)


@pytest.mark.parametrize("name", ["worker", "up", "ingest", "search"])
def test_missing_library_is_one_line_that_says_what_to_install(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def missing(target: str) -> Any:
        raise ModuleNotFoundError("No module named 'faust'", name="faust")

    monkeypatch.setattr("sightlog.lazy_group.importlib.import_module", missing)
    status, told = run_as_a_person_does(monkeypatch, capsys, name)
    assert status == 1
    assert re.fullmatch(rf"Error: `sightlog {name}` needs faust: pip install 'sightlog(\[\w+\])?'\n", told)


def test_library_that_is_missing_once_the_command_runs_is_one_line_too(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "agents.vision", None)
    status, told = run_as_a_person_does(monkeypatch, capsys, "worker", "vision")
    assert status == 1
    assert "pip install 'sightlog[agents]'" in told
    assert told.count("\n") == 1


def test_every_extra_that_is_recommended_exists() -> None:
    tomllib = pytest.importorskip("tomllib", reason="new in Python 3.11")
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert {extra for _target, _help, extra in [*module._COMMANDS.values(), *MODELS.values()]} <= {*extras, ""}


def test_config_as_json_is_all_settings() -> None:
    printed = orjson.loads(run("config", "--json").output)
    assert printed == AgentSettings.load().model_dump(mode="json")


def test_config_prints_each_setting_with_the_variable_that_sets_it(monkeypatch: pytest.MonkeyPatch) -> None:
    changes = {
        "SIGHTLOG_KAFKA": "kafka-1:9092,kafka-2:9092",
        "SIGHTLOG_TOPIC_DEAD": "dead",
        "SIGHTLOG_INDEX_M": "24",
        "SIGHTLOG_RETRY_FIRST": "0.25",
        "SIGHTLOG_ALLOWED_FOLDERS": '["/a","/b"]',
        "SIGHTLOG_MODELS": "/models",
    }
    for variable, value in changes.items():
        monkeypatch.setenv(variable, value)
    lines = dict(line.split("=", 1) for line in run("config").output.splitlines() if line[0] != "#")
    assert changes.items() <= lines.items()


def test_what_config_prints_sets_the_same_again(monkeypatch: pytest.MonkeyPatch) -> None:
    before = AgentSettings.load()
    for line in (line for line in run("config").output.splitlines() if line[0] != "#"):
        variable, value = line.split("=", 1)
        monkeypatch.setenv(variable, value)
    assert AgentSettings.load() == before


def test_wrong_setting_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("SIGHTLOG_INDEX_M", "abc")
    status, told = run_as_a_person_does(monkeypatch, capsys, "config")
    assert status == 1
    assert re.fullmatch(r"sightlog: SIGHTLOG_INDEX_M='abc': .*\n", told)


class FakeClient:
    """Answers every search with the same reply, or fails."""

    asked: SearchRequest
    reply: SearchReply | Exception

    def __init__(self, _settings: object) -> None:
        pass

    def __enter__(self) -> FakeClient:
        return self

    def __exit__(self, *_details: object) -> None:
        pass

    def search(self, request: SearchRequest, *, timeout: float | None) -> SearchReply:
        FakeClient.asked = request
        if isinstance(FakeClient.reply, Exception):
            raise FakeClient.reply
        return FakeClient.reply


HIT = Hit(
    image_id="image-1",
    score=0.75,
    cosine=0.5,
    source="photo [1].jpg",
    object_id="image-1#0",
    class_name="star",
    confidence=0.875,
    box=(1, 2, 3, 4),
    width=10,
    height=20,
    uploaded_at="2024-05-01T00:00:00Z",
)


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> type[FakeClient]:
    from sightlog import find

    monkeypatch.setattr(find, "Client", FakeClient)
    FakeClient.reply = SearchReply(hits=(HIT,), took_ms=3.25)
    return FakeClient


def test_search_asks_for_what_the_options_say(answers: type[FakeClient]) -> None:
    options = "--objects -k 3 --class star --class ring --min-confidence 0.5 --tag a --captured-after 2024-05-01"
    result = run("search", "a red star", *options.split())
    assert result.exit_code == 0
    asked = answers.asked
    assert (asked.text, asked.target, asked.k) == ("a red star", "objects", 3)
    assert (asked.filters.classes.any, asked.filters.min_confidence) == (("star", "ring"), 0.5)
    assert asked.filters.tags.all == ("a",)
    assert asked.filters.captured_from is not None
    assert asked.filters.captured_from.isoformat() == "2024-05-01T00:00:00+00:00"


def test_search_shows_score_and_source(answers: type[FakeClient]) -> None:
    printed = run("search", "x").output
    assert "0.750" in printed
    assert "+0.500" in printed
    assert "photo [1].jpg" in printed, "what looks like markup is shown as it is"
    assert "star" in run("search", "x", "--objects").output


def test_search_prints_the_reply_as_json(answers: type[FakeClient]) -> None:
    printed = orjson.loads(run("search", "x", "--json").output)
    assert printed["hits"][0]["image_id"] == "image-1"


def test_search_that_finds_nothing_says_so(answers: type[FakeClient]) -> None:
    answers.reply = SearchReply()
    assert "nothing found" in run("search", "x").output


def test_search_without_an_answer_is_one_line(
    answers: type[FakeClient], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    answers.reply = NoReply("no reply within 5 s")
    assert run_as_a_person_does(monkeypatch, capsys, "search", "x") == (1, "sightlog: no reply within 5 s\n")


@pytest.mark.parametrize("text", ["", "  ", "x" * 2001], ids=["empty", "blank", "long"])
def test_search_for_nothing_is_a_usage_error_not_a_traceback(text: str, answers: type[FakeClient]) -> None:
    result = run("search", text)
    assert result.exit_code == 2
    assert "text" in result.output.lower()


@pytest.mark.parametrize("options", ["-k 0", "-k 1001", "--min-confidence 2", "--captured-after yesterday"])
def test_option_out_of_range_is_a_usage_error(options: str, answers: type[FakeClient]) -> None:
    assert run("search", "x", *options.split()).exit_code == 2
