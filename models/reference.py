"""The preprocessing contract of docs/preprocessing.md in plain NumPy: the truth that every path is compared with.

Written from the definitions, in float64, each step rounded once at its end, and without the code it judges. Pillow only
opens the compressed bytes at full size. Sizes and boxes are pixels with edges between pixels: x 0 is the left edge of
the first one. Pictures are uint8 [height, width, 3], RGB.
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from models.manifest import ModelManifest

UInt8 = npt.NDArray[np.uint8]
Float64 = npt.NDArray[np.float64]
Boxes = npt.NDArray[np.floating[Any]]

_EXIF_ORIENTATION = 0x0112
_WHITE = 255.0


@dataclass(frozen=True)
class ReferenceViews:
    """What one picture must become.

    full: uint8 [H, W, 3], upright, every pixel      original: uint8 [h, w, 3], capped
    letterboxed: uint8 [C, C, 3]      centre: uint8 [S, S, 3]      size: (W, H)
    """

    full: UInt8
    original: UInt8
    letterboxed: UInt8
    centre: UInt8

    @property
    def size(self) -> tuple[int, int]:
        return self.full.shape[1], self.full.shape[0]


def views(full: UInt8, manifest: ModelManifest) -> ReferenceViews:
    """All views of a picture that `decode` gave."""
    clip, detector = manifest.clip, manifest.detector
    original = cap(full, manifest.preprocessing.original_cap)
    return ReferenceViews(
        full=full,
        original=original,
        letterboxed=letterbox(
            original, detector.input_size, detector.pad_value, centred=detector.letterbox == "center"
        ),
        centre=centre_crop(original, clip.image_size, clip.interpolation),
    )


def object_crops(seen: ReferenceViews, boxes: Boxes, manifest: ModelManifest) -> UInt8:
    """boxes [n, 4], xyxy in pixels of the full picture -> uint8 [n, S, S, 3], cut from the capped one."""
    height, width = seen.original.shape[:2]
    shrink = np.array([width / seen.size[0], height / seen.size[1]] * 2)
    clip = manifest.clip
    crops = [
        square_crop(
            seen.original,
            box,
            clip.image_size,
            margin=manifest.preprocessing.crop_margin,
            pad_value=manifest.detector.pad_value,
            interpolation=clip.interpolation,
        )
        for box in np.asarray(boxes, np.float64) * shrink
    ]
    return np.stack(crops) if crops else np.empty((0, clip.image_size, clip.image_size, 3), np.uint8)


def decode(data: bytes) -> UInt8:
    """First frame of an image file, every pixel of it, turned as its EXIF orientation says.

    Raises what Pillow raises for a damaged file.
    """
    image = Image.open(io.BytesIO(data))
    image.load()
    return upright(_to_rgb(image), image.getexif().get(_EXIF_ORIENTATION, 1))


def upright(pixels: UInt8, orientation: int) -> UInt8:
    """EXIF orientation 1-8 as index operations; row 0 and column 0 of the result are the visual top and left."""
    across = pixels.transpose(1, 0, 2)
    turned = {
        2: pixels[:, ::-1],
        3: pixels[::-1, ::-1],
        4: pixels[::-1],
        5: across,
        6: across[:, ::-1],
        7: across[::-1, ::-1],
        8: across[::-1],
    }
    return np.ascontiguousarray(turned.get(orientation, pixels))


def cap(pixels: UInt8, longest: int) -> UInt8:
    """The picture with its longer side limited to `longest` pixels (0: no limit); never enlarged."""
    height, width = pixels.shape[:2]
    if longest == 0 or max(width, height) <= longest:
        return pixels
    scale = longest / max(width, height)
    return resize(pixels, (max(1, _nearest(width * scale)), max(1, _nearest(height * scale))))


def place(width: int, height: int, canvas: int, *, centred: bool) -> tuple[int, int, int, int]:
    """Where a picture lies on a square canvas: left, top, placed width and height, whole pixels."""
    scale = canvas / max(width, height)
    placed_width, placed_height = max(1, _nearest(width * scale)), max(1, _nearest(height * scale))
    if not centred:
        return 0, 0, placed_width, placed_height
    return (canvas - placed_width) // 2, (canvas - placed_height) // 2, placed_width, placed_height


def letterbox(pixels: UInt8, canvas: int, pad_value: int, *, centred: bool) -> UInt8:
    """The whole picture on a square of `canvas` pixels, bilinear; the rest is `pad_value`."""
    left, top, width, height = place(pixels.shape[1], pixels.shape[0], canvas, centred=centred)
    board = np.full((canvas, canvas, 3), pad_value, np.uint8)
    board[top : top + height, left : left + width] = resize(pixels, (width, height))
    return board


def to_original(
    boxes: Boxes, capped: tuple[int, int], original: tuple[int, int], canvas: int, *, centred: bool
) -> Float64:
    """boxes [n, 4] on the canvas -> [n, 4] in the original of size (w, h), clipped; `capped`: what was letterboxed."""
    left, top, width, height = place(*capped, canvas, centred=centred)
    share: Float64 = (boxes - np.array([left, top] * 2, np.float64)) / np.array([width, height] * 2)
    return np.asarray(share.clip(0, 1) * np.array([*original, *original]))


def to_canvas(
    boxes: Boxes, original: tuple[int, int], capped: tuple[int, int], canvas: int, *, centred: bool
) -> Float64:
    """boxes [n, 4] in the original of size (w, h) -> [n, 4] on the canvas that its capped copy lies on."""
    left, top, width, height = place(*capped, canvas, centred=centred)
    share: Float64 = boxes / np.array([*original, *original], np.float64)
    return np.asarray(share * np.array([width, height] * 2) + np.array([left, top] * 2))


def centre_crop(pixels: UInt8, size: int, interpolation: str) -> UInt8:
    """The centred square of the shorter side as uint8 [size, size, 3]; its edges may lie on half pixels."""
    height, width = pixels.shape[:2]
    side = min(width, height)
    left, top = (width - side) / 2, (height - side) / 2
    return resize(pixels, (size, size), (left, top, left + side, top + side), interpolation)


def square_crop(
    pixels: UInt8, box: Sequence[float] | Boxes, size: int, *, margin: float, pad_value: int, interpolation: str
) -> UInt8:
    """One object (box xyxy in `pixels`) with `margin` of its longer side on each side, as uint8 [size, size, 3].

    Along an axis where the square is no longer than the picture it is shifted inside, and the filter ends at the
    picture's edge; along an axis where it is longer, the picture goes on as `pad_value` without end.
    """
    x1, y1, x2, y2 = (float(v) for v in box)
    side = max(x2 - x1, y2 - y1, 1.0) * (1 + 2 * margin)
    height, width = pixels.shape[:2]
    reach = math.ceil(_SUPPORT[interpolation] * max(1.0, side / size)) + 1
    starts, borders = [], []
    for middle, length in (((x1 + x2) / 2, width), ((y1 + y2) / 2, height)):
        slack = length - side
        start = min(max(middle - side / 2, min(0.0, slack)), max(0.0, slack))
        border = 0 if slack >= 0 else math.ceil(-slack) + reach
        starts.append(start + border)
        borders.append((border, border))
    wide = np.pad(pixels, (borders[1], borders[0], (0, 0)), constant_values=pad_value)
    left, top = starts
    return resize(wide, (size, size), (left, top, left + side, top + side), interpolation)


def normalise(
    images: UInt8,
    mean: Sequence[float] = (0.0, 0.0, 0.0),
    std: Sequence[float] = (1.0, 1.0, 1.0),
    value_range: tuple[float, float] = (0.0, 1.0),
    *,
    bgr: bool = False,
) -> Float64:
    """images uint8 [n, h, w, 3] RGB -> float64 [n, 3, h, w]; mean and std are in the model's order of channels."""
    low, high = value_range
    planes = images[..., ::-1] if bgr else images
    scaled = planes.astype(np.float64) / 255 * (high - low) + low
    return np.asarray(((scaled - np.asarray(mean)) / np.asarray(std)).transpose(0, 3, 1, 2))


