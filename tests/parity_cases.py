"""What every path is compared with the reference on: every kind of upload, boxes at every border, other manifests."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from PIL import Image

from models.manifest import ModelManifest, load_manifest
from tests.pictures import encoded, photo

#: xyxy as parts of width and height: inside, at each border, all of it, without area, over the border.
RELATIVE_BOXES = (
    (0.31, 0.42, 0.53, 0.71),
    (0.0, 0.0, 0.13, 0.11),
    (0.87, 0.0, 1.0, 0.2),
    (0.0, 0.9, 0.3, 1.0),
    (0.8, 0.7, 1.0, 1.0),
    (0.0, 0.0, 1.0, 1.0),
    (0.5, 0.5, 0.5, 0.5),
    (1.0, 1.0, 1.0, 1.0),
    (0.05, 0.49, 0.95, 0.51),
    (-0.1, 0.2, 0.4, 1.2),
)


def assert_close(found: np.ndarray, expected: np.ndarray, tolerance: tuple[float, float]) -> None:
    assert found.shape == expected.shape
    difference = np.abs(found.astype(float) - expected)
    assert difference.max(initial=0) <= tolerance[0]
    assert difference.mean() <= tolerance[1]


def manifest_with(
    *, cap: int = 1920, size: int = 128, interpolation: str = "bilinear", letterbox: str = "center", canvas: int = 640
) -> ModelManifest:
    tiny = load_manifest()
    return replace(
        tiny,
        clip=replace(tiny.clip, image_size=size, interpolation=interpolation),
        detector=replace(tiny.detector, letterbox=letterbox, input_size=canvas),
        preprocessing=replace(tiny.preprocessing, original_cap=cap),
    )


def small_pictures() -> dict[str, bytes]:
    """Every kind of upload, small."""
    astronaut = photo("astronaut.png").convert("RGB").crop((100, 0, 341, 161))
    alpha = astronaut.copy()
    alpha.putalpha(Image.linear_gradient("L").resize(astronaut.size))
    grey = astronaut.convert("L")
    sixteen = Image.fromarray(np.asarray(grey).astype(np.uint16) * 257 + 40)
    pictures = {
        "jpeg": encoded(astronaut, "JPEG", quality=90),
        "png": encoded(astronaut, "PNG"),
        "webp": encoded(astronaut, "WEBP"),
        "cmyk": encoded(astronaut.convert("CMYK"), "JPEG"),
        "grey": encoded(grey, "JPEG"),
        "bilevel": encoded(grey.convert("1"), "PNG"),
        "palette": encoded(astronaut.convert("P"), "PNG"),
        "palette-transparent": encoded(astronaut.convert("P"), "PNG", transparency=3),
        "colour-key": encoded(astronaut, "PNG", transparency=astronaut.getpixel((5, 5))),
        "alpha": encoded(alpha, "PNG"),
        "grey-alpha": encoded(alpha.convert("LA"), "PNG"),
        "16-bit": encoded(sixteen, "PNG"),
    }
    for width, height in ((1, 1), (2, 3), (1, 77), (640, 640), (641, 479), (3, 700), (700, 3)):
        pictures[f"{width}x{height}"] = encoded(astronaut.resize((width, height)), "JPEG", quality=90)
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        pictures[f"exif-{orientation}"] = encoded(astronaut, "JPEG", quality=90, exif=exif.tobytes())
    return pictures
