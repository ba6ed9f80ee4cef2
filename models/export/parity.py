"""Compares exported graphs with the model that they come from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime
import torch
from PIL import Image

from models.export.architectures import PictureInput
from models.export.errors import ParityError
from models.export.towers import OUTPUT, Precision
from models.scenes import generate_scene
from models.tokenizer import ClipTokenizer

FLOOR: dict[Precision, float] = {"fp32": 0.9999, "fp16": 0.999}  #: lowest cosine that is let through
TEXTS = (
    "a photo of a cat",
    "two striped red circles and a blue star",
    "",
    "the sea at night " * 40,  # longer than any context
    "снег, 猫, 🐈‍⬛",
)
_SCENES, _NOISE = 4, 2
_SCENE_PIXELS = 320

FloatArray = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Probe:
    """Inputs of both towers. `images`: float32 [6, 3, S, S], normalised. `tokens`: int64 [5, context length]."""

    images: FloatArray
    tokens: npt.NDArray[np.int64]


def probe(size: int, picture: PictureInput, context_length: int) -> Probe:
    """Generated scenes, noise, and texts of several kinds; the same on each call."""
    return Probe(pictures(_SCENES, _NOISE, size, picture), ClipTokenizer(context_length).encode(TEXTS))


def pictures(scenes: int, noise: int, size: int, picture: PictureInput, seed: int = 0) -> FloatArray:
    """That many generated scenes, then pictures of noise: float32 [scenes + noise, 3, size, size], normalised."""
    rng = np.random.default_rng(seed)
    drawn = [generate_scene(rng, _SCENE_PIXELS, _SCENE_PIXELS, 4).image for _ in range(scenes)]
    drawn += list(rng.integers(0, 256, (noise, size, size, 3), np.uint8))
    pixels = np.stack([np.asarray(Image.fromarray(one).resize((size, size)), np.float32) for one in drawn]) / 255
    normalised = (pixels - np.asarray(picture.mean, np.float32)) / np.asarray(picture.std, np.float32)
    return np.ascontiguousarray(normalised.transpose(0, 3, 1, 2))


def original_vectors(model: torch.nn.Module, inputs: Probe) -> tuple[FloatArray, FloatArray]:
    """What the untouched model gives for images and texts, float32 [n, dim], not normalised."""
    with torch.inference_mode():
        images = model.encode_image(torch.from_numpy(inputs.images))
        texts = model.encode_text(torch.from_numpy(inputs.tokens))
    return images.numpy(), texts.numpy()


def lowest_cosine(file: Path, name: str, batch: npt.NDArray[Any], expected: FloatArray) -> float:
    """Runs a graph on a batch and compares each vector with the original one."""
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    found = session.run([OUTPUT], {name: batch})[0]
    lengths = np.linalg.norm(expected, axis=1) * np.linalg.norm(found, axis=1)
    return float(((expected * found).sum(1) / lengths).min())


def check_parity(images: float, texts: float, precision: Precision) -> None:
    """Raises ParityError where a lowest cosine is below the floor of its precision, or is NaN."""
    floor = FLOOR[precision]
    for tower, cosine in (("image", images), ("text", texts)):
        if not cosine >= floor:
            advice = "export with --precision fp32" if precision == "fp16" else "the checkpoint may be damaged"
            raise ParityError(
                f"the exported {tower} tower has a cosine of {cosine:.6f} to the original, {floor} is needed; {advice}"
            )
