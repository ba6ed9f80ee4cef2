"""From upright pixels to model inputs and back: letterbox, centre square, object crops, box mapping, normalisation.

One place for the geometry, in NumPy and Pillow. All sizes are pixels, all boxes are `xyxy` with edges
between pixels (0 is the left edge of the first pixel). Resizing is antialiased: bilinear for the detector, as the
manifest says for CLIP.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

from models.decoding import (
    DEFAULT_MAX_PIXELS,
    DEFAULT_ORIGINAL_CAP,
    ERROR_CODES,
    ImageError,
    UprightImage,
    capped_size,
    decode_upright,
)

__all__ = [
    "DEFAULT_MAX_PIXELS",
    "DEFAULT_ORIGINAL_CAP",
    "ERROR_CODES",
    "ImageError",
    "Letterbox",
    "UprightImage",
    "capped_size",
    "centre_crop",
    "clip_boxes",
    "decode_upright",
    "letterbox",
    "map_boxes",
    "normalise",
    "plan_letterbox",
    "square_crop",
    "square_region",
]

UInt8 = npt.NDArray[np.uint8]
Float32 = npt.NDArray[np.float32]

_BILINEAR = Image.Resampling.BILINEAR
#: Filter by the manifest's name, and how many (scaled) source pixels it reads on each side.
_FILTERS = {"bilinear": (_BILINEAR, 1), "bicubic": (Image.Resampling.BICUBIC, 2)}


@dataclass(frozen=True)
class Letterbox:
    """Where a picture of `source` (width, height) lies on a square canvas: `placed` at `offset`, both (x, y).

    Width and height are rounded to whole pixels, each for itself, so each axis has a scale of its own.
    """

    source: tuple[int, int]
    canvas: int
    placed: tuple[int, int]
    offset: tuple[int, int]

    def to_canvas(self, boxes: Float32) -> Float32:
        """boxes float32 [n, 4], source pixels -> float32 [n, 4], canvas pixels."""
        return (boxes * self._scale() + self._shift()).astype(np.float32, copy=False)

    def to_source(self, boxes: Float32) -> Float32:
        """boxes float32 [n, 4], canvas pixels -> float32 [n, 4], source pixels, not clipped."""
        return ((boxes - self._shift()) / self._scale()).astype(np.float32, copy=False)

    def _scale(self) -> Float32:
        x, y = self.placed[0] / self.source[0], self.placed[1] / self.source[1]
        return np.array([x, y, x, y], np.float32)

    def _shift(self) -> Float32:
        return np.array([*self.offset, *self.offset], np.float32)


def plan_letterbox(width: int, height: int, canvas: int, *, centred: bool = True) -> Letterbox:
    """Largest placement of a `width` x `height` picture on a square of `canvas` pixels, aspect ratio kept."""
    scale = canvas / max(width, height)
    placed = (max(1, int(width * scale + 0.5)), max(1, int(height * scale + 0.5)))
    offset = ((canvas - placed[0]) // 2, (canvas - placed[1]) // 2) if centred else (0, 0)
    return Letterbox((width, height), canvas, placed, offset)


def letterbox(image: Image.Image, canvas: int, pad_value: int, *, centred: bool = True) -> UInt8:
    """RGB image -> uint8 [canvas, canvas, 3], scaled as `plan_letterbox` says, the rest `pad_value`."""
    plan = plan_letterbox(*image.size, canvas, centred=centred)
    board = Image.new("RGB", (canvas, canvas), (pad_value,) * 3)
    board.paste(image.resize(plan.placed, _BILINEAR), plan.offset)
    return np.asarray(board)


def centre_crop(image: Image.Image, size: int, *, interpolation: str = "bilinear") -> UInt8:
    """RGB image -> uint8 [size, size, 3]: the centred square of the shorter side, resized once."""
    width, height = image.size
    side = min(width, height)
    left, top = (width - side) / 2, (height - side) / 2
    return _resized_once(image, size, _FILTERS[interpolation][0], (left, top, left + side, top + side))


def clip_boxes(boxes: Float32, width: float, height: float) -> Float32:
    """boxes float32 [n, 4] limited to a picture of `width` x `height`."""
    return np.clip(boxes, 0, np.array([width, height, width, height], np.float32))


def map_boxes(boxes: Float32, plan: Letterbox, size: tuple[int, int]) -> Float32:
    """boxes float32 [n, 4] on the letterbox canvas -> float32 [n, 4] in an upright original of `size` (w, h), clipped.

    `plan.source` is the capped picture; `size` the original that was capped.
    """
    width, height = size
    back_x, back_y = width / plan.source[0], height / plan.source[1]
    return clip_boxes(plan.to_source(boxes) * np.array([back_x, back_y] * 2, np.float32), width, height)


def square_region(
    box: Sequence[float] | Float32, width: int, height: int, margin: float
) -> tuple[float, float, float, float]:
    """The square (xyxy) that shows a box with context: `margin` of its longer side is added on each side.

    It is centred on the box and shifted inside the picture along each axis where it fits; along an axis where it is
    longer than the picture it sticks out evenly around the box, limited so that the whole picture stays inside.
    """
    x1, y1, x2, y2 = (float(v) for v in box)
    side = max(x2 - x1, y2 - y1, 1.0) * (1 + 2 * margin)
    left = _inside((x1 + x2 - side) / 2, side, width)
    top = _inside((y1 + y2 - side) / 2, side, height)
    return left, top, left + side, top + side


def _inside(start: float, side: float, length: int) -> float:
    low, high = min(0.0, length - side), max(0.0, length - side)
    return min(max(start, low), high)


def square_crop(
    pixels: UInt8,
    box: Sequence[float] | Float32,
    size: int,
    *,
    margin: float,
    pad_value: int,
    interpolation: str = "bilinear",
) -> UInt8:
    """Cut one object: pixels uint8 [h, w, 3], box xyxy in those pixels -> uint8 [size, size, 3].

    The aspect ratio is kept (`square_region`), what lies outside the picture is `pad_value`, and there is one
    antialiased resize straight from `pixels`.
    """
    height, width = pixels.shape[:2]
    left, top, right, bottom = square_region(box, width, height, margin)
    # Only the neighbourhood that the filter reads is handed to Pillow: converting a whole original costs milliseconds.
    resample, support = _FILTERS[interpolation]
    reach = math.ceil(support * max(1.0, (right - left) / size)) + 1
    x0, x1, pad_x = _window(left, right, width, reach)
    y0, y1, pad_y = _window(top, bottom, height, reach)
    patch = pixels[max(y0, 0) : min(y1, height), max(x0, 0) : min(x1, width)]
    if pad_x or pad_y:
        padded = np.full((y1 - y0, x1 - x0, 3), pad_value, np.uint8)
        padded[max(-y0, 0) : max(-y0, 0) + patch.shape[0], max(-x0, 0) : max(-x0, 0) + patch.shape[1]] = patch
        patch = padded
    region = (left - x0, top - y0, right - x0, bottom - y0)
    return _resized_once(Image.fromarray(np.ascontiguousarray(patch)), size, resample, region)


def _resized_once(
    image: Image.Image, size: int, resample: Image.Resampling, box: tuple[float, float, float, float]
) -> UInt8:
    """`box` of an RGB image -> uint8 [size, size, 3], computed in float and rounded once.

    Pillow rounds RGB after each of its two passes. That is one level at most, but enough to turn the vectors of some
    crops by a cosine below 0.999; a detector does not mind.
    """
    result = np.empty((size, size, 3), np.uint8)
    for channel, plane in enumerate(image.split()):
        levels = np.asarray(plane.convert("F").resize((size, size), resample, box=box))
        result[..., channel] = np.clip(levels + 0.5, 0, 255)
    return result


def _window(start: float, stop: float, length: int, reach: int) -> tuple[int, int, bool]:
    """Whole pixels [first, last) read for [start, stop) along one axis, and whether some lie outside the picture."""
    first, last = math.floor(start) - reach, math.ceil(stop) + reach
    if start >= 0 and stop <= length:  # it fits: the picture's own edge ends the filter, no padding bleeds in
        return max(first, 0), min(last, length), False
    return first, last, True


def normalise(
    images: UInt8,
    mean: Sequence[float] = (0.0, 0.0, 0.0),
    std: Sequence[float] = (1.0, 1.0, 1.0),
    value_range: tuple[float, float] = (0.0, 1.0),
    *,
    bgr: bool = False,
    out: Float32 | None = None,
) -> Float32:
    """images uint8 [n, h, w, 3] RGB -> float32 [n, 3, h, w]: scaled to `value_range`, then (x - mean) / std.

    `bgr` reverses the channels (mean and std are given in the model's order). `out` receives the result if given.
    """
    count, height, width, _ = images.shape
    result = np.empty((count, 3, height, width), np.float32) if out is None else out
    low, high = value_range
    for channel in range(3):
        factor = (high - low) / 255 / std[channel]
        offset = (low - mean[channel]) / std[channel]
        plane = result[:, channel]
        np.multiply(images[..., 2 - channel if bgr else channel], np.float32(factor), out=plane)
        if offset:
            plane += np.float32(offset)
    return result
