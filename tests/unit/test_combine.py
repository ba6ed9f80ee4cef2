"""Clauses become one vector; what it says of a document is what the clauses say of it together."""

from __future__ import annotations

import math
from collections.abc import Sequence
from random import Random

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from agents.query.combine import combine, kind_of
from models.calibration import QUERY_KINDS, TARGETS, Calibration, Curve, QueryKind, Target
from sightlog.errors import ContractError
from sightlog.fields import FloatArray
from sightlog.search import Clause

DIM = 8
Part = tuple[Clause, FloatArray]

seeds = st.integers(0, 2**32 - 1)


def unit(rng: np.random.Generator) -> FloatArray:
    vector = rng.normal(size=DIM)
    return (vector / np.linalg.norm(vector)).astype(np.float32)


curves = st.builds(
    Curve,
    slope=st.floats(0.5, 80),
    per_level=st.floats(-80, 80),
    intercept=st.floats(-40, 20),
    mean=st.floats(-0.5, 0.9),
    deviation=st.floats(0, 0.3),
    positives=st.just(100),
    backgrounds=st.just(1000),
)
centres = st.builds(
    lambda seed, length: (length * unit(np.random.default_rng(seed))).astype(np.float32), seeds, st.floats(0, 0.9)
)
calibrations = st.builds(
    Calibration,
    source=st.just("a test"),
    centres=st.fixed_dictionaries(dict.fromkeys(TARGETS, centres)),
    curves=st.fixed_dictionaries({kind: st.fixed_dictionaries(dict.fromkeys(TARGETS, curves)) for kind in QUERY_KINDS}),
)
weights = st.floats(0.05, 10)
targets = st.sampled_from(TARGETS)


def clause(kind: QueryKind, weight: float = 1.0) -> Clause:
    field = {"text": "text", "image": "image_id", "object": "object_id"}[kind]
    return Clause.model_validate({field: "something", "weight": weight})


@st.composite
def several(draw: st.DrawFn) -> list[Part]:
    """One to five clauses, at least one of them positive."""
    rng = np.random.default_rng(draw(seeds))
    kinds = draw(st.lists(st.sampled_from(QUERY_KINDS), min_size=1, max_size=5))
    signs = [1.0, *(draw(st.sampled_from((1.0, -1.0))) for _ in kinds[1:])]
    drawn = [(clause(kind, sign * draw(weights)), unit(rng)) for kind, sign in zip(kinds, signs, strict=True)]
    return draw(st.permutations(drawn))


def together(parts: Sequence[Part], document: FloatArray, target: Target, calibration: Calibration) -> float:
    """The logit by its definition, clause by clause."""
    whole = sum(one.weight for one, _ in parts if one.weight > 0)
    total = 0.0
    for one, vector in parts:
        curve = calibration.curve(kind_of(one), target)
        assert curve is not None
        cosine = float(np.dot(vector.astype(np.float64), document.astype(np.float64)))
        level = float(np.dot(vector.astype(np.float64), calibration.centres[target].astype(np.float64)))
        if one.weight > 0:
            total += one.weight / whole * (curve.slope * cosine + curve.per_level * level + curve.intercept)
        else:
            total -= abs(one.weight) / whole * curve.slope * (cosine - level)
    return total


def logit(parts: Sequence[Part], document: FloatArray, target: Target, calibration: Calibration | None) -> float:
    question = combine(parts, target, calibration)
    assert question.slope is not None
    cosine = float(np.dot(question.vector.astype(np.float64), document.astype(np.float64)))
    return question.slope * cosine + question.intercept


def is_contradictory(parts: Sequence[Part], target: Target, calibration: Calibration | None) -> bool:
    try:
        combine(parts, target, calibration)
    except ContractError:
        return True
    return False


@given(several(), calibrations, targets, seeds)
def test_a_document_has_the_weighted_sum_of_the_logits_of_the_clauses(
    parts: list[Part], calibration: Calibration, target: Target, seed: int
) -> None:
    assume(not is_contradictory(parts, target, calibration))
    document = unit(np.random.default_rng(seed))
    expected = together(parts, document, target, calibration)
    assert logit(parts, document, target, calibration) == pytest.approx(expected, abs=1e-3, rel=1e-5)


@given(several(), calibrations, targets)
def test_the_vector_of_a_question_has_unit_length(parts: list[Part], calibration: Calibration, target: Target) -> None:
    assume(not is_contradictory(parts, target, calibration))
    vector = combine(parts, target, calibration).vector
    assert vector.dtype == np.float32
    assert float(np.linalg.norm(vector)) == pytest.approx(1.0, abs=1e-5)


@given(several(), calibrations, targets, st.randoms(use_true_random=False))
def test_the_order_of_clauses_does_not_matter(
    parts: list[Part], calibration: Calibration, target: Target, random: Random
) -> None:
    assume(not is_contradictory(parts, target, calibration))
    other = list(parts)
    random.shuffle(other)
    first, second = combine(parts, target, calibration), combine(other, target, calibration)
    assert second.vector == pytest.approx(first.vector, abs=1e-6)
    assert (second.slope, second.intercept) == pytest.approx((first.slope, first.intercept), rel=1e-6, abs=1e-9)


