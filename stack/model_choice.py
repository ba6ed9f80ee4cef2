"""`sightlog models use`: which models a data folder runs, and the change of a stack that runs there."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import click
from rich.console import Console

from models.checks import check_clip, check_detector
from models.manifest import ModelManifest, PreprocessingSpec, load_manifest, write_calibration
from models.settings import SETS, ModelSettings, choose
from models.store import ModelStore, Part, compose
from sightlog.errors import SightlogError
from sightlog.say import say
from stack.console import ConsoleProgress
from stack.local import LocalStack
from stack.model_change import reload_models


@click.command()
@click.argument("clip")
@click.option("--detector", help="The detector; by default the one in use now.")
@click.option(
    "--original-cap",
    type=click.IntRange(min=0),
    help="Longest side in pixels that objects are cut from; 0 keeps every pixel. By default 1920.",
)
@click.option("--no-restart", is_flag=True, help="Leave a running stack with the earlier models until its next start.")
def use(clip: str, detector: str | None, original_cap: int | None, no_restart: bool) -> None:
    """Let the stack of this data folder run the pair CLIP and a detector.

    Both are loaded and run once before anything changes. A running stack changes at once: its workers and Triton start
    again, and images are indexed and found with the new model from then on. What was indexed with an earlier model
    stays in that model's indices, and is found again when it is used again.

    \b
    Examples:
      sightlog models use MobileCLIP2-S2 --detector yolox-s
      sightlog models use MobileCLIP2-S2 --original-cap 0
      sightlog models use tiny --detector tiny
    """
    console = Console()
    settings = ModelSettings.load()
    if settings.models is not None:
        raise SightlogError(f"SIGHTLOG_MODELS={settings.models} names the models already; unset it to choose by name")
    store, now = ModelStore(settings.models_dir), load_manifest(settings.model_folder)
    clip_part = store.part("clip", clip)
    detector_part = store.part("detector", detector) if detector else None
    if detector_part is None:
        detector_part = next((part for part in store.parts("detector") if part.is_in(now)), None)
    if detector_part is None:
        raise SightlogError(f"the detector in use, {now.detector.name}, is not in the store; name one with --detector")
    preprocessing = load_manifest().preprocessing
    if original_cap is not None:
        preprocessing = replace(preprocessing, original_cap=original_cap)
    with console.status("loading and running the models once"):
        manifest = _composed(settings.data_dir / SETS, clip_part, detector_part, preprocessing)
        if (measured := store.calibration(manifest.digest)) is not None:
            manifest = write_calibration(manifest.folder, measured)
    choose(settings.data_dir, manifest)
    say(console, f"{manifest.name} is in use in {settings.data_dir}: {manifest.clip.dim} dimensions,")
    say(console, f"{len(manifest.detector.classes)} classes of objects, digest {manifest.digest[:12]}")
    if manifest.calibration is None:
        say(console, "it is not calibrated, so searches tell no relevance: `sightlog models calibrate` measures it")
    if detector is None:
        say(console, f"the detector is {detector_part.name}; --detector changes it")
    _restart(console, settings.data_dir, manifest, no_restart)


def _composed(sets: Path, clip: Part, detector: Part, preprocessing: PreprocessingSpec) -> ModelManifest:
    """The set in its folder, checked; one that is there already is used again."""
    sets.mkdir(parents=True, exist_ok=True)
    fresh = sets / ".new"
    shutil.rmtree(fresh, ignore_errors=True)  # of a process that was killed
    fresh.mkdir()
    try:
        manifest = compose(clip, detector, preprocessing, fresh)
        check_clip(fresh, manifest.clip)
        check_detector(fresh, manifest.detector)
        target = sets / manifest.digest[:12]
        if not target.exists():
            fresh.rename(target)
        return load_manifest(target)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def _restart(console: Console, data_dir: Path, manifest: ModelManifest, no_restart: bool) -> None:
    local = LocalStack(data_dir)
    if local.status().status not in ("ready", "degraded"):
        say(console, "the next `sightlog up` starts with it")
    elif no_restart:
        say(console, "the running stack keeps the earlier models: `sightlog down` and `up` change them")
    else:
        with ConsoleProgress(console) as progress:
            reload_models(local, progress)
        say(console, f"Triton and the workers run it; images go to the index images-{manifest.digest[:12]}")
