"""Exports both towers of a MobileCLIP to the model store, and proves that they give the vectors of the original."""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import open_clip
import timm
import torch
from timm.utils import reparameterize_model

from models.checks import check_clip
from models.export.architectures import PictureInput, check_tokenizer, find_architecture, find_tag, picture_input
from models.export.checkpoints import Checkpoint, hub_checkpoint, load_model, local_checkpoint
from models.export.errors import ExportError
from models.export.parity import check_parity, lowest_cosine, original_vectors, probe
from models.export.quiet import quiet
from models.export.towers import OPSET, Precision, write_tower
from models.manifest import ClipSpec, sha256_of
from models.store import ModelStore
from models.tokenizer import PAD

IMAGE_ONNX, TEXT_ONNX = "clip_image.onnx", "clip_text.onnx"
FETCH = "fetch weights"  #: the step during which the hub's client draws its own progress bar

#: Is told the name of each long step, which lasts as long as the context that it returns.
Steps = Callable[[str], AbstractContextManager[object]]


@dataclass(frozen=True)
class ClipRequest:
    """What to export."""

    architecture: str
    tag: str | None = None  #: of open_clip's weights; None = the architecture's first
    checkpoint: Path | None = None  #: a file or folder on this machine, in place of the hub
    precision: Precision = "fp32"  #: of the stored weights
    name: str | None = None  #: in the store; None = that of the architecture
    replace: bool = False  #: a pair of that name
    #: `mean`, `std` and `interpolation`, where they are to differ from those that the weights were trained with
    picture: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class ExportedClip:
    """What was stored."""

    spec: ClipSpec
    image_cosine: float  #: lowest between exported and original vectors
    text_cosine: float
    size_bytes: int  #: of both files


def export(request: ClipRequest, store: ModelStore, step: Steps = nullcontext) -> ExportedClip:
    """Exports a pair to the store, which changes only when everything went well.

    Raises an ExportError of some kind, StoreError for a name that exists, ModelCheckError where the files are not what
    their spec says.
    """
    architecture = find_architecture(request.architecture)
    tag = find_tag(architecture, request.tag)
    name = request.name or architecture
    with store.adding("clip", name, replace=request.replace) as folder, quiet():
        checkpoint = _checkpoint(architecture, tag, request.checkpoint, step)
        check_tokenizer(open_clip.get_model_config(checkpoint.model)["text_cfg"])
        picture = picture_input(architecture, tag, {**checkpoint.preprocess, **request.picture})
        exported = _write_towers(name, architecture, checkpoint, picture, request.precision, folder, step)
        with step("check and store"):
            check_clip(folder, exported.spec)
            source = {
                "architecture": architecture,
                "weights": tag if request.checkpoint is None else checkpoint.file.name,
                "weights_sha256": sha256_of(checkpoint.file),
                "precision": request.precision,
                "image_cosine": f"{exported.image_cosine:.6f}",
                "text_cosine": f"{exported.text_cosine:.6f}",
                "exporter": f"torch {torch.__version__}, open_clip {open_clip.__version__}, timm {timm.__version__}, "
                f"opset {OPSET}",
            }
            store.write_part(folder, exported.spec, source)
    return exported


def _checkpoint(architecture: str, tag: str, path: Path | None, step: Steps) -> Checkpoint:
    if path is not None:
        return local_checkpoint(architecture, path)
    with step(FETCH):
        return hub_checkpoint(architecture, tag)


def _write_towers(
    name: str,
    architecture: str,
    checkpoint: Checkpoint,
    picture: PictureInput,
    precision: Precision,
    folder: Path,
    step: Steps,
) -> ExportedClip:
    """Both ONNX files into `folder`. A large pair has 2 GB, so no copy of the weights outlives its use."""
    image_file, text_file = folder / IMAGE_ONNX, folder / TEXT_ONNX
    with step("load weights"):
        model = load_model(architecture, checkpoint)
    size, context_length = _side(model.visual.image_size), int(model.context_length)
    with step("run the original"):
        inputs = probe(size, picture, context_length)
        images, texts = original_vectors(model, inputs)
    with step("reparameterise"):
        reparameterize_model(model, inplace=True)
    with step("export the image tower"):
        write_tower(model.visual, torch.from_numpy(inputs.images[:2]), "images", image_file, precision)
        del model.visual
    with step("export the text tower"):
        write_tower(model.text, torch.from_numpy(inputs.tokens[:2]), "tokens", text_file, precision)
        del model
        gc.collect()
    with step("compare with the original"):
        image_cosine = lowest_cosine(image_file, "images", inputs.images, images)
        text_cosine = lowest_cosine(text_file, "tokens", inputs.tokens, texts)
        check_parity(image_cosine, text_cosine, precision)
    spec = ClipSpec(
        name=name,
        image_onnx=IMAGE_ONNX,
        text_onnx=TEXT_ONNX,
        dim=images.shape[1],
        image_size=size,
        mean=picture.mean,
        std=picture.std,
        interpolation=picture.interpolation,
        tokenizer="clip-bpe",
        context_length=context_length,
        pad_id=PAD,
    )
    return ExportedClip(spec, image_cosine, text_cosine, image_file.stat().st_size + text_file.stat().st_size)


def _side(image_size: tuple[int, int]) -> int:
    height, width = image_size
    if height != width:
        raise ExportError(f"the model takes pictures of {width}x{height} pixels; only square ones are supported")
    return height