@given(several(), calibrations, targets, st.floats(0.1, 10))
def test_weights_count_by_their_ratios(
    parts: list[Part], calibration: Calibration, target: Target, factor: float
) -> None:
    assume(not is_contradictory(parts, target, calibration))
    scaled = [(one.model_copy(update={"weight": one.weight * factor}), vector) for one, vector in parts]
    first, second = combine(parts, target, calibration), combine(scaled, target, calibration)
    assert second.vector == pytest.approx(first.vector, abs=1e-6)
    assert (second.slope, second.intercept) == pytest.approx((first.slope, first.intercept), rel=1e-6, abs=1e-9)


@given(calibrations, targets, seeds, weights)
def test_a_negative_clause_changes_nothing_in_a_document_that_is_background_to_it(
    calibration: Calibration, target: Target, seed: int, weight: float
) -> None:
    rng = np.random.default_rng(seed)
    wanted, unwanted = unit(rng), unit(rng)
    level = float(unwanted.astype(np.float64) @ calibration.centres[target])
    across = unit(rng).astype(np.float64)
    across -= (across @ unwanted) * unwanted
    across /= np.linalg.norm(across)
    # As near to what is unwanted as documents are on average.
    document = (level * unwanted + math.sqrt(1 - level**2) * across).astype(np.float32)
    alone: list[Part] = [(clause("text"), wanted)]
    both: list[Part] = [*alone, (clause("text", -weight), unwanted)]
    assume(not is_contradictory(both, target, calibration))
    expected = logit(alone, document, target, calibration)
    assert logit(both, document, target, calibration) == pytest.approx(expected, abs=1e-3, rel=1e-5)


@given(calibrations, targets, seeds, weights)
def test_a_question_alone_is_read_by_the_curve_of_its_kind_whatever_its_weight(
    calibration: Calibration, target: Target, seed: int, weight: float
) -> None:
    vector = unit(np.random.default_rng(seed))
    for kind in QUERY_KINDS:
        curve = calibration.curve(kind, target)
        assert curve is not None
        question = combine([(clause(kind, weight), vector)], target, calibration)
        offset = curve.intercept + curve.per_level * float(vector @ calibration.centres[target])
        assert question.vector == pytest.approx(vector, abs=1e-6)
        assert (question.slope, question.intercept) == pytest.approx((curve.slope, offset), rel=1e-6, abs=1e-4)


@given(several())
def test_without_calibration_all_cosines_count_alike_and_there_is_no_relevance(parts: list[Part]) -> None:
    assume(not is_contradictory(parts, "images", None))
    question = combine(parts, "images", None)
    expected = sum(one.weight * vector.astype(np.float64) for one, vector in parts)
    assert question.vector == pytest.approx(expected / np.linalg.norm(expected), abs=1e-5)
    assert (question.slope, question.intercept, question.relevance(0.5)) == (None, 0.0, None)


def test_one_clause_without_a_curve_leaves_the_whole_question_without_relevance() -> None:
    curve = Curve(slope=20, per_level=-5, intercept=-8, mean=0.1, deviation=0.1, positives=1, backgrounds=1)
    only_text = Calibration("a test", {"text": {"objects": curve}}, {"objects": np.zeros(DIM, np.float32)})
    rng = np.random.default_rng(0)
    parts: list[Part] = [(clause("text"), unit(rng)), (clause("image", 2.0), unit(rng))]
    question = combine(parts, "objects", only_text)
    assert question.slope is None
    assert question.vector == pytest.approx(combine(parts, "objects", None).vector)
    assert combine(parts[:1], "images", only_text).slope is None
    assert combine(parts[:1], "objects", only_text).slope == pytest.approx(20)


@given(seeds, calibrations, weights)
def test_clauses_that_cancel_out_are_contradictory(seed: int, calibration: Calibration, weight: float) -> None:
    rng = np.random.default_rng(seed)
    vector = unit(rng)
    # What two pipelines make of one picture differs a little.
    near = vector + rng.normal(0, 1e-3 / math.sqrt(DIM), DIM).astype(np.float32)
    near /= np.linalg.norm(near)
    for known in (calibration, None):
        parts: list[Part] = [(clause("image", weight), vector), (clause("image", -weight), near)]
        with pytest.raises(ContractError) as refused:
            combine(parts, "objects", known)
        assert refused.value.code == "contradictory"


def test_more_away_from_than_towards_is_a_question_all_the_same() -> None:
    rng = np.random.default_rng(1)
    parts: list[Part] = [(clause("text", 1.0), unit(rng)), (clause("text", -5.0), unit(rng))]
    assert combine(parts, "images", None).vector @ parts[1][1] < 0


@pytest.mark.parametrize(
    ("asked", "kind"),
    [
        ({"text": "a dog"}, "text"),
        ({"image": b"jpeg"}, "image"),
        ({"dataref": "s3://photos/1.jpg"}, "image"),
        ({"image_id": "1"}, "image"),
        ({"vector": [1.0, 0.0], "model_digest": "0" * 64}, "image"),
        ({"object_id": "1#0"}, "object"),
    ],
)
def test_each_way_to_ask_has_its_kind(asked: dict[str, object], kind: QueryKind) -> None:
    assert kind_of(Clause.model_validate(asked)) == kind
