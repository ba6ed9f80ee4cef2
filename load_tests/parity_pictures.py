"""The pictures that `bench parity` shows to every path: generated photos, each kind of file, photographs if any."""

from __future__ import annotations

import importlib.util
import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from models.reference import upright
from models.scenes import generate_scene

#: Width and height of generated photos: odd, tall, wide, small, at and far above the cap of 1920.
SIZES = (
    (1600, 1200),
    (1201, 1599),
    (2400, 1350),
    (641, 479),
    (333, 777),
    (1920, 1081),
    (1350, 2401),
    (4000, 3000),
    (250, 190),
    (1080, 1920),
    (3841, 1000),
    (900, 900),
)
_SEED = 20_250
_ORIENTATION = 0x0112
#: How a picture is stored so that the orientation turns it upright: turns to the left and right undo each other.
_INVERSE = {6: 8, 8: 6}
#: xyxy, parts of width and height: at three borders, and all of the picture.
_BORDER_BOXES = ((0.0, 0.3, 0.3, 0.7), (0.6, 0.0, 1.0, 0.35), (0.55, 0.6, 1.0, 1.0), (0.0, 0.0, 1.0, 1.0))
#: Photographs with fine detail that scikit-image carries, all of them photographs of people's world.
_DETAILED = ("astronaut.png", "coffee.png", "chelsea.png", "rocket.jpg", "motorcycle_left.png", "grass.png")
_TILE = 400  # pixels of each photograph in the mosaic


@dataclass(frozen=True)
class Picture:
    """One file. `boxes`: float32 [n, 4], xyxy in pixels of the upright original."""

    name: str
    data: bytes
    boxes: npt.NDArray[np.float32]


def pictures(count: int) -> list[Picture]:
    """`count` generated photos, the EXIF orientations in turns; each kind of file, photographs if there are any."""
    rng = np.random.default_rng(_SEED)
    made = []
    for number in range(count):
        width, height = SIZES[number % len(SIZES)]
        scene = generate_scene(rng, width, height, 4)
        orientation = number % 8 + 1
        name = f"scene-{width}x{height}-exif-{orientation}"
        data = _turned(scene.image, orientation, subsampling=number % 3)
        made.append(Picture(name, data, _boxes(width, height, [thing.box for thing in scene.objects])))
    scene = generate_scene(rng, 517, 389, 4)
    boxes = _boxes(517, 389, [thing.box for thing in scene.objects])
    kinds = _kinds(Image.fromarray(scene.image))
    return [*made, *(Picture(kind, data, boxes) for kind, data in kinds.items()), *_tiny(), *_photographs()]


def _kinds(image: Image.Image) -> dict[str, bytes]:
    grey = image.convert("L")
    alpha = image.copy()
    alpha.putalpha(Image.linear_gradient("L").resize(image.size))
    return {
        "png": _encoded(image, "PNG"),
        "webp": _encoded(image, "WEBP"),
        "progressive": _encoded(image, "JPEG", progressive=True),
        "rgb-jpeg": _encoded(image, "JPEG", keep_rgb=True),
        "cmyk-jpeg": _encoded(image.convert("CMYK"), "JPEG"),
        "grey-jpeg": _encoded(grey, "JPEG"),
        "alpha": _encoded(alpha, "PNG"),
        "16-bit": _encoded(Image.fromarray(np.asarray(grey).astype(np.uint16) * 257), "PNG"),
    }


def _tiny() -> list[Picture]:
    rng = np.random.default_rng(_SEED)
    made = []
    for width, height in ((1, 1), (2, 3), (1, 77), (900, 3)):
        # Smooth, because a tower with random weights answers to noise with chaos.
        colours = Image.fromarray(rng.integers(60, 200, (2, 2, 3), np.uint8)).resize((width, height))
        made.append(Picture(f"{width}x{height}", _encoded(colours, "JPEG"), _boxes(width, height, [])))
    return made


def _photographs() -> list[Picture]:
    """What scikit-image carries, and a mosaic of it above twice the cap, where shortcuts in scaling show most."""
    found = importlib.util.find_spec("skimage")
    if found is None or found.origin is None:
        return []
    folder = Path(found.origin).parent / "data"
    photographs = [Image.open(folder / name).convert("RGB") for name in _DETAILED]
    mosaic = Image.new("RGB", (4000, 3000))
    for number, (top, left) in enumerate((y, x) for y in range(0, 3000, _TILE) for x in range(0, 4000, _TILE)):
        mosaic.paste(photographs[number % len(photographs)], (left, top))
    named = [*zip(_DETAILED, photographs, strict=True), ("mosaic", mosaic)]
    centre = (0.35, 0.3, 0.62, 0.6)
    return [
        Picture(
            name,
            _encoded(image, "JPEG"),
            _boxes(*image.size, [tuple(part * side for part, side in zip(centre, image.size * 2, strict=True))]),
        )
        for name, image in named
    ]


def _turned(image: npt.NDArray[np.uint8], orientation: int, subsampling: int) -> bytes:
    exif = Image.Exif()
    exif[_ORIENTATION] = orientation
    stored = Image.fromarray(upright(image, _INVERSE.get(orientation, orientation)))
    return _encoded(stored, "JPEG", exif=exif.tobytes(), subsampling=subsampling)


def _boxes(width: int, height: int, inside: list[tuple[float, ...]]) -> npt.NDArray[np.float32]:
    at_borders = np.array(_BORDER_BOXES) * ([width, height] * 2)
    return np.concatenate([np.array(inside, np.float32).reshape(-1, 4), at_borders.astype(np.float32)])


def _encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    if kind == "JPEG":
        options = {"quality": 90} | options
    image.save(buffer, kind, **options)
    return buffer.getvalue()
