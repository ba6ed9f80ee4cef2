"""Two orders of the same documents, by nearness and by words, made into one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from sightlog.search import Fusion

#: Of reciprocal rank fusion, as its authors have it: how much the first few places stand out.
_RANK_CONSTANT = 60


def fused(fusion: Fusion, legs: Sequence[tuple[Mapping[str, float], float]]) -> dict[str, float]:
    """Scores of all documents of the legs: (scores by id, in their order; weight of the leg).

    `rrf`: the sum of weight / (60 + rank), from rank 1 on. `weighted`: the sum of weight * score, the scores of each
    leg brought to 0 for its last and 1 for its first. A leg adds nothing to a document that it does not have.
    """
    scores: dict[str, float] = {}
    for leg, weight in legs:
        shares = _by_rank(leg) if fusion == "rrf" else _by_score(leg)
        for id_, share in shares.items():
            scores[id_] = scores.get(id_, 0.0) + weight * share
    return scores


def ordered(scores: Mapping[str, float]) -> dict[str, float]:
    """By falling score; those of one score by rising id."""
    return dict(sorted(scores.items(), key=lambda one: (-one[1], one[0])))


def _by_rank(leg: Mapping[str, float]) -> dict[str, float]:
    return {id_: 1 / (_RANK_CONSTANT + rank) for rank, id_ in enumerate(leg, 1)}


def _by_score(leg: Mapping[str, float]) -> dict[str, float]:
    highest, lowest = max(leg.values(), default=0.0), min(leg.values(), default=0.0)
    if highest == lowest:
        return dict.fromkeys(leg, 1.0)
    return {id_: (score - lowest) / (highest - lowest) for id_, score in leg.items()}
