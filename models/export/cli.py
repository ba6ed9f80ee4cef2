"""`sightlog models export-clip`."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Literal

import click
from rich.console import Console

from models.settings import ModelSettings
from models.store import ModelStore
from sightlog.say import say


@click.command()
@click.argument("architecture", metavar="NAME")
@click.option("--pretrained", metavar="TAG", help="Which of open_clip's weights to download. [default: its first]")
@click.option(
    "--checkpoint",
    type=click.Path(path_type=Path),
    help="Weights on this machine: a file (.safetensors, .pt, .bin), or a folder with open_clip_config.json.",
)
@click.option("--precision", type=click.Choice(["fp32", "fp16"]), default="fp32", show_default=True, help="As stored.")
@click.option("--name", help="Name in the store. [default: NAME]")
@click.option("--mean", type=float, nargs=3, help="Of red, green and blue in 0..1. [default: as trained]")
@click.option("--std", type=float, nargs=3, help="Likewise.")
@click.option("--interpolation", type=click.Choice(["bilinear", "bicubic"]), help="[default: as trained]")
@click.option("--replace", is_flag=True, help="Overwrite what has that name.")
def export_clip(
    architecture: str,
    pretrained: str | None,
    checkpoint: Path | None,
    precision: Literal["fp32", "fp16"],
    name: str | None,
    mean: tuple[float, float, float] | None,
    std: tuple[float, float, float] | None,
    interpolation: str | None,
    replace: bool,
) -> None:
    """Export a MobileCLIP or MobileCLIP2 of open_clip to the model store.

    Both towers become ONNX, and are compared with the original before they are stored. How pictures are scaled and
    normalised follows from the weights that open_clip knows; give it for weights that were trained otherwise.

    \b
    Examples:
      sightlog models export-clip MobileCLIP2-S2
      sightlog models export-clip MobileCLIP2-S2 --precision fp16 --name s2-half
      sightlog models export-clip MobileCLIP2-S0 --checkpoint open_clip_model.safetensors
    """
    if pretrained is not None and checkpoint is not None:
        raise click.UsageError("--pretrained and --checkpoint exclude each other: weights come from one place")
    from models.export.clip import FETCH, ClipRequest, export

    console = Console()

    @contextmanager
    def step(title: str) -> Iterator[None]:
        begun = time.monotonic()
        with console.status(title) if console.is_terminal and title != FETCH else nullcontext():
            yield
        say(console, f"{title:<26} {time.monotonic() - begun:6.1f} s")

    given = {"mean": mean, "std": std, "interpolation": interpolation}
    request = ClipRequest(
        architecture=architecture,
        tag=pretrained,
        checkpoint=checkpoint,
        precision=precision,
        name=name,
        replace=replace,
        picture={key: value for key, value in given.items() if value},
    )
    store = ModelStore(ModelSettings.load().models_dir)
    exported = export(request, store, step)
    spec = exported.spec
    cosines = f"images {exported.image_cosine:.6f}, texts {exported.text_cosine:.6f}"
    say(console, f"lowest cosine to the original: {cosines}")
    size = f"{exported.size_bytes / 1e6:.0f} MB"
    say(console, f"{spec.name}: {spec.dim} dimensions, {spec.image_size} px, {size} in {store.folder}")
    say(console, f"next: sightlog models use {spec.name}")
