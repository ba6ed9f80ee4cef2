"""Questions whose answers are known, asked of documents; a calibration is what fits best to all of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from models.calibration import QUERY_KINDS, TARGETS, Calibration, Curve, QueryKind, Target
from models.relevance.fit import CalibrationError, Pairs, curve_above, fit_curve

Float32 = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]
Fits = npt.NDArray[np.int8]

#: Values of `Exam.fits`: a pair that can be called neither counts for neither side.
FITS, OTHER, UNCLEAR = 1, 0, -1


@dataclass(frozen=True)
class Exam:
    """Questions of one kind for one target.

    questions: float32 [q, dim]      documents: float32 [d, dim], both of unit length
    fits: int8 [q, d], of FITS, OTHER, UNCLEAR      picture: int64 [d], which picture each document is of
    words: what each question asks for, where words do
    """

    questions: Float32
    documents: Float32
    fits: Fits
    picture: Ints
    words: tuple[str, ...] = ()

    @property
    def cosines(self) -> Float32:
        """float32 [q, d]."""
        return np.asarray(self.questions @ self.documents.T)

    @property
    def centre(self) -> Float32:
        """float32 [dim], the mean document."""
        return np.asarray(self.documents.mean(0))

    def pairs(self) -> Pairs:
        """All that is clear."""
        clear = self.fits != UNCLEAR
        levels = np.broadcast_to((self.questions @ self.centre)[:, None], self.fits.shape)
        return Pairs(self.cosines[clear], levels[clear], self.fits[clear] == FITS)


Exams = Mapping[tuple[QueryKind, Target], Exam]


def calibrate(exams: Exams, source: str) -> Calibration:
    """A curve for each exam; where no pair fits, from the background alone. Raises CalibrationError."""
    curves: dict[QueryKind, dict[Target, Curve]] = {}
    centres: dict[Target, Float32] = {}
    for target in TARGETS:
        for kind in QUERY_KINDS:
            if (exam := exams.get((kind, target))) is None:
                continue
            pairs, name = exam.pairs(), f"{kind} to {target}"
            curve = fit_curve(pairs, name) if pairs.fits.any() else curve_above(pairs, name)
            curves.setdefault(kind, {})[target] = curve
            centres[target] = exam.centre
    if not curves:
        raise CalibrationError("there is nothing to calibrate with; give more pictures")
    return Calibration(source, curves, centres)
