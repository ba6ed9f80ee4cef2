"""A short chaos run: a few faults under load, and afterwards every event is accounted for."""

from __future__ import annotations

import io
from pathlib import Path

import orjson
from rich.console import Console

from load_tests.chaos import Wanted, run


def test_faults_under_load_lose_nothing_and_double_nothing(tmp_path: Path) -> None:
    told = io.StringIO()
    wanted = Wanted(events=200, kills=4, seed=5, poison=0.05, out=tmp_path / "out", folder=tmp_path / "stack")
    figures = run(Console(file=told), wanted)
    said = f"{told.getvalue()}\n{orjson.dumps({k: v for k, v in figures.items() if k != 'faults'}).decode()}"
    assert figures["kills"] == 4, said
    assert (figures["missing"], figures["stale"], figures["orphans"], figures["duplicates"]) == (0, 0, 0, 0), said
    assert figures["dead_letters"] == figures["poison"] == 10, said
    assert figures["events"] == 200, said
    assert figures["ok"], said
    assert orjson.loads((tmp_path / "out" / "report.json").read_bytes())["seed"] == 5
    assert (tmp_path / "out" / "timeline.svg").read_text().startswith("<svg")
    assert not (tmp_path / "stack").exists()
