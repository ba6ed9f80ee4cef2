"""Each known way to get a vision pipeline slightly wrong pushes quality below its bar; the right one clears it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from load_tests.retrieval import RetrievalQuality, best_first, retrieval_quality
from models.manifest import load_manifest
from models.photos import QUALITY_SEED, QUALITY_SIZES, Photo, photos
from models.preprocessing import map_boxes, normalise, square_crop
from models.scenes import caption_of
from models.tokenizer import EOT, PAD, ClipTokenizer
from triton_repo.inprocess import InProcessPipeline
from triton_repo.steps import StepFunctions

R_AT_1, MAP = 0.95, 0.92
_SMALL_SIDE = 256


@pytest.fixture(scope="module")
def gallery() -> list[Photo]:
    return photos(80, QUALITY_SEED, QUALITY_SIZES)


def quality(functions: StepFunctions, gallery: list[Photo]) -> RetrievalQuality:
    """R@1 and mAP of the pipeline in this process, as `sightlog bench quality` takes them through the topics."""
    manifest = load_manifest()
    pipeline = InProcessPipeline(manifest, functions)
    tokenizer = ClipTokenizer(manifest.clip.context_length)
    objects = [pipeline.infer(photo.jpeg).object_embeddings for photo in gallery]
    kinds = sorted({thing.kind for photo in gallery for thing in photo.objects})
    queries = pipeline.embed_text(
        functions.tokens(tokenizer.encode([f"a photo of a {caption_of(kind)}" for kind in kinds]))
    )
    rankings, relevant = [], []
    for kind, query in zip(kinds, queries, strict=True):
        best = {number: float((found @ query).max()) for number, found in enumerate(objects) if len(found)}
        rankings.append(best_first(best))
        relevant.append({n for n, photo in enumerate(gallery) if any(t.kind == kind for t in photo.objects)})
    return retrieval_quality(rankings, relevant)


def without_eot(tokens: Any) -> Any:
    return np.where(tokens == EOT, PAD, tokens)


def swapped_axes(*args: Any, **kwargs: Any) -> Any:
    return map_boxes(*args, **kwargs)[:, [1, 0, 3, 2]]


def without_offset(boxes: Any, plan: Any, *args: Any, **kwargs: Any) -> Any:
    return map_boxes(boxes, replace(plan, offset=(0, 0)), *args, **kwargs)


def bgr(pixels: Any, *args: Any, **kwargs: Any) -> Any:
    return normalise(np.ascontiguousarray(pixels[..., ::-1]), *args, **kwargs)


def bytes_range(*args: Any, **kwargs: Any) -> Any:
    return normalise(*args, **kwargs) * np.float32(255)


def from_small_image(original: Any, box: Any, *args: Any, **kwargs: Any) -> Any:
    height, width = original.shape[:2]
    scale = _SMALL_SIDE / min(width, height)
    small = Image.fromarray(original).resize((round(width * scale), round(height * scale)), Image.Resampling.BILINEAR)
    limits = np.array([small.width, small.height] * 2, np.float32)
    return square_crop(np.asarray(small), np.clip(box * scale, 0, limits), *args, **kwargs)


MUTATIONS: dict[str, Callable[[StepFunctions], StepFunctions]] = {
    "dropping the EOT token": lambda right: replace(right, tokens=without_eot),
    "swapping axes": lambda right: replace(right, map_boxes=swapped_axes),
    "BGR": lambda right: replace(right, normalise_clip=bgr),
    "0..255": lambda right: replace(right, normalise_clip=bytes_range),
    "no letterbox offset": lambda right: replace(right, map_boxes=without_offset),
    "crops from the 256 px image": lambda right: replace(right, square_crop=from_small_image),
}


def test_the_right_pipeline_clears_the_bars(gallery: list[Photo]) -> None:
    measured = quality(StepFunctions(), gallery)
    assert measured.queries >= 47
    assert measured.r_at_1 >= R_AT_1
    assert measured.map >= MAP


@pytest.mark.parametrize("mutation", MUTATIONS)
def test_a_mutation_falls_below_a_bar(mutation: str, gallery: list[Photo]) -> None:
    measured = quality(MUTATIONS[mutation](StepFunctions()), gallery)
    assert measured.r_at_1 < R_AT_1 or measured.map < MAP
