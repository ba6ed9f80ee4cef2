"""The reference of non-maximum suppression in plain NumPy: what every graph and engine is compared with."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from models.detectors.end2end import Suppression

Float32 = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Found:
    """Detections of one picture, best first.

    boxes: float32 [n, 4], xyxy     scores: float32 [n]     classes: int32 [n]
    """

    boxes: Float32
    scores: Float32
    classes: npt.NDArray[np.int32]


def suppress(boxes: Float32, scores: Float32, settings: Suppression) -> Found:
    """Greedy suppression within each class of one picture: boxes float32 [A, 4] xyxy, scores float32 [A, classes].

    Each anchor stands for its best class (the lower id of equal ones). The best `candidates` enter, by score, equal
    ones by lower index; those that score more than the threshold are taken in this order unless a better one of their
    class overlaps them by more than the IoU threshold.
    """
    best = scores.max(1)
    order = np.argsort(-best, kind="stable")[: settings.candidates]
    order = order[best[order] > settings.score_threshold]
    classes = scores.argmax(1)
    kept: list[int] = []
    for anchor in order:
        rivals = [other for other in kept if classes[other] == classes[anchor]]
        if (overlap(boxes[anchor], boxes[rivals]) <= settings.iou_threshold).all():
            kept.append(int(anchor))
            if len(kept) == settings.max_detections:
                break
    return Found(boxes[kept], best[kept], classes[kept].astype(np.int32))


def overlap(box: Float32, others: Float32) -> Float32:
    """Intersection over union of box [4] with others [n, 4] -> [n]; 0 where one of the two has no area."""
    corner, opposite = np.maximum(box[:2], others[:, :2]), np.minimum(box[2:], others[:, 2:])
    shared = np.prod(np.maximum(opposite - corner, 0), axis=1)
    areas = np.prod(others[:, 2:] - others[:, :2], axis=1)
    union = np.prod(box[2:] - box[:2]) + areas - shared
    iou: Float32 = np.divide(shared, union, out=np.zeros_like(shared), where=shared > 0)
    return iou
