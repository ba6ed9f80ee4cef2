"""What the README tells people to type works."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from agents.settings import AgentSettings
from models.photos import photos
from sightlog.documents import IndexReceipt
from sightlog.follow import Follower

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
COMMANDS = re.findall(r"^\.venv/bin/sightlog (.+)$", README, re.MULTILINE)
SNIPPETS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
KCAT = re.search(r"^(kcat .*?[^\\])$", README, re.MULTILINE | re.DOTALL)


def run(command: list[str], settings: AgentSettings, folder: Path) -> str:
    done = subprocess.run(
        command,
        cwd=folder,
        env={**os.environ, "SIGHTLOG_DATA_DIR": str(settings.data_dir)},
        capture_output=True,
        text=True,
        timeout=180,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("command", [c for c in COMMANDS if c != "down"])
def test_command_line(command: str, settings: AgentSettings, tmp_path: Path) -> None:
    assert run([sys.executable, "-m", "sightlog", *shlex.split(command)], settings, tmp_path) or "ingest" in command


def test_publishing_with_a_plain_client_and_searching(settings: AgentSettings, tmp_path: Path) -> None:
    publish, search = SNIPPETS
    (tmp_path / "photo.jpg").write_bytes(photos(1, 6, [(320, 240)])[0].jpeg)
    with Follower(settings) as follower:
        run([sys.executable, "-c", publish.replace("127.0.0.1:19092", settings.kafka)], settings, tmp_path)
        ((_key, outcome),) = follower.outcomes(["photo-1"])
    assert isinstance(outcome, IndexReceipt)
    run([sys.executable, "-c", search], settings, tmp_path)


@pytest.mark.skipif(shutil.which("kcat") is None, reason="kcat is not installed on this machine")
def test_publishing_with_kcat(settings: AgentSettings, tmp_path: Path) -> None:
    assert KCAT is not None
    (tmp_path / "photo.jpg").write_bytes(photos(1, 6, [(320, 240)])[0].jpeg)
    with Follower(settings) as follower:
        run(["bash", "-c", KCAT[1].replace("127.0.0.1:19092", settings.kafka)], settings, tmp_path)
        ((_key, outcome),) = follower.outcomes(["photo-1"])
    assert isinstance(outcome, IndexReceipt)
