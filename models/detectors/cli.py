"""`sightlog models import-detector` and `export-yolox`."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar, get_args

import click

from models.detectors.heads import HeadName
from sightlog.errors import ConfigurationError

_RANGES = {"0..1": (0.0, 1.0), "0..255": (0.0, 255.0)}
YOLOX_SIZES = ("nano", "tiny", "s", "m", "l", "x")
_UNIT = click.FloatRange(0, 1)
_F = TypeVar("_F", bound=Callable[..., Any])

#: Options of both commands, in the order of --help.
_SHARED = (
    click.option("--classes", type=click.Path(dir_okay=False, path_type=Path), help="File of class names, one a line."),
    click.option("--name", help="Name in the store; else that of the file."),
    click.option("--nms", type=click.Choice(["onnx", "trt"]), default="onnx", help="trt: also a graph for TensorRT."),
    click.option("--score-threshold", type=_UNIT, help="Least score of a detection.  [default: 0.25]"),
    click.option("--iou-threshold", type=_UNIT, help="Overlap that suppresses within a class.  [default: 0.5]"),
    click.option("--max-detections", type=click.IntRange(1, 1000), help="Rows for each picture.  [default: 100]"),
    click.option("--input-size", type=click.IntRange(32, 4096), help="Side in pixels where the model leaves it open."),
    click.option("--colour", type=click.Choice(["rgb", "bgr"]), help="Order of the channels."),
    click.option("--range", "value_range", type=click.Choice(list(_RANGES)), help="Values of a pixel."),
    click.option("--letterbox", type=click.Choice(["center", "top-left"]), help="Where the picture lies."),
    click.option("--pad-value", type=click.IntRange(0, 255), default=114, show_default=True, help="Grey of the bars."),
    click.option("--replace", is_flag=True, help="Overwrite a detector of that name."),
)


def _shared_options(command: _F) -> _F:
    for option in reversed(_SHARED):
        command = option(command)
    return command


@click.command("import-detector")
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--head", type=click.Choice(get_args(HeadName)), help="What the outputs are; else it is found out.")
@_shared_options
def import_detector(file: Path, head: HeadName | None, name: str | None, replace: bool, **said: Any) -> None:
    """Import a detector from an ONNX file into the model store.

    Its outputs are recognised, non-maximum suppression is added where it has none, and everything that could fail
    later fails now. Thresholds default to those of the file's own suppression, if it has one; colour, range and
    letterbox to what detectors with such outputs are trained with.

    \b
    Examples:
      sightlog models import-detector yolo11s.onnx
      sightlog models import-detector yolov7.onnx --classes coco.txt --name street
      sightlog models import-detector own.onnx --classes own.txt --head yolox --range 0..1 --replace
    """
    with _libraries("stack"):
        from models.detectors.importing import import_file

        options = _options(head, **said)
        spec = import_file(file, _store(), name or _name_of(file), options, overwrite=replace, note=click.echo)
    _say_done(spec.name, len(spec.classes))


@click.command("export-yolox")
@click.argument("size", metavar="MODEL", type=click.Choice([f"yolox-{size}" for size in YOLOX_SIZES]))
@click.option("--checkpoint", type=click.Path(dir_okay=False, path_type=Path), help="File in the format of YOLOX.")
@_shared_options
def export_yolox(size: str, checkpoint: Path | None, name: str | None, replace: bool, **said: Any) -> None:
    """Export a YOLOX detector (Apache-2.0) into the model store.

    MODEL is yolox-nano, -tiny, -s, -m, -l or -x. Without --checkpoint the weights for the 80 classes of COCO are
    fetched from the release of YOLOX.

    \b
    Examples:
      sightlog models export-yolox yolox-s
      sightlog models export-yolox yolox-s --checkpoint yolox_s.pth
      sightlog models export-yolox yolox-nano --checkpoint best_ckpt.pth --classes own.txt --name own
    """
    with _libraries("export"):
        from models.detectors.yolox import export_to_store

        options = _options(None, **said)
        spec = export_to_store(size, checkpoint, _store(), name or size, options, overwrite=replace, note=click.echo)
    _say_done(spec.name, len(spec.classes))


def _options(head: HeadName | None, *, classes: Path | None, nms: str, value_range: str | None, **said: Any) -> Any:
    from models.detectors.class_names import read_class_names
    from models.detectors.importing import ImportOptions

    return ImportOptions(
        head=head,
        classes=read_class_names(classes) if classes else None,
        value_range=_RANGES[value_range] if value_range else None,
        tensorrt=nms == "trt",
        **said,
    )


def _store() -> Any:
    from models.settings import ModelSettings
    from models.store import ModelStore

    return ModelStore(ModelSettings.load().models_dir)


def _name_of(file: Path) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "-", file.stem).strip("-._") or "detector"


def _say_done(name: str, classes: int) -> None:
    click.echo(f"stored {name} with {classes} classes; `sightlog models use CLIP --detector {name}` makes it run")


@contextmanager
def _libraries(extra: str) -> Iterator[None]:
    """--help needs none of them."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise ConfigurationError(f"this needs {error.name}: pip install 'sightlog[{extra}]'") from None
