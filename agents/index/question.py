"""What the index is asked: one vector, and how its cosines are to be read."""

from __future__ import annotations

import math
from dataclasses import dataclass

from sightlog.fields import FloatArray


@dataclass(frozen=True)
class VectorQuestion:
    """The vector that documents are to be near to. The relevance of a document is a logistic function of its cosine."""

    vector: FloatArray
    """float32 [dim], unit length."""
    slope: float | None = None
    """Above 0; None: the model is not calibrated, and there is no relevance."""
    intercept: float = 0.0

    def relevance(self, cosine: float) -> float | None:
        """0..1 for a cosine of -1..1."""
        if self.slope is None:
            return None
        logit = self.slope * cosine + self.intercept
        # Neither form overflows on its side, and far documents keep their order instead of all being 0.
        return 1.0 / (1.0 + math.exp(-logit)) if logit > 0 else math.exp(logit) / (1.0 + math.exp(logit))

    def score(self, cosine: float) -> float:
        """What hits are ordered by: the relevance, else (1 + cosine) / 2; both grow with the cosine."""
        relevance = self.relevance(cosine)
        return (1.0 + cosine) / 2 if relevance is None else relevance
