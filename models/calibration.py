"""From a cosine to a relevance of 0..1: a logistic curve for each kind of question and each target, of one model."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, get_args

#: What a question is made of: words; a picture, or a vector of one; an indexed object.
QueryKind = Literal["text", "image", "object"]
Target = Literal["images", "objects"]

QUERY_KINDS: tuple[QueryKind, ...] = get_args(QueryKind)
TARGETS: tuple[Target, ...] = get_args(Target)


@dataclass(frozen=True)
class Curve:
    """Relevance = 1 / (1 + exp(-(slope * cosine + intercept))), beside the cosines of what does not fit a question.

    Raises ValueError for numbers that are not finite, or a curve that does not rise.
    """

    slope: float  #: above 0
    intercept: float
    mean: float  #: of the cosines between questions and documents that do not fit them
    deviation: float  #: standard deviation of the same
    positives: int  #: pairs that fit, which the curve was fitted to; 0: it follows from the background alone
    backgrounds: int  #: pairs that do not fit

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
                raise ValueError(f"{field.name} of a curve is {value!r}, not a finite number")
        if self.slope <= 0:
            raise ValueError(f"the slope of a curve is {self.slope}, not above 0")

    def logit(self, cosine: float) -> float:
        """log(relevance / (1 - relevance)); linear in the cosine, so that questions add up."""
        return self.slope * cosine + self.intercept

    @property
    def even(self) -> float:
        """The cosine at which relevance is 0.5."""
        return -self.intercept / self.slope


@dataclass(frozen=True)
class Calibration:
    """The curves of one model."""

    source: str  #: what they were fitted to, for people
    curves: Mapping[QueryKind, Mapping[Target, Curve]]

    def curve(self, kind: QueryKind, target: Target) -> Curve | None:
        """None where nothing was measured."""
        return self.curves.get(kind, {}).get(target)

    def to_document(self) -> dict[str, Any]:
        """JSON values, as they stand in the manifest."""
        curves = {kind: {target: asdict(curve) for target, curve in row.items()} for kind, row in self.curves.items()}
        return {"source": self.source, "curves": curves}

    @classmethod
    def from_document(cls, document: Mapping[str, Any]) -> Calibration:
        """Raises ValueError, KeyError or TypeError for what `to_document` does not write."""
        curves: dict[QueryKind, Mapping[Target, Curve]] = {}
        for kind, row in document["curves"].items():
            if kind not in QUERY_KINDS or not set(row) <= set(TARGETS):
                raise ValueError(f"there is no calibration of {kind!r} for {', '.join(map(repr, row))}")
            curves[kind] = {target: Curve(**values) for target, values in row.items()}
        return cls(str(document["source"]), curves)
