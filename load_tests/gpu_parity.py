"""The GPU's answers beside those of the CPU path with the same weights: vectors, boxes, refusals."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from load_tests.gpu_pictures import FULL_HD, LARGE, SMALL, make_pictures
from load_tests.parity_pictures import pictures
from models.decoding import ImageError
from models.manifest import ModelManifest
from triton_repo.contract import ImageInference
from triton_repo.inprocess import InProcessPipeline

Answer = ImageInference | str
Float32 = npt.NDArray[np.float32]

MUST_COSINE = 0.995
MUST_IOU, MUST_PIXELS = 0.95, 1.0
_PAIRED_IOU = 0.5  # of the same class: they mean the same object
#: A score this near the threshold may fall to either side of it; more is a difference.
_SCORE_TOLERANCE = 0.03
_SEED = 616
_THREADS = 4


@dataclass
class Agreement:
    """Over pictures. Edges: the largest distance of two edges of a pair; `canvas`: as the detector sees it."""

    global_cosines: list[float] = field(default_factory=list)
    object_cosines: list[float] = field(default_factory=list)
    ious: list[float] = field(default_factory=list)
    edges: list[float] = field(default_factory=list)
    canvas_edges: list[float] = field(default_factory=list)
    unpaired: int = 0  #: boxes that the other does not have, those about the threshold left out
    borderline: int = 0
    different: list[str] = field(default_factory=list)  #: pictures that one refuses and the other does not, or sizes

    def figures(self) -> dict[str, Any]:
        """Flat; lists of names only where something differs."""
        pairs = list(zip(self.ious, self.canvas_edges, strict=True))
        return {
            "pictures": len(self.global_cosines),
            "objects": len(self.ious),
            "global_cosine_min": _least(self.global_cosines),
            "global_cosine_mean": _mean(self.global_cosines),
            "object_cosine_min": _least(self.object_cosines),
            "object_cosine_mean": _mean(self.object_cosines),
            "box_iou_min": _least(self.ious),
            "box_iou_mean": _mean(self.ious),
            "box_edge_px_max": round(max(self.edges, default=0.0), 3),
            "box_edge_canvas_px_max": round(max(self.canvas_edges, default=0.0), 3),
            "boxes_within": round(
                sum(iou >= MUST_IOU and edge <= MUST_PIXELS for iou, edge in pairs) / max(len(pairs), 1), 4
            ),
            "unpaired": self.unpaired,
            "borderline": self.borderline,
            "different": self.different,
        }


def write_parity_files(folder: Path, count: int = 12) -> list[Path]:
    """Files of every kind and size into `folder`, in the order of their names: progressive and turned JPEGs, grey,
    PNG, WebP, tiny ones, 12 megapixels, and pictures of the benchmark."""
    folder.mkdir(parents=True, exist_ok=True)
    named = [(picture.name, picture.data) for picture in pictures(count)]
    for size, number in ((FULL_HD, 8), (SMALL, 4), (LARGE, 1)):
        made = make_pictures(number, size, _SEED)
        named += [(f"{size[0]}x{size[1]}-{position}", photo.jpeg) for position, photo in enumerate(made)]
    named.append(("broken", named[0][1][:2000]))
    paths = []
    for position, (name, data) in enumerate(named):
        paths.append(folder / f"{position:03d}-{name}")
        paths[-1].write_bytes(data)
    return paths


def cpu_answers(manifest: ModelManifest, files: Sequence[Path]) -> list[Answer]:
    """What the CPU path says; a refusal as its words."""
    pipeline = InProcessPipeline(manifest, threads=_THREADS)

    def answer(path: Path) -> Answer:
        try:
            return pipeline.infer(path.read_bytes())
        except ImageError as error:
            return str(error)

    with ThreadPoolExecutor(_THREADS) as threads:
        return list(threads.map(answer, files))


def compare(
    manifest: ModelManifest, names: Sequence[str], expected: Sequence[Answer], found: Sequence[Answer]
) -> Agreement:
    """One answer a file on each side, in the same order."""
    agreement = Agreement()
    for name, truth, answer in zip(names, expected, found, strict=True):
        if isinstance(truth, str) or isinstance(answer, str):
            if not (isinstance(truth, str) and isinstance(answer, str)):
                refused, words = ("CPU", truth) if isinstance(truth, str) else ("GPU", answer)
                agreement.different.append(f"{name}: only the {refused} refuses it ({str(words)[:120]})")
            elif truth.partition(":")[0] != answer.partition(":")[0]:
                agreement.different.append(f"{name}: {truth.partition(':')[0]} on CPU, {answer[:120]} on GPU")
            continue
        if (truth.width, truth.height) != (answer.width, answer.height):
            agreement.different.append(f"{name}: {truth.width}x{truth.height}, not {answer.width}x{answer.height}")
        _compare_objects(manifest, truth, answer, agreement)
        agreement.global_cosines.append(float(truth.embedding @ answer.embedding))
    return agreement


def _compare_objects(
    manifest: ModelManifest, truth: ImageInference, answer: ImageInference, agreement: Agreement
) -> None:
    shrunk = manifest.detector.input_size / max(truth.width, truth.height)
    paired: tuple[set[int], set[int]] = (set(), set())
    for ours, theirs, iou in _pairs(truth, answer):
        for taken, row in zip(paired, (ours, theirs), strict=True):
            taken.add(row)
        edge = float(np.abs(truth.boxes[ours] - answer.boxes[theirs]).max())
        agreement.ious.append(iou)
        agreement.edges.append(edge)
        agreement.canvas_edges.append(edge * min(shrunk, 1.0))
        agreement.object_cosines.append(float(truth.object_embeddings[ours] @ answer.object_embeddings[theirs]))
    for result, taken in zip((truth, answer), paired, strict=True):
        for row in set(range(len(result.boxes))) - taken:
            near = result.scores[row] < manifest.detector.score_threshold + _SCORE_TOLERANCE
            agreement.borderline += int(near)
            agreement.unpaired += int(not near)


def _pairs(truth: ImageInference, answer: ImageInference) -> Iterator[tuple[int, int, float]]:
    """Rows of both that overlap most, one to one, of the same class."""
    if not len(truth.boxes) or not len(answer.boxes):
        return
    overlaps = _iou(truth.boxes, answer.boxes) * (truth.class_ids[:, None] == answer.class_ids[None])
    while overlaps.max() >= _PAIRED_IOU:
        ours, theirs = (int(row) for row in np.unravel_index(overlaps.argmax(), overlaps.shape))
        yield ours, theirs, float(overlaps[ours, theirs])
        overlaps[ours], overlaps[:, theirs] = 0, 0


def _iou(one: Float32, other: Float32) -> Float32:
    """[n, 4] and [m, 4] xyxy -> [n, m]."""
    low, high = np.maximum(one[:, None, :2], other[None, :, :2]), np.minimum(one[:, None, 2:], other[None, :, 2:])
    shared = np.clip(high - low, 0, None).prod(-1)
    areas = (one[:, 2:] - one[:, :2]).prod(-1)[:, None] + (other[:, 2:] - other[:, :2]).prod(-1)[None]
    overlap: Float32 = shared / np.maximum(areas - shared, 1e-9)
    return overlap


def _least(values: Sequence[float]) -> float:
    return round(min(values, default=float("nan")), 5)


def _mean(values: Sequence[float]) -> float:
    return round(float(np.mean(values)) if values else float("nan"), 5)
