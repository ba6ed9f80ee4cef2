"""`bench relevance` counts rightly: its figures of planted relevances are those that anybody can see."""

from __future__ import annotations

import numpy as np
import pytest
from click.testing import CliRunner
from rich.console import Console

from load_tests import relevance as bench
from load_tests.cli import bench as command
from models.calibration import PRIOR, Calibration, Curve
from models.manifest import load_manifest
from models.relevance.exam import FITS, OTHER, UNCLEAR, Exam
from sightlog.errors import SightlogError

CURVE = Curve(slope=20.0, per_level=-5.0, intercept=-8.0, mean=0.1, deviation=0.1, positives=100, backgrounds=100)


def exam(fits: list[list[int]], picture: list[int], words: tuple[str, ...] = ()) -> Exam:
    rng = np.random.default_rng(0)
    questions, documents = (rng.normal(size=(n, 8)).astype(np.float32) for n in (len(fits), len(picture)))
    questions /= np.linalg.norm(questions, axis=1, keepdims=True)
    documents /= np.linalg.norm(documents, axis=1, keepdims=True)
    return Exam(questions, documents, np.array(fits, np.int8), np.array(picture), words)


def test_relevances_are_those_that_a_search_tells() -> None:
    asked = exam([[FITS, OTHER, OTHER]], [0, 0, 1])
    calibration = Calibration("a test", {"text": {"objects": CURVE}}, {"objects": asked.centre})
    (row,) = bench.relevances(asked, "text", "objects", calibration)
    level = float(asked.questions[0] @ asked.documents.mean(0))
    expected = 1 / (1 + np.exp(-(20.0 * asked.cosines[0].astype(np.float64) - 5.0 * level - 8.0)))
    assert row == pytest.approx(expected, abs=1e-5)


def test_precision_and_recall_count_what_is_said_and_what_is_true() -> None:
    said = np.array([[True, True, True, False, False]])
    true = np.array([[True, False, False, True, False]])
    assert bench._told_apart(said, true) == {"precision": 0.3333, "recall": 0.5}
    assert bench._told_apart(~said & said, true) == {"precision": None, "recall": 0.0}


def test_a_picture_has_what_the_best_of_its_objects_is() -> None:
    asked = exam([[OTHER] * 4], [0, 0, 2, 2])
    values = np.array([[0.1, 0.7, 0.3, 0.2]])
    assert bench._by_picture(asked, values, 4).tolist() == [[0.7, 0.0, 0.3, 0.0]]


def test_unclear_pairs_count_for_nothing_but_recall_anywhere() -> None:
    asked = exam([[FITS, UNCLEAR, UNCLEAR, OTHER]], [0, 1, 2, 3])
    figures = bench._of_pairs(asked, np.array([[0.9, 0.8, 0.1, 0.2]]))
    assert (figures["precision"], figures["recall"], figures["pairs"]) == (1.0, 1.0, 2)
    assert figures["recall_anywhere"] == pytest.approx(2 / 3, abs=1e-4)


def test_the_calibration_error_is_the_distance_from_what_is_true() -> None:
    rng = np.random.default_rng(0)
    fits = rng.random(20_000) < 0.3
    # Weighted so that `PRIOR` of it fits, this is what is true of every pair alike.
    honest = np.full(len(fits), PRIOR)
    boasting = np.full(len(fits), 0.62)
    errors = [
        bench._of_pairs(exam([fits.astype(int).tolist()], [0] * len(fits)), values[None])["calibration_error"]
        for values in (honest, boasting)
    ]
    assert errors == pytest.approx([0.0, 0.6], abs=1e-3)


def test_no_good_match_is_right_of_what_is_absent_and_wrong_of_what_is_there() -> None:
    fits = [[OTHER] * 10, [FITS] + [OTHER] * 9, [OTHER] * 10]
    asked = exam(fits, list(range(10)), ("circle", "star", bench.UNKNOWN[0]))
    values = np.zeros((3, 10))
    values[0, 7] = 0.6  # a false circle in the second collection of five
    values[2, 0] = 0.9  # something unknown found in the first
    shares = bench._no_good_match(asked, values, 10)
    assert shares == {"absent": round(2 / 3, 4), "unknown": 0.5, "present": 1.0}


def test_models_without_calibration_are_not_judged(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = load_manifest().__class__(**{**load_manifest().__dict__, "calibration": None})
    monkeypatch.setattr(bench, "load_manifest", lambda *_: plain)
    with pytest.raises(SightlogError, match="sightlog models calibrate"):
        bench.measure(Console(quiet=True), 20)


def test_the_command_knows_it() -> None:
    assert "relevance" in CliRunner().invoke(command, ["--help"]).output
