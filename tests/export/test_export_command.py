"""The options of `sightlog models export-clip`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from models.cli import models
from models.export import clip
from models.export.architectures import picture_input
from models.export.clip import ClipRequest
from models.export.errors import ExportError

NAME = "MobileCLIP2-S0"


def test_options_replace_what_the_weights_were_trained_with(monkeypatch: pytest.MonkeyPatch) -> None:
    requests: list[ClipRequest] = []

    def remember(request: ClipRequest, *_: Any) -> Any:
        requests.append(request)
        raise ExportError("enough")

    monkeypatch.setattr(clip, "export", remember)
    given = "--mean 0.5 0.4 0.3 --std 0.2 0.2 0.1 --interpolation bicubic"
    CliRunner().invoke(models, ["export-clip", NAME, *given.split()])
    CliRunner().invoke(models, ["export-clip", NAME])
    changed = picture_input(NAME, "dfndr2b", requests[0].picture)
    assert (changed.mean, changed.std, changed.interpolation) == ((0.5, 0.4, 0.3), (0.2, 0.2, 0.1), "bicubic")
    assert picture_input(NAME, "dfndr2b", requests[1].picture) == picture_input(NAME, "dfndr2b", {})


def test_weights_come_from_one_place(tmp_path: Path) -> None:
    result = CliRunner().invoke(models, ["export-clip", NAME, "--pretrained", "a", "--checkpoint", str(tmp_path)])
    assert result.exit_code == 2
    assert "exclude each other" in result.output


@pytest.mark.parametrize("library", ["torch", "open_clip", "timm"])
def test_without_the_extra_the_command_says_how_to_install_it(library: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    for module in [name for name in sys.modules if name.startswith("models.export.") and not name.endswith("cli")]:
        monkeypatch.delitem(sys.modules, module)
    result = CliRunner().invoke(models, ["export-clip", NAME])
    assert result.exit_code == 1
    assert f"needs {library}: pip install 'sightlog[export]'" in result.output
    assert CliRunner().invoke(models, ["export-clip", "--help"]).exit_code == 0
