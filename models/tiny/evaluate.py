"""Measures the exported models, whole chain, on unseen scenes, and what each known mistake costs.

`python -m models.tiny.evaluate` needs only numpy, Pillow, onnxruntime, regex and ftfy.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime
from PIL import Image

from models.manifest import ModelManifest, load_manifest
from models.photos import QUALITY_SEED, QUALITY_SIZES, Photo
from models.photos import photos as photos_of
from models.preprocessing import (
    decode_upright,
    letterbox,
    map_boxes,
    normalise,
    plan_letterbox,
    square_crop,
)
from models.scenes import Kind, caption_of
from models.tiny.captions import RELATIONS, UNSEEN_FRAMES, caption_for, frame
from models.tiny.samples import view_sample
from models.tokenizer import EOT, PAD, ClipTokenizer

BARS = (0.95, 0.92)  #: R@1 and mAP below which the product's quality measure fails
_SMALL_SIDE = 256

Float32 = npt.NDArray[np.float32]
UInt8 = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Fault:
    """One mistake that a pipeline can make."""

    name: str = "none"
    eot_lost: bool = False
    axes_swapped: bool = False
    bgr: bool = False
    byte_range: bool = False  #: 0..255 instead of 0..1
    no_offset: bool = False  #: the letterbox's bars are forgotten when boxes are mapped back
    small_source: bool = False  #: crops come from the image scaled to a short side of 256 px


FAULTS = (
    Fault("EOT lost", eot_lost=True),
    Fault("axes swapped", axes_swapped=True),
    Fault("BGR", bgr=True),
    Fault("0..255", byte_range=True),
    Fault("no letterbox offset", no_offset=True),
    Fault("crops from the 256 px image", small_source=True),
)


@dataclass(frozen=True)
class Gallery:
    """Embeddings of all objects found, float32 [n, dim], and which photo each is of, int64 [n]."""

    embeddings: Float32
    photo: npt.NDArray[np.int64]
    detections: tuple[tuple[Float32, Float32, npt.NDArray[np.int32]], ...]  #: boxes, scores, classes by photo


class Chain:
    """The pipeline in one process: decode, detect, map back, crop, embed."""

    def __init__(self, manifest: ModelManifest, threads: int = 1) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        self._manifest = manifest
        self._tokenizer = ClipTokenizer(manifest.clip.context_length)
        self._image, self._text, self._detector = (
            onnxruntime.InferenceSession(str(manifest.path(file)), options, providers=["CPUExecutionProvider"])
            for file in (manifest.clip.image_onnx, manifest.clip.text_onnx, manifest.detector.onnx)
        )

    def detect(self, image: Image.Image) -> list[npt.NDArray[Any]]:
        """Boxes on the letterbox canvas, scores and class ids."""
        spec = self._manifest.detector
        canvas = letterbox(image, spec.input_size, spec.pad_value)
        count, boxes, scores, classes = self._detector.run(None, {"images": normalise(canvas[None])})
        found = int(count[0, 0])
        return [boxes[0, :found], scores[0, :found], classes[0, :found]]

    def embed_images(self, crops: UInt8, fault: Fault = Fault()) -> Float32:
        """uint8 [n, S, S, 3] -> float32 [n, dim]."""
        inputs = normalise(crops, bgr=fault.bgr) * np.float32(255 if fault.byte_range else 1)
        embeddings: Float32 = self._image.run(None, {"images": inputs})[0]
        return embeddings

    def embed_texts(self, texts: Sequence[str], fault: Fault = Fault()) -> Float32:
        """float32 [len(texts), dim]."""
        tokens = self._tokenizer.encode(texts)
        if fault.eot_lost:
            tokens[tokens == EOT] = PAD
        embeddings: Float32 = self._text.run(None, {"tokens": tokens})[0]
        return embeddings

    def index(self, photos: Sequence[Photo], fault: Fault = Fault()) -> Gallery:
        """Finds and embeds every object of every photo."""
        embeddings, owners, detections = [], [], []
        for number, photo in enumerate(photos):
            upright = decode_upright(photo.jpeg, cap=self._manifest.preprocessing.original_cap)
            image = upright.pixels
            boxes, scores, classes = self.detect(image)
            boxes = self._map_back(boxes, image.size, fault)
            detections.append((boxes * np.float32(upright.width / image.width), scores, classes))
            crops = self._crops(image, boxes, fault)
            if len(crops):
                embeddings.append(self.embed_images(crops, fault))
                owners += [number] * len(crops)
        stacked = np.concatenate(embeddings) if embeddings else np.zeros((0, self._manifest.clip.dim), np.float32)
        return Gallery(stacked, np.array(owners, np.int64), tuple(detections))

    def _map_back(self, boxes: Float32, size: tuple[int, int], fault: Fault) -> Float32:
        canvas = self._manifest.detector.input_size
        plan = plan_letterbox(*size, canvas)
        if fault.no_offset:
            boxes = boxes + np.array([*plan.offset, *plan.offset], np.float32)
        boxes = map_boxes(boxes, plan, size)
        return boxes[:, [1, 0, 3, 2]] if fault.axes_swapped else boxes

    def _crops(self, image: Image.Image, boxes: Float32, fault: Fault) -> UInt8:
        scale = _SMALL_SIDE / min(image.size) if fault.small_source else 1.0
        if fault.small_source:
            size = (round(image.width * scale), round(image.height * scale))
            image = image.resize(size, Image.Resampling.BILINEAR)
        pixels = np.asarray(image)
        spec = self._manifest
        limit = np.array([image.width, image.height] * 2, np.float32)
        crops = [
            square_crop(
                pixels,
                np.clip(box * scale, 0, limit),
                spec.clip.image_size,
                margin=spec.preprocessing.crop_margin,
                pad_value=spec.detector.pad_value,
            )
            for box in boxes
        ]
        return np.stack(crops) if crops else np.zeros((0, spec.clip.image_size, spec.clip.image_size, 3), np.uint8)


def retrieval(
    chain: Chain,
    photos: Sequence[Photo],
    gallery: Gallery,
    sentence: Callable[[Kind], str],
    fault: Fault = Fault(),
) -> tuple[float, float, int]:
    """R@1, mAP and the number of queries: one query for each kind that is present, over photos by their best object."""
    kinds = sorted({item.kind for photo in photos for item in photo.objects})
    queries = chain.embed_texts([sentence(kind) for kind in kinds], fault)
    cosines = np.full((len(kinds), len(photos)), -2.0, np.float32)
    for row, similar in zip(cosines, queries @ gallery.embeddings.T, strict=True):
        np.maximum.at(row, gallery.photo, similar)
    first, precision = [], []
    for kind, row in zip(kinds, cosines, strict=True):
        relevant = np.array([any(item.kind == kind for item in photo.objects) for photo in photos])
        hits = relevant[np.argsort(-row, kind="stable")]
        first.append(hits[0])
        precision.append((np.cumsum(hits) / np.arange(1, len(hits) + 1))[hits].mean())
    return float(np.mean(first)), float(np.mean(precision)), len(kinds)


def detection_figures(
    photos: Sequence[Photo], gallery: Gallery, classes: Sequence[str], threshold: float = 0.0
) -> dict[str, float]:
    """Recall, precision, share of right classes and mean IoU of matches (IoU over 0.5, each truth once)."""
    right_class, overlaps, truths, found = 0, [], 0, 0
    for photo, (boxes, scores, class_ids) in zip(photos, gallery.detections, strict=True):
        truths += len(photo.objects)
        free = set(range(len(photo.objects)))
        for box, _, class_id in (row for row in zip(boxes, scores, class_ids, strict=True) if row[1] >= threshold):
            found += 1
            overlap, best = max(((_iou(box, photo.objects[item].box), item) for item in free), default=(0.0, -1))
            if overlap > 0.5:
                free.remove(best)
                overlaps.append(overlap)
                right_class += classes[class_id] == photo.objects[best].shape
    matched = len(overlaps)
    return {
        "recall": matched / max(1, truths),
        "precision": matched / max(1, found),
        "class": right_class / max(1, matched),
        "iou": float(np.mean(overlaps)) if overlaps else 0.0,
    }


def view_figures(chain: Chain, size: int, count: int, seed: int) -> dict[str, float]:
    """Whole views and captions of two objects: text to image, and whether a relation beats its opposite."""
    rng = np.random.default_rng(seed)
    images: list[UInt8] = []
    captions: list[str] = []
    opposites: list[str | None] = []
    while len(images) < count:
        image, seen = view_sample(rng, size)
        caption = caption_for(rng, seen)
        if caption.relation == 0 or caption.text in captions:
            continue
        images.append(image)
        captions.append(caption.text)
        opposites.append(_opposite(caption.text))
    gallery, queries = chain.embed_images(np.stack(images)), chain.embed_texts(captions)
    cosines = queries @ gallery.T
    own = np.diag(cosines)
    rank = (cosines > own[:, None]).sum(1)
    asked = np.array([other is not None for other in opposites])
    wrong = (chain.embed_texts([other or "" for other in opposites]) * gallery).sum(1)
    return {
        "recall_at_1": float((rank < 1).mean()),
        "recall_at_10": float((rank < 10).mean()),
        "relation": float((own > wrong)[asked].mean()),
    }


def _opposite(text: str) -> str | None:
    for left, right in (RELATIONS[1:3], RELATIONS[3:5], ("over", "under"), ("higher", "lower")):
        for said, other in ((left, right), (right, left)):
            if f" {said} " in text:
                return text.replace(f" {said} ", f" {other} ")
    return None


def _iou(first: Sequence[float] | Float32, second: Sequence[float]) -> float:
    width = min(first[2], second[2]) - max(first[0], second[0])
    height = min(first[3], second[3]) - max(first[1], second[1])
    if width <= 0 or height <= 0:
        return 0.0
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (first, second)]
    return float(width * height / (areas[0] + areas[1] - width * height))


def _photo_of(kind: Kind) -> str:
    return f"a photo of a {caption_of(kind)}"


def _in_frame(sentence: str, kind: Kind) -> str:
    return frame(sentence, caption_of(kind))


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", type=Path, default=None, help="folder with a manifest; default: the tiny models")
    parser.add_argument("--photos", type=int, default=80)
    parser.add_argument("--seed", type=int, default=QUALITY_SEED)
    parser.add_argument("--threads", type=int, default=1, help="onnxruntime threads")
    options = parser.parse_args()
    manifest = load_manifest(options.models)
    manifest.verify()
    chain = Chain(manifest, options.threads)
    photos = photos_of(options.photos, options.seed, QUALITY_SIZES)
    gallery = chain.index(photos)
    objects = sum(len(photo.objects) for photo in photos)
    print(f"[evaluation] models {manifest.digest[:12]}, {len(photos)} photos, {objects} objects, seed {options.seed}")
    found = detection_figures(photos, gallery, manifest.detector.classes)
    print(f"[evaluation] detector at {manifest.detector.score_threshold}: {_line(found)}")
    first, mean, count = retrieval(chain, photos, gallery, _photo_of)
    print(f"[evaluation] text to object to photo, {count} queries: R@1 {first:.3f} mAP {mean:.3f}")
    for sentence in UNSEEN_FRAMES:
        first, mean, _ = retrieval(chain, photos, gallery, partial(_in_frame, sentence))
        print(f"[evaluation] in unseen words {sentence!r}: R@1 {first:.3f} mAP {mean:.3f}")
    print(f"[evaluation] views: {_line(view_figures(chain, manifest.clip.image_size, 500, options.seed))}")
    for fault in FAULTS:
        broken = gallery if fault.eot_lost else chain.index(photos, fault)
        first, mean, _ = retrieval(chain, photos, broken, _photo_of, fault)
        caught = "caught" if first < BARS[0] or mean < BARS[1] else "NOT CAUGHT"
        print(f"[evaluation] fault: {fault.name:28s} R@1 {first:.3f} mAP {mean:.3f} {caught}", flush=True)


def _line(figures: dict[str, float]) -> str:
    return " ".join(f"{name} {value:.3f}" for name, value in figures.items())


if __name__ == "__main__":
    main()
