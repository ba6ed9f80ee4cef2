"""`sightlog models`: which models there are, what they are, and which of them run here."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import click
import orjson
from rich.console import Console
from rich.table import Table

from models.manifest import ModelManifest, PreprocessingSpec, load_manifest
from models.settings import SETS, ModelSettings, choose
from models.store import KINDS, ModelStore, Part, compose
from sightlog.errors import SightlogError
from sightlog.lazy_group import Lazy, LazyGroup

_COMMANDS = {
    "list": Lazy("models.cli:list_models", "The CLIP pairs and detectors in the store.", "stack"),
    "show": Lazy("models.cli:show", "What the models in use are, or one of the store.", "stack"),
    "use": Lazy("models.cli:use", "Choose the CLIP pair and the detector that run here.", "stack"),
    "export-clip": Lazy("models.export.cli:export_clip", "Export a MobileCLIP pair to the store.", "export"),
    "export-yolox": Lazy("models.detectors.cli:export_yolox", "Export a YOLOX detector to the store.", "export"),
    "import-detector": Lazy("models.detectors.cli:import_detector", "Import a detector from an ONNX file.", "stack"),
    "repository": Lazy(
        "triton_repo.cli:repository", "Write the Triton model repository of the models in use.", "stack"
    ),
}


@click.group(cls=LazyGroup, table=_COMMANDS)
def models() -> None:
    """Export, import, look at and choose models.

    A CLIP pair and a detector are stored apart and used together. Vectors of different models are never compared: each
    model has indices of its own, and going back to an earlier model finds its images again.

    \b
    Examples:
      sightlog models list
      sightlog models export-clip MobileCLIP2-S2
      sightlog models import-detector yolo11s.onnx
      sightlog models use MobileCLIP2-S2 --detector yolo11s
    """


@click.command("list")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def list_models(as_json: bool) -> None:
    """List the CLIP pairs and detectors in the store; * marks those in use.

    \b
    Examples:
      sightlog models list
      SIGHTLOG_MODELS_DIR=/srv/models sightlog models list --json
    """
    settings = ModelSettings.load()
    store, manifest = ModelStore(settings.models_dir), load_manifest(settings.model_folder)
    parts = [part for kind in KINDS for part in store.parts(kind)]
    if as_json:
        rows = [_described(part) | {"in_use": _in_use(part, manifest)} for part in parts]
        click.echo(orjson.dumps({"models_dir": str(store.folder), "parts": rows}).decode())
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("", "kind", "name", "dim", "input", "classes", "size", "from"):
        table.add_column(column, justify="right" if column in ("dim", "input", "classes", "size") else "left")
    for part in parts:
        facts = _described(part)
        table.add_row(
            "*" if _in_use(part, manifest) else "",
            part.kind,
            part.name,
            str(facts["spec"].get("dim", "")),
            f"{facts['spec'].get('image_size') or facts['spec'].get('input_size')} px",
            str(len(facts["spec"].get("classes", ())) or ""),
            f"{part.size_bytes / 1e6:.1f} MB",
            next(iter(part.source.values()), ""),
        )
    Console().print(table)


@click.command()
@click.argument("name", required=False)
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def show(name: str | None, as_json: bool) -> None:
    """Show everything about the models in use, or about NAME of the store.

    \b
    Examples:
      sightlog models show
      sightlog models show MobileCLIP2-S2 --json
    """
    settings = ModelSettings.load()
    if name is None:
        manifest = load_manifest(settings.model_folder)
        described: dict[str, Any] = {
            "name": manifest.name,
            "digest": manifest.digest,
            "folder": str(manifest.folder),
            "clip": asdict(manifest.clip),
            "detector": asdict(manifest.detector),
            "preprocessing": asdict(manifest.preprocessing),
            "files": dict(manifest.files),
        }
    else:
        store = ModelStore(settings.models_dir)
        found = [part for kind in KINDS for part in store.parts(kind) if part.name == name]
        if not found:
            store.part("clip", name)  # raises, with the names that there are
        described = {part.kind: _described(part) for part in found}
    if as_json:
        click.echo(orjson.dumps(described).decode())
    else:
        _print_tree(described)


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
        detector_part = next((part for part in store.parts("detector") if _in_use(part, now)), None)
    if detector_part is None:
        raise SightlogError(f"the detector in use, {now.detector.name}, is not in the store; name one with --detector")
    preprocessing = load_manifest().preprocessing
    if original_cap is not None:
        preprocessing = replace(preprocessing, original_cap=original_cap)
    with console.status("loading and running the models once"):
        manifest = _composed(settings.data_dir / SETS, clip_part, detector_part, preprocessing)
    choose(settings.data_dir, manifest)
    _say(console, f"{manifest.name} is in use in {settings.data_dir}: {manifest.clip.dim} dimensions,")
    _say(console, f"{len(manifest.detector.classes)} classes of objects, digest {manifest.digest[:12]}")
    if detector is None:
        _say(console, f"the detector is {detector_part.name}; --detector changes it")
    _restart(console, settings.data_dir, manifest, no_restart)


def _composed(sets: Path, clip: Part, detector: Part, preprocessing: PreprocessingSpec) -> ModelManifest:
    """The set in its folder, checked; one that is there already is used again."""
    from models.checks import check_clip, check_detector

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
    from stack.console import ConsoleProgress
    from stack.local import LocalStack
    from stack.model_change import reload_models

    local = LocalStack(data_dir)
    if local.status().status not in ("ready", "degraded"):
        _say(console, "the next `sightlog up` starts with it")
    elif no_restart:
        _say(console, "the running stack keeps the earlier models: `sightlog down` and `up` change them")
    else:
        with ConsoleProgress(console) as progress:
            reload_models(local, progress)
        _say(console, f"Triton and the workers run it; images go to the index images-{manifest.digest[:12]}")


def _in_use(part: Part, manifest: ModelManifest) -> bool:
    same_weights = all(manifest.files.get(file) == part.files[file] for file in part.weights)
    return same_weights and part.spec in (manifest.clip, manifest.detector)


def _described(part: Part) -> dict[str, Any]:
    return {
        "kind": part.kind,
        "name": part.name,
        "spec": asdict(part.spec),
        "files": dict(part.files),
        "size_bytes": part.size_bytes,
        "source": dict(part.source),
    }


def _print_tree(values: dict[str, Any], indent: str = "", echo: Callable[[str], None] = click.echo) -> None:
    for key, value in values.items():
        if isinstance(value, dict):
            echo(f"{indent}{key}")
            _print_tree(value, indent + "  ", echo)
        else:
            shown = ", ".join(map(str, value)) if isinstance(value, (tuple, list)) else value
            echo(f"{indent}{key:<18} {shown}")


def _say(console: Console, text: str) -> None:
    console.print(text, highlight=False, markup=False, soft_wrap=True)
