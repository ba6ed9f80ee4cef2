"""MobileCLIPs with random weights whose vectors still tell pictures and texts apart, for tests and benchmarks.

With its usual initial weights a deep tower gives every picture nearly the same vector, and any wrong export or
preprocessing would look right.
"""

from __future__ import annotations

from pathlib import Path

import open_clip
import torch
from safetensors.torch import save_file

from models.export.architectures import find_tag, picture_input
from models.export.parity import pictures
from models.export.quiet import quiet

_TEXT_GAIN = 2.0  # of matrices; at 1 the vectors of short texts have a cosine of 0.99
_LAYER_SCALE = 0.2  # initially 1e-5, which lets no block say anything; at 0.5 a tower answers to noise with chaos
_SCENES = 8


def calibrated_model(name: str, seed: int = 0) -> torch.nn.Module:
    """An open_clip model for inference on the CPU; the same name and seed, the same weights.

    Cosines between vectors of different generated scenes, and between those of different texts, stay below 0.96.
    """
    with quiet(), torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        model = open_clip.create_model(name).eval()
        for key, weight in model.named_parameters():
            if "gamma" in key or "layer_scale" in key:
                weight.fill_(_LAYER_SCALE)
            elif weight.ndim == 2 and key.endswith("weight") and "embedding" not in key:
                gain = _TEXT_GAIN if key.startswith("text.") else 1.0
                weight.normal_(0, gain * weight.shape[1] ** -0.5)
        picture = picture_input(name, find_tag(name, None), {})
        # Not the scenes that parity is measured on.
        images = pictures(_SCENES, 0, model.visual.image_size[0], picture, seed + 1)
        _calibrate(model.visual, torch.from_numpy(images))
    return model


def save_checkpoint(model: torch.nn.Module, path: Path) -> None:
    """Writes the weights as open_clip does, as safetensors or pickled, by the ending of `path`."""
    tensors = model.state_dict()
    if path.suffix == ".safetensors":
        save_file(tensors, path)
    else:
        torch.save(tensors, path)


def _calibrate(visual: torch.nn.Module, images: torch.Tensor) -> None:
    """Sets the statistics of batch norms to those of `images`."""
    norms = [module for module in visual.modules() if isinstance(module, torch.nn.modules.batchnorm._BatchNorm)]
    if not norms:
        return
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the plain mean
    visual.train()
    visual(images)
    visual.eval()
