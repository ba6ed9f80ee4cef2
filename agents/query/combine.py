"""Several clauses as one vector, whose cosine with a document gives the logit that the clauses give together.

A clause of weight w and unit vector v finds a document at the cosine c. With the curve of its kind (slope a, intercept
b, background mean m), and all weights divided by the sum of the positive ones, the logit of a document is

    sum over w > 0 of  w (a c + b)   -   sum over w < 0 of  |w| a (c - m)

A clause to be near to counts as it would alone; one to be away from changes nothing in a document that has nothing to
do with it. Each c is the product of v with the document, so the whole is one product again.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from agents.index.question import VectorQuestion
from models.calibration import Calibration, Curve, QueryKind, Target
from sightlog.errors import ContractError
from sightlog.fields import FloatArray
from sightlog.search import Clause

#: Length of the sum, as a part of what its terms have in all, below which rounding decides where it points. Two
#: pipelines' vectors of one picture agree to a cosine of 0.9999, so a picture minus itself is at most half this long.
_CANCELLED = 0.015
#: Where nothing was calibrated: the cosine as it is.
_PLAIN = Curve(slope=1.0, intercept=0.0, mean=0.0, deviation=0.0, positives=0, backgrounds=0)


def combine(
    parts: Sequence[tuple[Clause, FloatArray]], target: Target, calibration: Calibration | None
) -> VectorQuestion:
    """One question from clauses and their vectors (float32 [dim], unit length); at least one weight is positive.

    Where a curve is missing, all cosines count alike and there is no relevance. Raises ContractError `contradictory`
    when the clauses cancel each other out.
    """
    found = [None if calibration is None else calibration.curve(kind_of(clause), target) for clause, _ in parts]
    calibrated = all(found)
    whole = sum(clause.weight for clause, _ in parts if clause.weight > 0)
    total = np.zeros(len(parts[0][1]))
    length = intercept = 0.0
    for (clause, vector), curve in zip(parts, found if calibrated else [_PLAIN] * len(parts), strict=True):
        assert curve is not None
        weight = clause.weight / whole
        total += weight * curve.slope * vector.astype(np.float64)
        length += abs(weight) * curve.slope
        intercept += weight * (curve.intercept if weight > 0 else -curve.slope * curve.mean)
    size = float(np.linalg.norm(total))
    if size < _CANCELLED * length:
        raise ContractError(
            "contradictory", "the clauses cancel each other out, so nothing is looked for; change one or its weight"
        )
    unit = (total / size).astype(np.float32)
    return VectorQuestion(unit, size, intercept) if calibrated else VectorQuestion(unit)


def kind_of(clause: Clause) -> QueryKind:
    """Which curves a clause is read by. A raw vector is taken as that of a picture."""
    if clause.text is not None:
        return "text"
    return "object" if clause.object_id is not None else "image"
