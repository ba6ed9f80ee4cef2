"""YOLOX (Apache-2.0) from the package pixeltable-yolox: weights into their architecture, and out as ONNX."""

from __future__ import annotations

import pickle
import socket
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from http.client import HTTPException
from pathlib import Path
from typing import Any

import torch
from yolox.config import YoloxConfig
from yolox.models import YoloxModule
from yolox.utils import load_checkpoint

from models.detectors.class_names import coco_names, fitting_names
from models.detectors.errors import CheckpointError, first_line
from models.detectors.importing import ImportOptions, import_file
from models.manifest import DetectorSpec, sha256_of
from models.store import ModelStore

OPSET = 17
_DOWNLOAD_TIMEOUT = 30.0  # seconds without a byte; the package sets none and would wait for ever
_CLASS_WEIGHTS = "head.cls_preds.0.weight"  # [classes, channels, 1, 1]


def export_to_store(
    size: str,
    checkpoint: Path | None,
    store: ModelStore,
    name: str,
    options: ImportOptions,
    *,
    overwrite: bool = False,
    note: Callable[[str], None] = lambda line: None,
) -> DetectorSpec:
    """Exports `size` ("yolox-s") with the weights of a checkpoint, None = those of its release, and imports the result.

    Raises CheckpointError where weights cannot be had or do not fit, and what `import_file` raises.
    """
    note(f"loading {checkpoint or f'the weights of {size} (they are fetched the first time)'}")
    model, side = load_yolox(size, checkpoint)
    side = options.input_size or side
    if options.classes is None and model.head.num_classes == len(coco_names()):
        options = replace(options, classes=coco_names())
    fitting_names(options.classes, None, model.head.num_classes)  # before the minutes that an export may take
    origin = {"architecture": size, "checkpoint": "release 0.1.1rc0"}
    if checkpoint:
        origin |= {"checkpoint": checkpoint.name, "checkpoint_sha256": sha256_of(checkpoint)}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / f"{size}.onnx"
        note(f"exporting {size} for pictures of {side}x{side}")
        export_onnx(model, side, file)
        return import_file(
            file, store, name, replace(options, input_size=None), overwrite=overwrite, origin=origin, note=note
        )


def load_yolox(size: str, checkpoint: Path | None) -> tuple[Any, int]:
    """The module, ready for inference, and the side of the pictures that it was trained for.

    A checkpoint is what YOLOX's trainer saves: {"model": state_dict, ...}. It tells the number of classes.
    Raises CheckpointError.
    """
    config = YoloxConfig.get_named_config(size)
    assert config is not None, size
    if checkpoint is None:
        return _released(size), int(config.test_size[0])
    weights = _weights(checkpoint)
    config.num_classes = len(weights[_CLASS_WEIGHTS])
    module = config.get_model()
    try:
        module.load_state_dict(weights)
    except RuntimeError as error:
        raise CheckpointError(
            f"{checkpoint} does not fit {size} ({first_line(error)}); name the size it was trained as"
        ) from None
    return module.eval(), int(config.test_size[0])


def export_onnx(model: Any, side: int, file: Path, *, decoded: bool = True) -> None:
    """Writes the ONNX with a dynamic batch; `decoded`: boxes in pixels, else as offsets in their cells."""
    model.head.decode_in_inference = decoded
    torch.onnx.export(
        model,
        (torch.zeros(1, 3, side, side),),
        str(file),
        input_names=["images"],
        output_names=["output"],
        dynamic_axes={"images": {0: "batch"}, "output": {0: "batch"}},
        opset_version=OPSET,
        dynamo=False,  # the tracing exporter folds batch norms and needs no further package
    )


def _released(size: str) -> Any:
    with _timeout(_DOWNLOAD_TIMEOUT):
        try:
            return YoloxModule.from_pretrained(size)
        except (OSError, HTTPException) as error:
            file = size.replace("-", "_") + ".pth"
            raise CheckpointError(
                f"the weights of {size} cannot be fetched ({first_line(error)}); get {file} of the YOLOX release "
                "0.1.1rc0 where there is a network, and give it with --checkpoint"
            ) from None


def _weights(checkpoint: Path) -> Any:
    try:
        document = load_checkpoint(checkpoint)
    except OSError as error:
        raise CheckpointError(f"{checkpoint} cannot be read ({error.strerror}); name a checkpoint of YOLOX") from None
    except (RuntimeError, EOFError, ValueError, KeyError, pickle.UnpicklingError) as error:
        raise CheckpointError(
            f"{checkpoint} is no checkpoint, or is cut off or damaged ({first_line(error)}); fetch it again"
        ) from None
    weights = document.get("model") if isinstance(document, dict) else None
    if not isinstance(weights, dict) or _CLASS_WEIGHTS not in weights:
        raise CheckpointError(
            f'{checkpoint} is no checkpoint of YOLOX: it lacks {{"model": weights}} with a YOLOX head'
        )
    return weights


@contextmanager
def _timeout(seconds: float) -> Iterator[None]:
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
