"""What happens to one picture between the models: the same steps run inside Triton and in one process."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from models.manifest import ModelManifest
from models.preprocessing import (
    DEFAULT_MAX_PIXELS,
    UprightImage,
    centre_crop,
    decode_upright,
    letterbox,
    map_boxes,
    normalise,
    plan_letterbox,
    square_crop,
)

UInt8 = npt.NDArray[np.uint8]
Int32 = npt.NDArray[np.int32]
Float32 = npt.NDArray[np.float32]


def _unchanged(tokens: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    return tokens


@dataclass(frozen=True)
class StepFunctions:
    """The functions a picture or a query passes through; a quality test swaps one to show that a mistake is seen."""

    decode: Callable[..., UprightImage] = decode_upright
    letterbox: Callable[..., UInt8] = letterbox
    centre_crop: Callable[..., UInt8] = centre_crop
    square_crop: Callable[..., UInt8] = square_crop
    map_boxes: Callable[..., Float32] = map_boxes
    normalise_detector: Callable[..., Float32] = normalise
    normalise_clip: Callable[..., Float32] = normalise
    tokens: Callable[[npt.NDArray[np.int64]], npt.NDArray[np.int64]] = _unchanged


@dataclass(frozen=True)
class Prepared:
    """One decoded picture, ready for the models.

    letterboxed: uint8 [640, 640, 3]      centre: uint8 [S, S, 3], the global view
    original: uint8 [h, w, 3], capped     size: int32 [2], width and height of the upright original before the cap
    """

    letterboxed: UInt8
    centre: UInt8
    original: UInt8
    size: Int32


@dataclass(frozen=True)
class Detections:
    """boxes float32 [n, 4] xyxy in pixels of the upright original, scores float32 [n], class_ids int32 [n]."""

    boxes: Float32
    scores: Float32
    class_ids: Int32


class ImageSteps:
    """The steps of one manifest. Stateless, safe to share between threads."""

    def __init__(
        self,
        manifest: ModelManifest,
        functions: StepFunctions | None = None,
        max_pixels: int = DEFAULT_MAX_PIXELS,
    ) -> None:
        self.clip = manifest.clip
        self.detector = manifest.detector
        self.preprocessing = manifest.preprocessing
        self.functions = functions or StepFunctions()
        self.max_pixels = max_pixels
        self._centred = manifest.detector.letterbox == "center"

    def prepare(self, data: bytes) -> Prepared:
        """Encoded file bytes -> everything the models need. Raises `ImageError`."""
        use, detector = self.functions, self.detector
        upright = use.decode(data, max_pixels=self.max_pixels, cap=self.preprocessing.original_cap)
        return Prepared(
            letterboxed=use.letterbox(upright.pixels, detector.input_size, detector.pad_value, centred=self._centred),
            centre=use.centre_crop(upright.pixels, self.clip.image_size, interpolation=self.clip.interpolation),
            original=np.asarray(upright.pixels),
            size=np.array([upright.width, upright.height], np.int32),
        )

    def detector_input(self, letterboxed: UInt8, out: Float32 | None = None) -> Float32:
        """uint8 [n, 640, 640, 3] -> float32 [n, 3, 640, 640]."""
        return self.functions.normalise_detector(
            letterboxed,
            value_range=self.detector.value_range,
            bgr=self.detector.colour_order == "bgr",
            out=out,
        )

    def detections(
        self, count: int, boxes: Float32, scores: Float32, class_ids: Int32, prepared: UInt8, size: Int32
    ) -> Detections:
        """Raw detector rows of one picture (`count` of them valid, boxes in letterbox pixels) -> sorted `Detections`.

        prepared: the capped original uint8 [h, w, 3]; size: int32 [2] of the upright original.
        A box that lies on the letterbox bars alone has no pixels and is dropped.
        """
        height, width = prepared.shape[:2]
        plan = plan_letterbox(width, height, self.detector.input_size, centred=self._centred)
        mapped = self.functions.map_boxes(boxes[:count], plan, (int(size[0]), int(size[1])))
        visible = (mapped[:, 2] > mapped[:, 0]) & (mapped[:, 3] > mapped[:, 1])
        order = np.argsort(-scores[:count], kind="stable")
        order = order[visible[order]]
        return Detections(mapped[order], scores[order], class_ids[order].astype(np.int32, copy=False))

    def crops(self, original: UInt8, size: Int32, boxes: Float32, out: UInt8) -> None:
        """Cut boxes float32 [n, 4] (pixels of the upright original) from the capped one into out uint8 [n, S, S, 3]."""
        height, width = original.shape[:2]
        shrink = np.array([width / size[0], height / size[1]] * 2, np.float32)
        for row, box in zip(out, boxes * shrink, strict=True):
            row[...] = self.functions.square_crop(
                original,
                box,
                self.clip.image_size,
                margin=self.preprocessing.crop_margin,
                pad_value=self.detector.pad_value,
                interpolation=self.clip.interpolation,
            )

    def views(
        self, centres: Sequence[UInt8], originals: Sequence[UInt8], sizes: Sequence[Int32], found: Sequence[Detections]
    ) -> UInt8:
        """All crops of a batch in one array: of each picture its global view, then its objects in order.

        -> uint8 [sum of (1 + n), S, S, 3]
        """
        side = self.clip.image_size
        stack = np.empty((len(centres) + sum(len(d.boxes) for d in found), side, side, 3), np.uint8)
        row = 0
        for centre, original, size, detections in zip(centres, originals, sizes, found, strict=True):
            stack[row] = centre
            end = row + 1 + len(detections.boxes)
            self.crops(original, size, detections.boxes, stack[row + 1 : end])
            row = end
        return stack

    def clip_input(self, crops: UInt8, out: Float32 | None = None) -> Float32:
        """uint8 [n, S, S, 3] -> float32 [n, 3, S, S]."""
        return self.functions.normalise_clip(crops, self.clip.mean, self.clip.std, out=out)
