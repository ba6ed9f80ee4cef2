"""Retrieval measures on examples that were worked out by hand."""

from __future__ import annotations

import pytest

from load_tests.retrieval import average_precision, best_first, retrieval_quality


@pytest.mark.parametrize(
    ("ranking", "relevant", "expected"),
    [
        ("abc", {"a"}, 1.0),
        ("abc", {"b"}, 1 / 2),
        ("abc", {"c"}, 1 / 3),
        ("abcd", {"a", "c"}, (1 + 2 / 3) / 2),
        ("abcd", {"b", "d"}, (1 / 2 + 2 / 4) / 2),
        ("abc", {"x"}, 0.0),
        ("", {"x"}, 0.0),
        ("ab", {"a", "x"}, 1 / 2),
    ],
)
def test_average_precision(ranking: str, relevant: set[str], expected: float) -> None:
    assert average_precision(ranking, relevant) == pytest.approx(expected)


def test_quality_is_the_mean_over_queries() -> None:
    quality = retrieval_quality(["ab", "ab", ""], [{"a"}, {"b"}, {"a"}])
    assert quality.queries == 3
    assert quality.r_at_1 == pytest.approx(1 / 3)
    assert quality.map == pytest.approx((1 + 1 / 2 + 0) / 3)


def test_every_query_needs_its_truth() -> None:
    with pytest.raises(ValueError, match="zip"):
        retrieval_quality(["a"], [])


def test_best_score_comes_first() -> None:
    assert best_first({"a": 0.1, "b": 0.9, "c": -1.0}) == ["b", "a", "c"]
