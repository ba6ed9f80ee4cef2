"""`sightlog models repository`."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import click
from rich.console import Console

from models.manifest import load_manifest
from models.settings import ModelSettings
from sightlog.errors import ConfigurationError
from triton_repo.build import build_repository
from triton_repo.configs import Profile
from triton_repo.contract import IMAGE_PIPELINE


@click.command()
@click.argument("out", type=click.Path(file_okay=False, path_type=Path))
@click.option("--profile", type=click.Choice(get_args(Profile)), default="cpu", show_default=True, help="What runs it.")
@click.option(
    "--models",
    "folder",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Folder of a model manifest. [default: the models in use]",
)
def repository(out: Path, profile: Profile, folder: Path | None) -> None:
    """Write the Triton model repository of the models in use into the folder OUT.

    \b
    cpu          Python on CPU, as `sightlog up` runs it
    fused        PyTorch and DALI on GPUs, the pipeline being one model; docs/gpu.md
    ensemble     the same in steps; start the server with the flags in OUT/server.args
    onnxruntime  NVIDIA's container: DALI and ONNX Runtime on GPU
    tensorrt     the same with TensorRT; `scripts/tensorrt OUT` makes the plans, on the GPU that will run them

    A server that is started with `--model-config-name=cpu` runs onnxruntime and tensorrt as `cpu`.

    \b
    Examples:
      sightlog models repository /srv/triton
      sightlog models repository /srv/triton --profile tensorrt
      sightlog models repository /srv/triton --models build/models/mine
    """
    if out.is_dir() and any(out.iterdir()) and not (out / IMAGE_PIPELINE / "config.pbtxt").is_file():
        raise ConfigurationError(f"{out} holds something else than a model repository; name an empty or new folder")
    manifest = load_manifest(folder or ModelSettings.load().model_folder)
    with Console(stderr=True).status(f"writing {manifest.name} for {profile}"):
        build_repository(manifest, out, profile=profile)
    click.echo(f"{out}: {manifest.name} ({manifest.digest[:12]}) for {profile}")
