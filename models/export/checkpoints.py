"""Finds the weights of an architecture, on this machine or on the hub, and loads them with open_clip's own code."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import huggingface_hub
import open_clip
import torch
from huggingface_hub import constants
from huggingface_hub.utils import get_session
from open_clip.constants import HF_CONFIG_NAME, HF_SAFE_WEIGHTS_NAME, HF_WEIGHTS_NAME
from open_clip.factory import load_state_dict

from models.export.errors import CheckpointError, HubError

_WEIGHTS = (HF_SAFE_WEIGHTS_NAME, HF_WEIGHTS_NAME)  # in the order in which open_clip looks for them
_HUB_ANSWER_S = 5.0


@dataclass(frozen=True)
class Checkpoint:
    """Weights on this machine."""

    file: Path
    model: str  #: for `open_clip.create_model`: the name of the architecture, or `local-dir:` and a folder
    preprocess: Mapping[str, Any] = field(default_factory=dict)  #: what the folder says about pictures


def local_checkpoint(name: str, path: Path) -> Checkpoint:
    """A file with weights of the architecture, or a folder with `open_clip_config.json`. Raises CheckpointError."""
    if path.is_dir():
        return _folder(name, path)
    if not path.is_file():
        raise CheckpointError(f"{path} does not exist; name a file with the weights of {name}")
    return Checkpoint(path, name)


def hub_checkpoint(name: str, tag: str) -> Checkpoint:
    """Weights by tag, from the cache of the hub's client or downloaded. Raises HubError."""
    repository = open_clip.get_pretrained_cfg(name, tag)["hf_hub"].strip("/")
    for file in _WEIGHTS:
        cached = huggingface_hub.try_to_load_from_cache(repository, file)
        if isinstance(cached, str):
            return Checkpoint(Path(cached), name)
    try:
        # The client would try six times for each of two files before it says that there is no network.
        get_session().head(constants.ENDPOINT, timeout=_HUB_ANSWER_S)
        return Checkpoint(Path(open_clip.download_pretrained(open_clip.get_pretrained_cfg(name, tag))), name)
    except Exception as error:  # of the HTTP client, which differs between releases of the hub's client
        raise HubError(
            f"the weights of {name} ({tag}) cannot be downloaded: {_reason(error)}. Where the hub can be reached, "
            f"fetch {HF_SAFE_WEIGHTS_NAME} of {constants.ENDPOINT}/{repository}, bring it here, and run: "
            f"sightlog models export-clip {name} --checkpoint {HF_SAFE_WEIGHTS_NAME}"
        ) from None


def load_model(name: str, checkpoint: Checkpoint) -> torch.nn.Module:
    """The model in float32 on the CPU, for inference. Raises CheckpointError.

    Nothing but tensors is unpickled, so a file from anywhere can be tried.
    """
    try:
        tensors = len(load_state_dict(str(checkpoint.file)))
    except Exception as error:  # torch, zipfile, pickle and safetensors each raise their own
        raise CheckpointError(
            f"{checkpoint.file} cannot be read as a checkpoint ({_reason(error)}): it is cut off, damaged, none, or "
            "holds more than tensors; fetch it again, or save the model's state_dict() alone"
        ) from None
    # A folder may describe the older text tower, whose weights open_clip converts.
    model = open_clip.create_model(checkpoint.model, load_weights=False, force_custom_text=True)
    try:
        open_clip.load_checkpoint(model, str(checkpoint.file))
    except Exception as error:  # shapes and names that do not fit fail in several places
        raise CheckpointError(
            f"the {tensors} tensors of {checkpoint.file} are not those of {name} ({_reason(error)}); "
            "name the architecture that they were trained for"
        ) from None
    return model.eval()


def _folder(name: str, folder: Path) -> Checkpoint:
    file = next((folder / one for one in _WEIGHTS if (folder / one).is_file()), None)
    if file is None:
        raise CheckpointError(f"there is no {' or '.join(_WEIGHTS)} in {folder}; name the file, or a folder with one")
    path = folder / HF_CONFIG_NAME
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        found, preprocess = _towers(document["model_cfg"]), document.get("preprocess_cfg", {})
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"{path} does not describe a model ({type(error).__name__}: {error}); restore it, or name {file} instead"
        ) from None
    wanted = _towers(open_clip.get_model_config(name))
    if found != wanted:
        raise CheckpointError(f"{path} describes {found}, but {name} is {wanted}; name the architecture that it is of")
    return Checkpoint(file, f"local-dir:{folder}", preprocess)


def _towers(config: Mapping[str, Any]) -> str:
    """What tells architectures apart, for people. Sizes of pictures and contexts may differ within one."""
    image, text = config["vision_cfg"].get("timm_model_name"), config["text_cfg"].get("width")
    return f"{image} with a text tower of width {text} and dim {config['embed_dim']}"


def _reason(error: Exception) -> str:
    """The first sentence of a message that may list a thousand tensors, or go on with advice to programmers."""
    sentence = " ".join(str(error).split()).split(". ")[0]
    return f"{type(error).__name__}: {sentence[:160]}"
