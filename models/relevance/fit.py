"""The logistic curve between the cosines that fit and those that do not."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from models.calibration import PRIOR, Curve
from sightlog.errors import SightlogError

#: Without pairs that fit, relevance is 0.5 this many standard deviations above the level of a question (one document in
#: 30,000 that have nothing to do with it, were their cosines normal), and reaches `PRIOR` one below.
BACKGROUND_EVEN = 4.0
#: Pairs of either side below which a curve would follow chance.
FEWEST = 20

_MOST_STEPS = 100
_SETTLED = 1e-10  # of the loss; Newton's method doubles the right digits with each of its last steps
_FINEST = 1e-6  # a spread of cosines below is rounding
_RIDGE = 1e-9  # keeps the step finite where all questions have one level

Float64 = npt.NDArray[np.float64]
Floats = npt.NDArray[np.floating[Any]]


class CalibrationError(SightlogError):
    """No curve can be fitted to what was measured."""


@dataclass(frozen=True)
class Pairs:
    """Questions with documents. cosines, levels (of the questions): float [n]; fits: bool [n]."""

    cosines: Floats
    levels: Floats
    fits: npt.NDArray[np.bool_]


def weights_of(fits: npt.NDArray[np.bool_]) -> Float64:
    """Of pairs, 1 on average: so that `PRIOR` of the weight is on those that fit, however many there are."""
    fitting = int(fits.sum())
    of_fit, of_other = PRIOR / max(fitting, 1), (1 - PRIOR) / max(len(fits) - fitting, 1)
    return np.where(fits, of_fit * len(fits), of_other * len(fits)).astype(np.float64)


def fit_curve(pairs: Pairs, name: str) -> Curve:
    """The curve under which what was seen is likeliest.

    Raises CalibrationError, with `name`, for too few pairs, or when what fits is no nearer than what does not.
    """
    fitting, others = int(pairs.fits.sum()), int((~pairs.fits).sum())
    if min(fitting, others) < FEWEST:
        raise CalibrationError(
            f"{name}: {fitting} pairs that fit and {others} that do not are too few to calibrate with; "
            f"{FEWEST} of each are the least, give more pictures"
        )
    # Aims a little inside of 0 and 1 (after Platt): pairs that no cosine mixes up would ask for an endless slope.
    aims = np.where(pairs.fits, (fitting + 1) / (fitting + 2), 1 / (others + 2))
    slope, per_level, intercept = _likeliest(pairs.cosines, pairs.levels, aims, weights_of(pairs.fits))
    if slope <= 0:
        raise CalibrationError(
            f"{name}: what fits is no nearer than what does not, so nothing can be read from this model's cosines; "
            "check that pictures and captions belong together, and that the model is a trained one"
        )
    return _curve(slope, per_level, intercept, pairs)


def curve_above(pairs: Pairs, name: str) -> Curve:
    """A careful curve from pairs none of which fits: see `BACKGROUND_EVEN`. Raises CalibrationError for few."""
    if len(pairs.cosines) < FEWEST:
        raise CalibrationError(f"{name}: {len(pairs.cosines)} pairs are too few to calibrate with; give more pictures")
    above = pairs.cosines.astype(np.float64) - pairs.levels
    mean, deviation = float(above.mean()), max(float(above.std()), _FINEST)
    slope = math.log((1 - PRIOR) / PRIOR) / deviation
    return _curve(slope, -slope, -slope * (mean + BACKGROUND_EVEN * deviation), pairs)


def _curve(slope: float, per_level: float, intercept: float, pairs: Pairs) -> Curve:
    background = pairs.cosines[~pairs.fits].astype(np.float64)
    return Curve(
        slope=slope,
        per_level=per_level,
        intercept=intercept,
        mean=float(background.mean()),
        deviation=float(background.std()),
        positives=int(pairs.fits.sum()),
        backgrounds=len(background),
    )


def _likeliest(cosines: Floats, levels: Floats, aims: Float64, weights: Float64) -> tuple[float, float, float]:
    """Two slopes and the intercept of the weighted logistic regression, by Newton's method with halved steps."""
    middle = np.array([cosines.mean(dtype=np.float64), levels.mean(dtype=np.float64)])
    spread = np.array([max(float(x.std(dtype=np.float64)), _FINEST) for x in (cosines, levels)])
    rows = np.ones((len(cosines), 3))
    rows[:, :2] = (np.stack([cosines, levels], axis=1) - middle) / spread

    def loss(at: Float64) -> float:
        z = rows @ at
        return float((weights * (np.logaddexp(0, z) - aims * z)).sum())

    at = np.array([0.0, 0.0, math.log(PRIOR / (1 - PRIOR))])
    lowest = loss(at)
    for _ in range(_MOST_STEPS):
        p = np.exp(-np.logaddexp(0, -(rows @ at)))
        bend = (rows * (weights * p * (1 - p))[:, None]).T @ rows + _RIDGE * np.eye(3)
        step = np.linalg.solve(bend, rows.T @ (weights * (p - aims)))
        while (now := loss(at - step)) > lowest and float(np.abs(step).max()) > _RIDGE:
            step /= 2
        settled = lowest - now < _SETTLED * max(1.0, lowest)
        if now < lowest:
            at, lowest = at - step, now
        if settled:
            break
    slopes = at[:2] / spread
    return float(slopes[0]), float(slopes[1]), float(at[2] - slopes @ middle)
