"""The curve between what fits and what does not: the true one where there is one, a finite one in any case."""

from __future__ import annotations

import math

import numpy as np
import pytest

from models.calibration import PRIOR, Curve
from models.relevance.fit import BACKGROUND_EVEN, CalibrationError, Pairs, curve_above, fit_curve


def drawn(fitting: int, others: int, apart: float, *, seed: int = 0, levels: float = 0.0) -> Pairs:
    """Cosines of deviation 0.05 around 0.2, and `apart` deviations above; each pair has a level of its own."""
    rng = np.random.default_rng(seed)
    fits = np.arange(fitting + others) < fitting
    level = rng.normal(0, 1, len(fits)) * levels
    cosines = rng.normal(0.2, 0.05, len(fits)) + apart * 0.05 * fits + level
    return Pairs(cosines, level, fits)


def relevance(curve: Curve, cosine: float, level: float = 0.0) -> float:
    return 1 / (1 + math.exp(-(curve.slope * cosine + curve.offset(level))))


def test_of_two_normal_clouds_the_curve_is_the_true_probability_of_fitting() -> None:
    curve = fit_curve(drawn(20_000, 80_000, 3.0), "a test")
    # The logarithm of the ratio of two normal densities is linear in the cosine.
    assert curve.slope == pytest.approx(3.0 / 0.05, rel=0.05)
    even = 0.2 + 1.5 * 0.05 + math.log((1 - PRIOR) / PRIOR) * 0.05 / 3
    assert relevance(curve, even) == pytest.approx(0.5, abs=0.05)
    assert (curve.mean, curve.deviation) == pytest.approx((0.2, 0.05), rel=0.02)
    assert (curve.positives, curve.backgrounds) == (20_000, 80_000)


def test_how_many_pairs_were_at_hand_does_not_move_the_curve() -> None:
    few, many = fit_curve(drawn(5_000, 5_000, 3.0), "few"), fit_curve(drawn(500, 100_000, 3.0, seed=1), "many")
    for cosine in (0.25, 0.3, 0.35):
        assert relevance(many, cosine) == pytest.approx(relevance(few, cosine), abs=0.1)


def test_what_questions_have_with_everything_is_taken_off() -> None:
    curve = fit_curve(drawn(5_000, 50_000, 4.0, levels=0.2), "a test")
    assert curve.per_level == pytest.approx(-curve.slope, rel=0.05)
    assert relevance(curve, 0.35 + 0.3, 0.3) == pytest.approx(relevance(curve, 0.35, 0.0), abs=0.05)


def test_clouds_that_never_meet_get_a_finite_curve_between_them() -> None:
    rng = np.random.default_rng(0)
    fits = np.arange(20_500) < 500
    cosines = np.where(fits, rng.normal(0.1, 0.0005, len(fits)), rng.normal(-0.3, 0.05, len(fits)))
    curve = fit_curve(Pairs(cosines, np.zeros(len(fits)), fits), "a test")
    assert math.isfinite(curve.slope)
    assert curve.slope < 1e4
    assert 0.95 < relevance(curve, 0.1) < 0.9999
    assert relevance(curve, float(cosines[~fits].max())) < 0.5


def test_models_whose_cosines_say_nothing_or_the_contrary_are_refused() -> None:
    pairs = drawn(500, 5_000, 3.0)
    with pytest.raises(CalibrationError, match=r"words: what fits is no nearer"):
        fit_curve(Pairs(-pairs.cosines, pairs.levels, pairs.fits), "words")


@pytest.mark.parametrize(("fitting", "others"), [(19, 5_000), (5_000, 19), (0, 100)])
def test_a_curve_is_never_drawn_through_a_handful_of_pairs(fitting: int, others: int) -> None:
    with pytest.raises(CalibrationError, match=rf"{fitting} pairs that fit and {others} that do not"):
        fit_curve(drawn(fitting, others, 3.0), "words")


def test_from_the_background_alone_relevance_is_even_four_deviations_above_it() -> None:
    curve = curve_above(drawn(0, 50_000, 0.0, levels=0.2), "a test")
    even = 0.2 + BACKGROUND_EVEN * 0.05
    for level in (-0.3, 0.0, 0.3):
        assert relevance(curve, even + level, level) == pytest.approx(0.5, abs=0.1)
        assert relevance(curve, even - 0.05 + level, level) == pytest.approx(PRIOR, abs=0.01)
    assert (curve.positives, curve.backgrounds) == (0, 50_000)
    with pytest.raises(CalibrationError, match="too few"):
        curve_above(drawn(0, 5, 0.0), "a test")


def test_a_background_without_any_spread_is_no_division_by_zero() -> None:
    same = np.full(100, 0.3)
    assert math.isfinite(curve_above(Pairs(same, same, np.zeros(100, bool)), "a test").slope)
    fits = np.arange(100) < 50
    assert math.isfinite(fit_curve(Pairs(np.where(fits, 0.9, 0.3), same, fits), "a test").slope)
