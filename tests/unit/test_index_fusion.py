"""Two orders made into one."""

from __future__ import annotations

import pytest

from agents.index.fusion import fused, ordered

NEAR = {"a": 0.9, "b": 0.8, "c": 0.5}
WORDS = {"c": 12.0, "a": 3.0, "d": 3.0}


def test_ranks_count_and_not_scores() -> None:
    scores = fused("rrf", [(NEAR, 0.5), (WORDS, 0.5)])
    assert scores == pytest.approx(
        {"a": 0.5 / 61 + 0.5 / 62, "b": 0.5 / 62, "c": 0.5 / 63 + 0.5 / 61, "d": 0.5 / 63}, rel=1e-12
    )
    stretched = {id_: score**9 for id_, score in NEAR.items()}
    assert fused("rrf", [(stretched, 0.5), (WORDS, 0.5)]) == scores


def test_scores_count_within_the_span_of_their_leg() -> None:
    scores = fused("weighted", [(NEAR, 0.75), (WORDS, 0.25)])
    assert scores == pytest.approx({"a": 0.75, "b": 0.75 * 0.75, "c": 0.25, "d": 0.0})


def test_leg_of_equal_scores_counts_in_full() -> None:
    assert fused("weighted", [({"a": 2.0, "b": 2.0}, 0.5), ({}, 0.5)]) == {"a": 0.5, "b": 0.5}


def test_weights_decide() -> None:
    for fusion in ("rrf", "weighted"):
        assert next(iter(ordered(fused(fusion, [(NEAR, 1.0), (WORDS, 0.0)])))) == "a"  # type: ignore[arg-type]
        assert next(iter(ordered(fused(fusion, [(NEAR, 0.0), (WORDS, 1.0)])))) == "c"  # type: ignore[arg-type]


def test_ties_are_ordered_by_id() -> None:
    assert list(ordered({"b": 1.0, "c": 2.0, "a": 1.0})) == ["c", "a", "b"]
