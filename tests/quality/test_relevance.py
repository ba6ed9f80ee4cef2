"""On scenes that no curve was fitted to, relevance tells what is there from what is not."""

from __future__ import annotations

from rich.console import Console

from load_tests.relevance import measure

BAR = 0.9


def test_relevance_tells_present_things_from_absent_ones() -> None:
    figures = measure(Console(quiet=True), 26)
    assert figures["precision"] >= BAR
    assert figures["recall"] >= BAR
    nothing = figures["no_good_match"]["objects"]
    assert nothing["absent"] >= BAR
    assert nothing["unknown"] >= BAR
    assert nothing["present"] <= 1 - BAR
    assert figures["minus"]["precision"] >= BAR
    assert figures["minus"]["recall"] >= BAR