def resize(
    pixels: UInt8,
    size: tuple[int, int],
    box: tuple[float, float, float, float] | None = None,
    interpolation: str = "bilinear",
) -> UInt8:
    """Antialiased resize of `box` (xyxy, fractions of pixels allowed, default all) to `size` (width, height).

    Each result pixel is the weighted mean of the source pixels around its centre: the weights are the filter, stretched
    by the scale where the picture shrinks; source pixels outside of `box` count, pixels that do not exist do not.
    """
    height, width = pixels.shape[:2]
    left, top, right, bottom = box or (0.0, 0.0, float(width), float(height))
    values: Any = pixels
    for axis, length, start, stop, count in ((0, height, top, bottom, size[1]), (1, width, left, right, size[0])):
        index, weight = _taps(length, start, stop, count, interpolation)
        spread = weight.T[:, :, None, None] if axis == 0 else weight.T[:, None, :, None]
        total = np.zeros((count, *values.shape[1:]) if axis == 0 else (values.shape[0], count, 3))
        for tap in range(weight.shape[1]):
            total += spread[tap] * values.take(index[:, tap], axis)
        values = total
    return _rounded(values)


def _taps(
    length: int, start: float, stop: float, count: int, interpolation: str
) -> tuple[npt.NDArray[np.intp], Float64]:
    """Source pixels of each of `count` result pixels along one axis and their weights, both [count, taps]."""
    scale = (stop - start) / count
    stretch = max(scale, 1.0)
    reach = _SUPPORT[interpolation] * stretch
    centre = start + (np.arange(count) + 0.5) * scale
    index = np.floor(centre - reach).astype(np.intp)[:, None] + np.arange(math.ceil(2 * reach) + 1)
    weight = _KERNEL[interpolation](np.abs(index + 0.5 - centre[:, None]) / stretch)
    weight[(index < 0) | (index >= length)] = 0
    return index.clip(0, length - 1), weight / weight.sum(1, keepdims=True)


