"""Writes checkpoints in the forms in which people have them."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip.push_to_hf_hub import save_config_for_hf
from safetensors.torch import save_file

#: Names of MobileCLIP's own code by those of open_clip; the order matters.
_APPLE_IMAGE = {
    "stem": "patch_embed",
    "layer_scale_1.gamma": "layer_scale_1",
    "layer_scale_2.gamma": "layer_scale_2",
    "layer_scale.gamma": "layer_scale",
    "conv_kxk": "rbr_conv",
    "conv_scale": "rbr_scale",
    "identity": "rbr_skip",
    "final_conv": "conv_exp",
    "large_conv": "lkb_origin",
    "mlp": "convffn",
    "se.fc1": "se.reduce",
    "se.fc2": "se.expand",
}
_APPLE_TEXT = {
    "text_projection": "projection_layer",
    "token_embedding": "embedding_layer",
    "ln_final": "final_layer_norm",
    "ln_1": "pre_norm_mha.0",
    "ln_2": "pre_norm_ffn.0",
    "attn.in_proj_": "attn.qkv_proj.",
    "attn": "pre_norm_mha.1",
    "mlp.c_fc": "pre_norm_ffn.1",
    "mlp.c_proj": "pre_norm_ffn.4",
    "transformer.resblocks": "transformer",
}


def save_training_checkpoint(model: torch.nn.Module, path: Path) -> None:
    """As open_clip's training writes it, from several GPUs."""
    weights = {f"module.{key}": value for key, value in model.state_dict().items()}
    torch.save({"epoch": 3, "name": "run", "state_dict": weights, "optimizer": {"state": {}}}, path)


def save_folder(model: torch.nn.Module, name: str, folder: Path, **preprocess: Any) -> None:
    """As open_clip pushes it to the hub; `preprocess` replaces what it says about pictures."""
    folder.mkdir()
    save_file(model.state_dict(), folder / "open_clip_model.safetensors")
    config = folder / "open_clip_config.json"
    save_config_for_hf(model, config, open_clip.get_model_config(name))
    document = json.loads(config.read_text(encoding="utf-8"))
    document["preprocess_cfg"].update(preprocess)
    config.write_text(json.dumps(document), encoding="utf-8")


def save_as_apple(model: torch.nn.Module, path: Path) -> None:
    """A FastViT pair as MobileCLIP's own code saves it. Its projection of images has no bias: that must be zero."""
    weights = {}
    for key, value in model.state_dict().items():
        if key.startswith("visual.trunk.head.fc."):
            if key.endswith("bias"):
                assert not value.any()
            else:
                weights["image_encoder.model.head.proj"] = value.T.contiguous()
        elif key.startswith("visual.trunk."):
            weights["image_encoder.model." + _apple_image(key.removeprefix("visual.trunk."))] = value
        elif key.startswith("text."):
            weights["text_encoder." + _renamed(key.removeprefix("text."), _APPLE_TEXT)] = value
        else:
            weights[key] = value
    positions = weights.pop("text_encoder.positional_embedding")
    weights["text_encoder.positional_embedding.pos_embed.pos_embed"] = positions[None, None]
    torch.save(weights, path)


def _apple_image(key: str) -> str:
    """Stages are one flat list there: blocks, downsampling, blocks, ..., with a position before the last blocks."""
    match = re.match(r"stages\.(\d)\.(blocks|downsample\.proj|pos_emb\.pos_enc)", key)
    if match:
        stage, part = int(match[1]), match[2]
        index = {"blocks": 2 * stage + (stage == 3), "downsample.proj": 2 * stage - 1, "pos_emb.pos_enc": 2 * stage}[
            part
        ]
        renamed = {"blocks": "", "downsample.proj": ".proj", "pos_emb.pos_enc": ".pe"}[part]
        key = f"network.{index}{renamed}{key[match.end() :]}"
    return _renamed(key, _APPLE_IMAGE)


def _renamed(key: str, names: dict[str, str]) -> str:
    for ours, theirs in names.items():
        key = key.replace(ours, theirs)
    return key
