"""Several clauses as one vector, whose cosine with a document gives the logit that the clauses give together.

A clause of weight w and unit vector v finds a document at the cosine c. With the curve of its kind (slope a, and b, the
offset of this question), its level m, which is the cosine that it has with documents on average, and all weights
divided by the sum of the positive ones, the logit of a document is

    sum over w > 0 of  w (a c + b)   -   sum over w < 0 of  |w| a (c - m)

A clause to be near to counts as it would alone; one to be away from changes nothing in a document that has nothing to
do with it. Each c is the product of v with the document, so the whole is one product again.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from agents.index.question import VectorQuestion
from models.calibration import Calibration, QueryKind, Target
from sightlog.errors import ContractError
from sightlog.fields import FloatArray
from sightlog.search import Clause

#: Length of the sum, as a part of what its terms have in all, below which rounding decides where it points. Two
#: pipelines' vectors of one picture agree to a cosine of 0.9999, so a picture minus itself is at most half this long.
_CANCELLED = 0.015


def combine(
    parts: Sequence[tuple[Clause, FloatArray]], target: Target, calibration: Calibration | None
) -> VectorQuestion:
    """One question from clauses and their vectors (float32 [dim], unit length); at least one weight is positive.

    Where a curve is missing, all cosines count alike and there is no relevance. Raises ContractError `contradictory`
    when the clauses cancel each other out.
    """
    whole = sum(clause.weight for clause, _ in parts if clause.weight > 0)
    weights = [clause.weight / whole for clause, _ in parts]
    vectors = [vector for _, vector in parts]
    found = [calibration.curve(kind_of(clause), target) if calibration else None for clause, _ in parts]
    curves = [curve for curve in found if curve is not None]
    if calibration is None or len(curves) < len(parts):
        return VectorQuestion(_sum(weights, vectors)[0])
    direction, slope = _sum([weight * curve.slope for weight, curve in zip(weights, curves, strict=True)], vectors)
    levels = [calibration.level(vector, target) for vector in vectors]
    intercept = sum(
        weight * (curve.offset(level) if weight > 0 else -curve.slope * level)
        for weight, curve, level in zip(weights, curves, levels, strict=True)
    )
    return VectorQuestion(direction, slope, intercept)


def _sum(factors: Sequence[float], vectors: Sequence[FloatArray]) -> tuple[FloatArray, float]:
    """Direction and length of the weighted sum of unit vectors. Raises ContractError `contradictory`."""
    total = np.asarray(factors) @ np.stack(vectors).astype(np.float64)
    length = float(np.linalg.norm(total))
    if length < _CANCELLED * sum(map(abs, factors)):
        raise ContractError(
            "contradictory", "the clauses cancel each other out, so nothing is looked for; change one or its weight"
        )
    return (total / length).astype(np.float32), length


def kind_of(clause: Clause) -> QueryKind:
    """Which curves a clause is read by. A raw vector is taken as that of a picture."""
    if clause.text is not None:
        return "text"
    return "object" if clause.object_id is not None else "image"