def _triangle(distance: Float64) -> Float64:
    return np.maximum(0.0, 1 - distance)


def _cubic(distance: Float64) -> Float64:
    """Keys' cubic convolution with a = -0.5, also called Catmull-Rom."""
    near = (1.5 * distance - 2.5) * distance**2 + 1
    far = ((-0.5 * distance + 2.5) * distance - 4) * distance + 2
    return np.where(distance < 1, near, np.where(distance < 2, far, 0.0))


_KERNEL = {"bilinear": _triangle, "bicubic": _cubic}
_SUPPORT = {"bilinear": 1, "bicubic": 2}


def _nearest(value: float) -> int:
    """The nearest whole number, halves up."""
    return math.floor(value + 0.5)


def _to_rgb(image: Image.Image) -> UInt8:
    """What each colour mode means. Raises ValueError for a mode without a definition here."""
    samples: Any = np.asarray(image)
    key = image.info.get("transparency")
    if image.mode == "RGB" and key is None:
        return np.asarray(samples)
    if image.mode == "P":
        palette = np.asarray(image.getpalette("RGB"), np.float64).reshape(-1, 3)
        opacity = np.full(256, 255.0)
        if isinstance(key, int):
            opacity[key] = 0
        elif key:
            opacity[: len(key)] = list(key)
        return _over_white(palette[samples], opacity[samples])
    if image.mode == "CMYK":
        ink = samples.astype(np.float64)
        return _rounded((255 - ink[..., :3]) * (255 - ink[..., 3:]) / 255)
    if image.mode == "1":
        samples = samples * 255.0
    elif image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG"):
        opacity = np.where(samples == key, 0.0, 255.0)
        return _over_white(np.repeat(samples[..., None] * (255 / 65535), 3, axis=2), opacity)
    if samples.ndim == 2:
        samples = samples[..., None]
    colours = samples.shape[2]
    if image.mode not in {"1", "L", "LA", "RGB", "RGBA"}:
        raise ValueError(f"the reference does not say what a picture of mode {image.mode} looks like")
    opacity = np.full(samples.shape[:2], 255.0)
    if image.mode in {"LA", "RGBA"}:
        colours -= 1
        opacity = samples[..., colours].astype(np.float64)
    elif key is not None:
        opacity = np.where((samples == np.asarray(key)).all(-1), 0.0, 255.0)
    colour = samples[..., :colours].astype(np.float64)
    return _over_white(np.repeat(colour, 3 // colours, axis=2), opacity)


def _over_white(colour: Float64, opacity: Float64) -> UInt8:
    cover = opacity[..., None] / 255
    return _rounded(colour * cover + _WHITE * (1 - cover))


def _rounded(values: Float64) -> UInt8:
    """To whole levels, halves up; what the cubic filter overshoots is clipped."""
    levels: UInt8 = np.clip(np.floor(values + 0.5), 0, 255).astype(np.uint8)
    return levels
