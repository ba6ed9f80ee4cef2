"""From a cosine to a relevance of 0..1: a logistic curve for each kind of question and each target, of one model."""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

#: What a question is made of: words; a picture, or a vector of one; an indexed object.
QueryKind = Literal["text", "image", "object"]
Target = Literal["images", "objects"]

QUERY_KINDS: tuple[QueryKind, ...] = get_args(QueryKind)
TARGETS: tuple[Target, ...] = get_args(Target)

#: Share of the documents that fit a question. Relevance is the probability of fitting in a collection where it is so.
PRIOR = 0.02

Float32 = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Curve:
    """Relevance = 1 / (1 + exp(-(slope * cosine + offset))), where the offset is of each question anew.

    A question's own level is the cosine that it has with documents which have nothing to do with it: words for many
    things, and words that a model never learnt, are nearer to everything than words for one thing are.
    Raises ValueError for numbers that are not finite, or a curve that does not rise.
    """

    slope: float  #: above 0
    per_level: float  #: what the level of a question adds to its offset, by its size
    intercept: float
    mean: float  #: of the cosines between questions and documents that do not fit them
    deviation: float  #: standard deviation of the same
    positives: int  #: pairs that fit, which the curve was fitted to; 0: it follows from the background alone
    backgrounds: int  #: pairs that do not fit

    def __post_init__(self) -> None:
        for one in fields(self):
            value = getattr(self, one.name)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
                raise ValueError(f"{one.name} of a curve is {value!r}, not a finite number")
        if self.slope <= 0:
            raise ValueError(f"the slope of a curve is {self.slope}, not above 0")

    def offset(self, level: float) -> float:
        """For a question of this level."""
        return self.per_level * level + self.intercept


@dataclass(frozen=True)
class Calibration:
    """The curves of one model, and where its documents lie.

    `centres`: the mean vector of many documents, float32 [dim], not of unit length.
    Raises ValueError for curves of a target without a centre.
    """

    source: str  #: what they were fitted to, for people
    curves: Mapping[QueryKind, Mapping[Target, Curve]]
    centres: Mapping[Target, Float32] = field(compare=False, repr=False)

    def __post_init__(self) -> None:
        for kind, row in self.curves.items():
            if kind not in QUERY_KINDS or not set(row) <= set(self.centres) <= set(TARGETS):
                raise ValueError(f"curves of {kind!r} are for {', '.join(row)}, centres for {', '.join(self.centres)}")
        for target, centre in self.centres.items():
            if centre.ndim != 1 or not np.isfinite(centre).all():
                raise ValueError(f"the centre of {target} is no vector of finite numbers")

    def curve(self, kind: QueryKind, target: Target) -> Curve | None:
        """None where nothing was measured."""
        return self.curves.get(kind, {}).get(target)

    def level(self, question: Float32, target: Target) -> float:
        """The cosine of a question, float32 [dim] of unit length, with documents on average, nearly none of which fit.

        Raises KeyError for a target without curves.
        """
        return float(question @ self.centres[target])

    def to_document(self) -> dict[str, Any]:
        """JSON values, as they stand in the manifest; vectors as base64 of little-endian float32."""
        return {
            "source": self.source,
            "curves": {
                kind: {target: asdict(curve) for target, curve in row.items()} for kind, row in self.curves.items()
            },
            "centres": {
                target: base64.b64encode(v.astype("<f4").tobytes()).decode() for target, v in self.centres.items()
            },
        }

    @classmethod
    def from_document(cls, document: Mapping[str, Any]) -> Calibration:
        """Raises ValueError, KeyError, TypeError or AttributeError for what `to_document` does not write."""
        return cls(
            source=str(document["source"]),
            curves={
                kind: {target: Curve(**values) for target, values in row.items()}
                for kind, row in document["curves"].items()
            },
            centres={
                target: np.frombuffer(base64.b64decode(packed, validate=True), "<f4")
                for target, packed in document["centres"].items()
            },
        )
