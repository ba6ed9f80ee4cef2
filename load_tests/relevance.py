"""`bench relevance`: whether relevance tells what is there from what is not, on scenes that no curve was fitted to.

`python -m load_tests.relevance --picture FILE` draws how far relevance can be believed, too.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import numpy as np
import numpy.typing as npt
import orjson
from rich.console import Console
from rich.progress import Progress

from agents.query.combine import combine
from load_tests.charts import lines
from models.calibration import Calibration, QueryKind, Target
from models.manifest import ModelManifest, load_manifest
from models.relevance.exam import FITS, OTHER, UNCLEAR, Exam, Exams
from models.relevance.fit import weights_of
from models.relevance.scenes import TICKS, scene_exams
from models.scenes import COLOURS, SHAPES
from models.settings import ModelSettings
from models.tiny.captions import UNSEEN_FRAMES
from models.tokenizer import ClipTokenizer
from sightlog.errors import SightlogError
from sightlog.search import GOOD, Clause
from triton_repo.inprocess import InProcessPipeline

#: Of scenes that no calibration uses.
HELD_OUT_SEED = 5005
#: Words for what no scene shows, none of them known to the calibration.
UNKNOWN = (
    "whale", "guitar", "lighthouse", "castle", "snowman", "violin", "bridge", "mountain", "waterfall", "tractor",
    "helicopter", "penguin", "robot", "candle", "mushroom", "cactus", "ladder", "anchor", "balloon", "drum", "wedding",
    "sunset over the sea", "crowded street", "portrait of a woman", "newspaper",
)  # fmt: skip
#: Scenes that make a collection in which most things are absent.
_COLLECTION = 5
_BINS = 10
#: Pairs in a bin below which its share is chance.
_FEWEST = 20
#: A field of a clause of each kind; its vector is known already.
_FIELD = {"text": "text", "image": "image_id", "object": "object_id"}

Float64 = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]


def measure(console: Console, count: int = 120) -> dict[str, Any]:
    """Through `combine` and `VectorQuestion.relevance`, over vectors as the image pipeline makes them.

    `precision`, `recall`: each thing that words can ask for, in each scene: is it there, and is one of the scene's
    objects found at a relevance of 0.5? `pairs`: the same of single documents, by kind of question and target.
    """
    return _figures(console, count)[0]


def _figures(console: Console, count: int) -> tuple[dict[str, Any], str]:
    """The figures, and a picture of the reliability as SVG."""
    manifest = load_manifest(ModelSettings.load().model_folder)
    calibration = _calibration(manifest)
    eye, tokenizer = InProcessPipeline(manifest), ClipTokenizer(manifest.clip.context_length)
    with Progress(console=console, transient=True) as progress:
        task = progress.add_task("looking at held-out scenes", total=count * TICKS)
        exams = scene_exams(
            eye, tokenizer, count, HELD_OUT_SEED, UNSEEN_FRAMES, UNKNOWN, lambda: progress.advance(task)
        )
    relevance = {key: relevances(exam, *key, calibration) for key, exam in exams.items()}
    words, found = exams["text", "objects"], relevance["text", "objects"]
    present = _by_picture(words, (words.fits == FITS).astype(np.float64), count) > 0
    figures: dict[str, Any] = {
        "models": manifest.name,
        "digest": manifest.digest,
        "scenes": count,
        **_told_apart(_by_picture(words, found, count) >= GOOD, present),
        "pairs": {
            f"{kind} to {target}": _of_pairs(exams[kind, target], values)
            for (kind, target), values in relevance.items()
        },
        "no_good_match": {
            target: _no_good_match(exams["text", target], relevance["text", target], count)
            for target in ("objects", "images")
        },
        "minus": _minus(exams, calibration),
    }
    return figures, _reliability(exams, relevance)


def _calibration(manifest: ModelManifest) -> Calibration:
    if set(manifest.files.values()) != set(load_manifest().files.values()):
        raise SightlogError(f"scenes say nothing about {manifest.name}; take the tiny models for this benchmark")
    if manifest.calibration is None:
        raise SightlogError(f"{manifest.name} is not calibrated; run `sightlog models calibrate` first")
    return manifest.calibration


def relevances(exam: Exam, kind: QueryKind, target: Target, calibration: Calibration) -> Float64:
    """float64 [q, d], of each document for each question, as a search tells it."""
    clause = Clause.model_validate({_FIELD[kind]: "known"})
    rows = []
    for vector in exam.questions:
        question = combine([(clause, vector)], target, calibration)
        rows.append([question.relevance(float(cosine)) for cosine in exam.documents @ question.vector])
    return np.array(rows, np.float64)


def _by_picture(exam: Exam, values: Float64, count: int) -> Float64:
    """The best value of each picture: [q, d] -> [q, count]; 0 where nothing was found in it."""
    best = np.zeros((len(values), count))
    for row, one in zip(best, values, strict=True):
        np.maximum.at(row, exam.picture, one)
    return best


def _told_apart(said: Bools, true: Bools) -> dict[str, float | None]:
    """Precision and recall; None where nothing was said, or nothing is true."""
    right = int((said & true).sum())
    return {
        "precision": round(right / int(said.sum()), 4) if said.any() else None,
        "recall": round(right / int(true.sum()), 4) if true.any() else None,
    }


def _of_pairs(exam: Exam, values: Float64) -> dict[str, Any]:
    clear = exam.fits != UNCLEAR
    relevance, fits = values[clear], exam.fits[clear] == FITS
    error = sum(share * abs(mean - right) for share, mean, right, _ in _bins(relevance, fits))
    figures = {**_told_apart(relevance >= GOOD, fits), "calibration_error": round(error, 4), "pairs": len(fits)}
    if not clear.all():
        # What an image holds, but does not show in its centre square, counts as missed here.
        figures["recall_anywhere"] = _told_apart(values >= GOOD, exam.fits != OTHER)["recall"]
    return figures


def _bins(relevance: Float64, fits: Bools) -> list[tuple[float, float, float, int]]:
    """Of each tenth of relevance: its part of the weight, mean relevance, share that fits, and how many pairs."""
    weights = weights_of(fits)
    number = np.minimum((relevance * _BINS).astype(int), _BINS - 1)
    rows = []
    for one in range(_BINS):
        inside = number == one
        if (weight := float(weights[inside].sum())) > 0:
            mean, right = (float((weights * values)[inside].sum()) / weight for values in (relevance, fits))
            rows.append((weight / float(weights.sum()), mean, right, int(inside.sum())))
    return rows


def _no_good_match(exam: Exam, values: Float64, count: int) -> dict[str, float]:
    """Shares of questions that are rightly told so, in collections of a few scenes: of things that are not there, of
    things that no scene shows; and of things that are there, wrongly."""
    absent, unknown, missed = [], [], []
    known = np.array([words not in UNKNOWN for words in exam.words])
    for first in range(0, count, _COLLECTION):
        inside = (exam.picture >= first) & (exam.picture < first + _COLLECTION)
        nothing = ~(values[:, inside] >= GOOD).any(1)
        fits = exam.fits[:, inside]
        absent.append(nothing[known & (fits == OTHER).all(1)])
        unknown.append(nothing[~known])
        missed.append(nothing[known & (fits == FITS).any(1)])
    shares = {"absent": absent, "unknown": unknown, "present": missed}
    return {name: round(float(np.concatenate(parts).mean()), 4) for name, parts in shares.items()}


def _minus(exams: Exams, calibration: Calibration) -> dict[str, float | None]:
    """ "circle" minus "something red": are circles of other colours, and nothing else, found at 0.5?"""
    exam = exams["text", "objects"]
    said, true = [], []
    for first, sentence in ((words, number) for number, words in enumerate(exam.words) if words in SHAPES):
        for colour in COLOURS:
            other = exam.words.index(f"something {colour}") + sentence % len(UNSEEN_FRAMES)
            parts = [
                (Clause(text=first), exam.questions[sentence]),
                (Clause(text=colour, weight=-1), exam.questions[other]),
            ]
            question = combine(parts, "objects", calibration)
            found = [question.relevance(float(cosine)) or 0.0 for cosine in exam.documents @ question.vector]
            said.append(np.array(found) >= GOOD)
            true.append((exam.fits[sentence] == FITS) & (exam.fits[other] == OTHER))
    return _told_apart(np.stack(said), np.stack(true))


def _reliability(exams: Exams, relevance: dict[tuple[QueryKind, Target], Float64]) -> str:
    series: dict[str, list[tuple[float, float]]] = {"as it should be": [(0.0, 0.0), (1.0, 1.0)]}
    for (kind, target), values in relevance.items():
        clear = exams[kind, target].fits != UNCLEAR
        rows = _bins(values[clear], exams[kind, target].fits[clear] == FITS)
        series[f"{kind} to {target}"] = [(mean, right) for _, mean, right, pairs in rows if pairs >= _FEWEST]
    title = "How far relevance can be believed, on held-out scenes"
    return lines(title, "relevance", "share that fits, where one document in 50 does", series)


@click.command()
@click.option("--count", type=click.IntRange(min=20), default=120, show_default=True, help="Scenes of either side.")
@click.option("--picture", type=click.Path(dir_okay=False, path_type=Path), help="Where the SVG goes.")
def main(count: int, picture: Path | None) -> None:
    """Print the figures as JSON, and draw the reliability."""
    figures, svg = _figures(Console(stderr=True), count)
    if picture:
        picture.write_text(svg, encoding="utf-8")
    click.echo(orjson.dumps(figures).decode())


if __name__ == "__main__":
    main()
