"""`sightlog models calibrate`: measures what a model's cosines mean, and stores it beside the model."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click
import orjson
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from models.calibration import Calibration
from models.detectors.class_names import coco_names
from models.manifest import ModelManifest, load_manifest, write_calibration
from models.relevance.exam import calibrate
from models.relevance.pictures import TICKS as TICKS_A_PICTURE
from models.relevance.pictures import picture_exams, read_album
from models.relevance.scenes import TICKS as TICKS_A_SCENE
from models.relevance.scenes import scene_exams
from models.relevance.sight import Tick
from models.settings import ModelSettings
from models.store import ModelStore, compose
from models.tokenizer import ClipTokenizer
from sightlog.errors import SightlogError
from sightlog.say import say
from triton_repo.inprocess import InProcessPipeline

#: Of scenes and of choices; no evaluation uses it.
CALIBRATION_SEED = 9001
SENTENCES = ("{}", "a photo of {a}", "find {a}")
_SCENES, _PICTURES = 120, 300


@click.command("calibrate")
@click.argument("clip", required=False)
@click.option("--detector", help="With CLIP: the detector that is used with it. [default: the one in use]")
@click.option(
    "--images",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Folder of pictures as you index them, subfolders too.",
)
@click.option(
    "--captions",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="With --images: lines of a file name in that folder, a tab, and words for it.",
)
@click.option(
    "--count",
    type=click.IntRange(min=20),
    help=f"Pictures at most ({_PICTURES} if not given), or generated scenes ({_SCENES}).",
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def calibrate_models(
    clip: str | None, detector: str | None, images: Path | None, captions: Path | None, count: int | None, as_json: bool
) -> None:
    """Measure from which cosine on a hit fits, for the models in use, or for the pair CLIP of the store.

    Searches then tell a relevance of 0 to 1, take `min_relevance`, and say when there is no good match. The tiny models
    are measured over generated scenes; others need pictures of yours. Captions make the relevance of words exact;
    without them it is careful. Vectors and indices stay as they are. Workers read it when they start.

    \b
    Examples:
      sightlog models calibrate --images ~/photos
      sightlog models calibrate --images ~/photos --captions captions.tsv
      sightlog models calibrate MobileCLIP2-S2 --detector yolox-s --images ~/photos
      sightlog models calibrate --json
    """
    if (captions and not images) or (detector and not clip):
        raise click.UsageError("--captions goes with --images, and --detector with CLIP")
    settings = ModelSettings.load()
    store, console = ModelStore(settings.models_dir), Console(stderr=True)
    in_use = load_manifest(settings.model_folder)
    with _asked_for(store, in_use, clip, detector) as manifest:
        if images is None and not _is_tiny(manifest):
            raise SightlogError(
                f"{manifest.name} is not made of the tiny models, so generated scenes say nothing about it; "
                "name a folder of pictures with --images"
            )
        measured = _over_pictures(console, manifest, images, captions, count) if images else None
        calibration = measured or _over_scenes(console, manifest, count or _SCENES)
    if manifest.digest == in_use.digest:
        write_calibration(in_use.folder, calibration)
    store.keep_calibration(manifest.digest, calibration)
    if as_json:
        document = {"models": manifest.name, "digest": manifest.digest, **calibration.to_document()}
        click.echo(orjson.dumps(document).decode())
        return
    for kind, row in calibration.curves.items():
        for target, curve in row.items():
            fitted = f"{curve.positives} pairs that fit" if curve.positives else "the background alone"
            say(console, f"{kind} to {target}: from {fitted}, and {curve.backgrounds} that do not")
    if len(calibration.centres) == 1:
        say(console, "hardly any objects were found in these pictures, so objects are not calibrated")
    say(console, f"{manifest.name} is calibrated; workers that run read it at their next start")


@contextmanager
def _asked_for(
    store: ModelStore, in_use: ModelManifest, clip: str | None, detector: str | None
) -> Iterator[ModelManifest]:
    """The models in use, or a set composed for as long as it is measured."""
    if clip is None:
        yield in_use
        return
    clip_part = store.part("clip", clip)
    found = next((part for part in store.parts("detector") if part.is_in(in_use)), None)
    detector_part = store.part("detector", detector) if detector else found
    if detector_part is None:
        raise SightlogError(
            f"the detector in use, {in_use.detector.name}, is not in the store; name one with --detector"
        )
    with tempfile.TemporaryDirectory(prefix="sightlog-calibrate-") as folder:
        yield compose(clip_part, detector_part, load_manifest().preprocessing, Path(folder))


def _is_tiny(manifest: ModelManifest) -> bool:
    return set(manifest.files.values()) == set(load_manifest().files.values())


def _over_scenes(console: Console, manifest: ModelManifest, count: int) -> Calibration:
    eye, tokenizer = InProcessPipeline(manifest), ClipTokenizer(manifest.clip.context_length)
    with _bar(console, "looking at scenes", count * TICKS_A_SCENE) as tick:
        exams = scene_exams(eye, tokenizer, count, CALIBRATION_SEED, SENTENCES, coco_names(), tick)
    return calibrate(exams, f"{2 * count} generated scenes")


def _over_pictures(
    console: Console, manifest: ModelManifest, folder: Path, captions: Path | None, count: int | None
) -> Calibration:
    eye, tokenizer = InProcessPipeline(manifest), ClipTokenizer(manifest.clip.context_length)
    with _bar(console, "reading pictures", None) as tick:
        album = read_album(folder, captions, count or _PICTURES, CALIBRATION_SEED, tick)
    if album.left_out:
        say(console, f"left out, as no readable pictures or the same as another: {album.left_out}")
    with _bar(console, "looking at pictures", len(album.files) * TICKS_A_PICTURE) as tick:
        exams = picture_exams(eye, tokenizer, album, coco_names(), CALIBRATION_SEED, tick)
    described = f"{len(album.captions)} captions" if captions else "no captions"
    return calibrate(exams, f"{len(album.files)} pictures with {described}")


@contextmanager
def _bar(console: Console, title: str, total: int | None) -> Iterator[Tick]:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task(title, total=total)
        yield lambda: progress.advance(task)
