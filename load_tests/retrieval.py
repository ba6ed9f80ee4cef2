"""Retrieval measures: how well rankings put the relevant first."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import TypeVar

Item = TypeVar("Item", bound=Hashable)


@dataclass(frozen=True)
class RetrievalQuality:
    """`r_at_1`: share of queries whose first result is relevant. `map`: mean average precision."""

    r_at_1: float
    map: float
    queries: int


def retrieval_quality(rankings: Sequence[Sequence[Item]], relevant: Sequence[Set[Item]]) -> RetrievalQuality:
    """Judge one ranking a query against its relevant items; a relevant item that is not ranked counts as a miss."""
    first = [bool(ranking) and ranking[0] in wanted for ranking, wanted in zip(rankings, relevant, strict=True)]
    precision = [average_precision(ranking, wanted) for ranking, wanted in zip(rankings, relevant, strict=True)]
    return RetrievalQuality(sum(first) / len(first), sum(precision) / len(precision), len(rankings))


def average_precision(ranking: Iterable[Item], relevant: Set[Item]) -> float:
    """Mean of the precision at the rank of each relevant item; one that is missing adds zero."""
    found, total = 0, 0.0
    for rank, item in enumerate(ranking, 1):
        if item in relevant:
            found += 1
            total += found / rank
    return total / len(relevant)


def best_first(scores: Mapping[Item, float]) -> list[Item]:
    """Items by falling score."""
    return sorted(scores, key=lambda item: -scores[item])
