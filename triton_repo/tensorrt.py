"""The trtexec commands that make the TensorRT plans of a repository: `python -m triton_repo.tensorrt REPOSITORY`."""

from __future__ import annotations

import shlex
from pathlib import Path

import click
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2 as pb

from sightlog.errors import ConfigurationError
from triton_repo.model_config import TENSORRT


def plan_commands(repository: Path, *, fp16: bool = False) -> list[str]:
    """One shell command a model, with paths relative to the repository; shapes are those of its configs.

    A plan is tuned for full batches and takes smaller ones. It appears when it is complete.
    Raises ConfigurationError where no model of the repository is TensorRT's.
    """
    commands = []
    for path in sorted(repository.glob("*/config.pbtxt")):
        config = text_format.Parse(path.read_text(encoding="utf-8"), pb.ModelConfig())
        if config.platform != TENSORRT.platform:
            continue
        (onnx,) = path.parent.glob("*/model.onnx")
        plan = onnx.relative_to(repository).with_name("model.plan")
        trtexec = [
            "trtexec",
            f"--onnx={onnx.relative_to(repository)}",
            f"--saveEngine={plan}.new",
            f"--minShapes={_shapes(config, 1)}",
            f"--optShapes={_shapes(config, config.max_batch_size)}",
            f"--maxShapes={_shapes(config, config.max_batch_size)}",
            "--skipInference",
        ] + ["--fp16"] * fp16
        commands.append(f"{shlex.join(trtexec)} && {shlex.join(['mv', f'{plan}.new', str(plan)])}")
    if not commands:
        raise ConfigurationError(
            f"no model in {repository} is TensorRT's; write it with `sightlog models repository --profile tensorrt`"
        )
    return commands


def _shapes(config: pb.ModelConfig, batch: int) -> str:
    return ",".join(f"{given.name}:{'x'.join(map(str, [batch, *given.dims]))}" for given in config.input)


@click.command()
@click.argument("repository", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--fp16", is_flag=True, help="Compute in half precision; only TensorRT 10 has this.")
def main(repository: Path, fp16: bool) -> None:
    """Print the trtexec commands for REPOSITORY, one a line; run them there."""
    try:
        click.echo("\n".join(plan_commands(repository, fp16=fp16)))
    except ConfigurationError as error:
        raise click.ClickException(str(error)) from None


if __name__ == "__main__":
    main()
