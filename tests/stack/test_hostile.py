"""Hostile events through the whole stack: each ends under a name, good ones among them are indexed, nothing dies."""

from __future__ import annotations

import uuid

import pytest
from rich.console import Console

from agents.settings import AgentSettings
from load_tests.hostile import Outcomes, processes, publish, replaced
from load_tests.hostile_corpus import INDEXED, Corpus
from stack.local import LocalStack


@pytest.fixture(scope="module")
def run(stack: LocalStack, settings: AgentSettings) -> tuple[Outcomes, int]:
    """Outcomes of 40 mutants of each format, and how many processes are not the ones that they were."""
    tag = f"hostile-{uuid.uuid4().hex[:8]}"
    before = processes(stack)
    outcomes = publish(Console(quiet=True), settings, Corpus(11, 40, settings.uploads_dir / tag, tag))
    return outcomes, replaced(before, processes(stack))


def test_every_event_is_accounted_for(run: tuple[Outcomes, int]) -> None:
    assert run[0].unaccounted == []


def test_every_event_has_the_outcome_that_it_must_have(run: tuple[Outcomes, int]) -> None:
    assert run[0].wrong == {}
    good = {name: became for name, became in run[0].found.items() if "-good-" in name}
    assert len(good) == 5
    assert set(good.values()) == {INDEXED}


def test_no_process_dies(run: tuple[Outcomes, int]) -> None:
    assert run[1] == 0
