"""From detector rows of a whole batch to sorted detections in original pixels, and to the squares that are cut out."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from models.manifest import ModelManifest
from models.preprocessing import plan_letterbox
from triton_repo.steps import Detections

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]


def detections_of(
    manifest: ModelManifest,
    rows: tuple[Float32, ...],
    capped: npt.NDArray[np.int64],
    sizes: npt.NDArray[np.int32],
) -> list[Detections]:
    """`ImageSteps.detections` for n pictures at once.

    rows: counts [n], boxes [n, K, 4], scores [n, K], class ids [n, K]
    capped, sizes: [n, 2], width and height of what was letterboxed, and of the upright original before the cap
    """
    counts, boxes, scores, class_ids = rows
    centred = manifest.detector.letterbox == "center"
    plans = [plan_letterbox(int(w), int(h), manifest.detector.input_size, centred=centred) for w, h in capped]
    scale = np.array([[p.placed[0] / p.source[0], p.placed[1] / p.source[1]] * 2 for p in plans], np.float32)
    shift = np.array([[*p.offset, *p.offset] for p in plans], np.float32)
    back = np.tile(sizes / capped, 2).astype(np.float32)
    limit = np.tile(sizes, 2).astype(np.float32)
    mapped = (boxes - shift[:, None]) / scale[:, None] * back[:, None]
    mapped = np.clip(mapped, 0, limit[:, None])
    real = np.arange(boxes.shape[1]) < counts[:, None]
    visible = real & (mapped[..., 2] > mapped[..., 0]) & (mapped[..., 3] > mapped[..., 1])
    order = np.argsort(-np.where(visible, scores, -1), axis=1, kind="stable")
    numbers = visible.sum(1)
    return [
        Detections(mapped[row, best], scores[row, best], class_ids[row, best].astype(np.int32))
        for row, best in ((row, order[row, : numbers[row]]) for row in range(len(boxes)))
    ]


def squares_of(
    manifest: ModelManifest,
    found: Sequence[Detections],
    capped: npt.NDArray[np.int64],
    sizes: npt.NDArray[np.int32],
) -> Float32:
    """`models.preprocessing.square_region` for all boxes of n pictures at once.

    -> float32 [sum of detections, 5]: left, top, side in pixels of the capped original; 1 where the square ends at the
    picture's edge along x, along y, else 0 (there it is longer than the picture, which goes on as grey).
    """
    picture = np.repeat(np.arange(len(found)), [len(d.boxes) for d in found])
    boxes: Float64 = np.concatenate([d.boxes for d in found]).astype(np.float64)
    length = capped[picture].astype(np.float64)
    box = boxes * np.tile((capped / sizes).astype(np.float32)[picture], 2)
    extent = box[:, 2:] - box[:, :2]
    side = np.maximum(extent.max(1), 1.0) * (1 + 2 * manifest.preprocessing.crop_margin)
    slack = length - side[:, None]
    start = (box[:, :2] + box[:, 2:] - side[:, None]) / 2
    start = np.minimum(np.maximum(start, np.minimum(0.0, slack)), np.maximum(0.0, slack))
    ends = (start >= 0) & (start + side[:, None] <= length)
    squares: Float32 = np.concatenate([start, side[:, None], ends], axis=1).astype(np.float32)
    return squares
