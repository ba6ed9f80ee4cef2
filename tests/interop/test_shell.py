"""A shell with kcat, which is librdkafka and nothing of ours, against the search agent."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from agents.settings import AgentSettings
from sightlog.client import Client
from sightlog.search import SearchRequest
from tests.interop.conftest import Album

SCRIPT = Path(__file__).parent / "shell" / "ask.sh"

Ask = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="session")
def ask(request: pytest.FixtureRequest) -> Ask:
    for tool in ("bash", "kcat"):
        if shutil.which(tool) is None:
            pytest.skip(f"no {tool} on the path: install {tool}")
    # Only now: a stack takes long to start.
    settings: AgentSettings = request.getfixturevalue("settings")
    topics = {"REQUESTS": settings.topics.requests, "REPLIES": settings.topics.replies}

    def run(body: dict[str, Any], seconds: int = 30) -> subprocess.CompletedProcess[str]:
        command = [str(SCRIPT), settings.kafka, json.dumps(body, indent=1), str(seconds)]
        return subprocess.run(
            command, env={**os.environ, **topics}, capture_output=True, text=True, check=False, timeout=seconds + 30
        )

    return run


def test_a_shell_finds_what_the_python_client_finds(ask: Ask, client: Client, album: Album) -> None:
    question = {"text": "a striped red circle", "k": 4, "filters": {"tags": [album.tag]}}
    done = ask(question)
    assert done.returncode == 0, done.stderr
    reply = json.loads(done.stdout)
    expected = client.search(SearchRequest.model_validate(question), timeout=30)
    assert [hit["image_id"] for hit in reply["hits"]] == [hit.image_id for hit in expected.hits] != []


def test_a_shell_is_told_what_is_wrong(ask: Ask) -> None:
    done = ask({"text": " "})
    assert json.loads(done.stdout)["error"]["code"] == "bad_request", done.stderr


def test_a_shell_whose_time_is_over_gets_nothing(ask: Ask) -> None:
    done = ask({"text": "late"}, seconds=0)
    assert (done.returncode, done.stdout) == (1, "")
