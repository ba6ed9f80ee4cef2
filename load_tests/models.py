"""`bench models`: milliseconds an image and a query, beside what raw onnxruntime needs for the same graph in turns."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import track

from load_tests.running import machine
from models.manifest import load_manifest
from models.photos import STREAM_SEED, STREAM_SIZES, photos
from models.preprocessing import centre_crop, decode_upright, letterbox
from models.settings import ModelSettings
from models.tokenizer import ClipTokenizer
from triton_repo.sessions import Detector, ImageTower, TextTower, open_session
from triton_repo.steps import ImageSteps

BATCHES = (1, 8)
#: As each model instance has in Triton's default configuration.
THREADS = 1
_WARM_UP = 3

Call = Callable[[], Any]


def measure(console: Console, count: int = 100) -> dict[str, Any]:
    """Medians over `count` rounds of the models in use. `ratio`: the smallest of raw / ours over towers and batches.

    Ours begins with uint8 pictures, raw with the finished float32 input of the graph; both text towers with tokens.
    """
    manifest = load_manifest(ModelSettings.load().model_folder)
    clip, detector = manifest.clip, manifest.detector
    pictures = [decode_upright(photo.jpeg).pixels for photo in photos(max(BATCHES), STREAM_SEED, STREAM_SIZES)]
    crops = np.stack([centre_crop(p, clip.image_size, interpolation=clip.interpolation) for p in pictures])
    boxed = [letterbox(p, detector.input_size, detector.pad_value) for p in pictures]
    words = [f"a photo of a red circle number {number}" for number in range(max(BATCHES))]
    tokenizer = ClipTokenizer(clip.context_length)
    image_tower, text_tower = ImageTower(manifest, THREADS), TextTower(manifest, THREADS)
    finder = Detector(manifest, THREADS)
    raw = {
        name: open_session(manifest.path(file), THREADS)
        for name, file in (("image", clip.image_onnx), ("text", clip.text_onnx), ("detector", detector.onnx))
    }
    steps = ImageSteps(manifest)
    images, tokens = steps.clip_input(crops), tokenizer.encode(words)
    canvases = steps.detector_input(np.stack(boxed))
    pairs: dict[str, tuple[int, Call, Call]] = {}
    for batch in BATCHES:
        pairs[f"image_b{batch}"] = (
            batch,
            partial(image_tower, crops[:batch]),
            partial(raw["image"].run, ["embeddings"], {"images": images[:batch]}),
        )
        pairs[f"text_b{batch}"] = (
            batch,
            partial(text_tower, tokens[:batch]),
            partial(raw["text"].run, ["embeddings"], {"tokens": tokens[:batch]}),
        )
    pairs["detector_b1"] = (1, partial(finder, boxed[:1]), partial(raw["detector"].run, None, {"images": canvases[:1]}))
    figures: dict[str, Any] = {"models": manifest.name, "dim": clip.dim, "rounds": count, "threads": THREADS}
    ratios = {}
    for name, (batch, ours, plain) in track(pairs.items(), "measuring", console=console):
        ours_ms, raw_ms = _in_turns(ours, plain, count)
        figures[f"{name}_ms"] = round(ours_ms / batch, 3)
        figures[f"{name}_raw_ms"] = round(raw_ms / batch, 3)
        ratios[name] = raw_ms / ours_ms
    figures["ratios"] = {name: round(value, 3) for name, value in ratios.items()}
    figures["ratio"] = round(min(ratios.values()), 3)
    figures["machine"] = machine()
    return figures


def _in_turns(ours: Call, plain: Call, rounds: int) -> tuple[float, float]:
    """Medians in milliseconds; the calls alternate, so that both see the same machine."""
    spent: tuple[list[float], list[float]] = ([], [])
    for number in range(-_WARM_UP, rounds):
        for call, times in zip((ours, plain), spent, strict=True):
            started = time.perf_counter()
            call()
            if number >= 0:
                times.append((time.perf_counter() - started) * 1000)
    return statistics.median(spent[0]), statistics.median(spent[1])
