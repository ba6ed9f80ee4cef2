"""`sightlog models`: which models there are, what they are, and which of them run here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import click
import orjson
from rich.console import Console
from rich.table import Table

from models.manifest import ModelManifest, load_manifest
from models.settings import ModelSettings
from models.store import KINDS, ModelStore, Part
from sightlog.lazy_group import Lazy, LazyGroup
from sightlog.say import say

_COMMANDS = {
    "list": Lazy("models.cli:list_models", "The CLIP pairs and detectors in the store.", "stack"),
    "show": Lazy("models.cli:show", "What the models in use are, or one of the store.", "stack"),
    "use": Lazy("stack.model_choice:use", "Choose the CLIP pair and the detector that run here.", "stack"),
    "calibrate": Lazy("stack.model_calibration:calibrate_models", "Measure what the cosines of a model mean.", "stack"),
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
      sightlog models calibrate --images ~/photos
    """


@click.command("list")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def list_models(as_json: bool) -> None:
    """List the CLIP pairs and detectors in the store; * marks those in use, and whether they are calibrated.

    \b
    Examples:
      sightlog models list
      SIGHTLOG_MODELS_DIR=/srv/models sightlog models list --json
    """
    settings = ModelSettings.load()
    store, manifest = ModelStore(settings.models_dir), load_manifest(settings.model_folder)
    parts = [part for kind in KINDS for part in store.parts(kind)]
    if as_json:
        rows = [_described(part) | {"in_use": part.is_in(manifest)} for part in parts]
        calibrated = manifest.calibration is not None
        click.echo(orjson.dumps({"models_dir": str(store.folder), "parts": rows, "calibrated": calibrated}).decode())
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("", "kind", "name", "dim", "input", "classes", "size", "from"):
        table.add_column(column, justify="right" if column in ("dim", "input", "classes", "size") else "left")
    for part in parts:
        facts = _described(part)
        table.add_row(
            "*" if part.is_in(manifest) else "",
            part.kind,
            part.name,
            str(facts["spec"].get("dim", "")),
            f"{facts['spec'].get('image_size') or facts['spec'].get('input_size')} px",
            str(len(facts["spec"].get("classes", ())) or ""),
            f"{part.size_bytes / 1e6:.1f} MB",
            next(iter(part.source.values()), ""),
        )
    console = Console()
    console.print(table)
    say(console, f"in use: {manifest.name}, {_calibrated(manifest)}")


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
            "calibration": _curves(manifest),
        }
    else:
        store = ModelStore(settings.models_dir)
        found = [part for kind in KINDS for part in store.parts(kind) if part.name == name]
        if not found:
            store.part("clip", name)  # raises, with the names that there are
        described = {part.kind: _described(part) for part in found}
    if as_json:
        click.echo(orjson.dumps(described).decode())
        return
    _print_tree(described)
    if name is None:
        click.echo(f"{manifest.name} is {_calibrated(manifest)}")


def _calibrated(manifest: ModelManifest) -> str:
    if manifest.calibration is None:
        return "not calibrated: `sightlog models calibrate` measures it, and searches then tell a relevance"
    return f"calibrated with {manifest.calibration.source}"


def _curves(manifest: ModelManifest) -> dict[str, Any] | None:
    """Without the centres, which nobody reads."""
    if manifest.calibration is None:
        return None
    return {key: value for key, value in manifest.calibration.to_document().items() if key != "centres"}


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
