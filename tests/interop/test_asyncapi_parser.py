"""The parser of the AsyncAPI initiative, for Node, reads the document."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from sightlog.asyncapi import document

PROJECT = Path(__file__).parent / "asyncapi_parser"
DOCUMENT = Path(__file__).parents[2] / "schemas" / "asyncapi.json"
#: Of a diagnostic: 0 error, 1 warning, 2 information.
WARNING = 1


@pytest.fixture(scope="session")
def parser(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The script, with what it needs beside it."""
    for tool in ("node", "npm"):
        if shutil.which(tool) is None:
            pytest.skip(f"no {tool} on the path: install Node.js")
    folder = tmp_path_factory.mktemp("parser") / "asyncapi"
    shutil.copytree(PROJECT, folder)
    command = ["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund"]
    installed = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert installed.returncode == 0, installed.stdout + installed.stderr
    return folder / "parse.js"


def test_the_official_parser_finds_nothing_wrong(parser: Path, tmp_path: Path) -> None:
    done = subprocess.run(["node", str(parser), str(DOCUMENT)], capture_output=True, text=True, check=True)
    said = json.loads(done.stdout)
    assert [one for one in said["diagnostics"] if one["severity"] <= WARNING] == []
    assert sorted(said["operations"]) == sorted(document()["operations"])


def test_the_official_parser_would_say_so(parser: Path, tmp_path: Path) -> None:
    broken = document()
    broken["operations"]["search"]["messages"][0]["$ref"] = "#/channels/images/messages/imageUploaded"
    (tmp_path / "broken.json").write_text(json.dumps(broken))
    done = subprocess.run(
        ["node", str(parser), str(tmp_path / "broken.json")], capture_output=True, text=True, check=True
    )
    assert [one for one in json.loads(done.stdout)["diagnostics"] if one["severity"] <= WARNING] != []
