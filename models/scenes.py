"""Generated scenes with known truth: coloured, patterned shapes on quiet backgrounds, in NumPy and Pillow."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

SHAPES = ("circle", "square", "triangle", "star", "cross", "ring")
PATTERNS = ("plain", "striped", "dotted")
#: RGB. Every channel keeps _TONE from 0 and 255, so that a pattern can go up and down by as much
#: and its mean stays the plain colour: otherwise a blurred pattern would be told by its tint.
COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (210, 48, 48),
    "green": (45, 165, 65),
    "blue": (48, 85, 210),
    "yellow": (210, 195, 50),
    "purple": (140, 60, 185),
    "orange": (210, 125, 48),
    "white": (210, 210, 210),
    "black": (45, 45, 45),
}

#: Pattern period as a part of the object's radius. About 4 pixels in a 128 px crop from full resolution, but 1 to 2.5
#: pixels, mostly below what can be resolved, once the whole image is scaled to a short side of 256 px.
PATTERN_PERIOD = 0.08
_TONE = 45.0  # grey levels between a stripe and the mean
_DOT_RADIUS = 0.33  # of the period
_BACKGROUND = (75.0, 180.0)  # grey levels; outside of it plain white and black objects would vanish
_GRAIN_TILE = 128  # pixels; grain is repeated, which is much faster than drawing it for every pixel
_REACH = 1.22  # of the radius: the farthest that any shape reaches from its centre
_SPACING = 1.25  # of the sum of two radii: shapes never touch, but a neighbour can show at the edge of a crop
_PLACEMENT_TRIES = 60

FloatArray = npt.NDArray[np.float32]


class Kind(NamedTuple):
    """What an object is."""

    shape: str
    colour: str
    pattern: str


#: All there are: 144.
KINDS = tuple(Kind(shape, colour, pattern) for shape in SHAPES for colour in COLOURS for pattern in PATTERNS)


@dataclass(frozen=True)
class SceneObject:
    """One drawn object. `box`: xyxy, pixels of the scene, tight around the drawn pixels."""

    shape: str
    colour: str
    pattern: str
    box: tuple[float, float, float, float]

    @property
    def kind(self) -> Kind:
        return Kind(self.shape, self.colour, self.pattern)

    @property
    def caption(self) -> str:
        """For example "striped red circle". It always says the pattern, "plain" too: without one any is meant."""
        return caption_of(self.kind)


@dataclass(frozen=True)
class Scene:
    """`image`: uint8 [height, width, 3], RGB. `objects`: in the order of drawing; none overlaps another."""

    image: npt.NDArray[np.uint8]
    objects: tuple[SceneObject, ...]


def caption_of(kind: Kind) -> str:
    """The words for a kind of object, pattern first."""
    return f"{kind.pattern} {kind.colour} {kind.shape}"


def random_kind(rng: np.random.Generator) -> Kind:
    """Any of the 144 kinds, evenly."""
    colours = tuple(COLOURS)
    return Kind(
        SHAPES[rng.integers(len(SHAPES))],
        colours[rng.integers(len(colours))],
        PATTERNS[rng.integers(len(PATTERNS))],
    )


def generate_scene(
    rng: np.random.Generator,
    width: int,
    height: int,
    n_objects: int,
    *,
    radius: tuple[float, float] = (0.04, 0.12),
    kinds: Sequence[Kind] | None = None,
) -> Scene:
    """Draws up to `n_objects` objects, wholly inside the image and apart from each other.

    `radius`: smallest and largest, as a part of the shorter side. `kinds`: what to draw, in order; None = random.
    There are fewer objects where no free place was found. The same `rng` state gives the same scene.
    """
    canvas = draw_background(rng, width, height)
    short = min(width, height)
    placed: list[tuple[float, float, float]] = []
    objects: list[SceneObject] = []
    for index in range(n_objects):
        kind = kinds[index] if kinds is not None else random_kind(rng)
        place = _free_place(rng, width, height, (radius[0] * short, radius[1] * short), placed)
        if place is None:
            continue
        placed.append(place)
        objects.append(draw_object(canvas, rng, kind, centre=place[:2], radius=place[2]))
    return Scene(canvas, tuple(objects))


def draw_object(
    canvas: npt.NDArray[np.uint8],
    rng: np.random.Generator,
    kind: Kind,
    *,
    centre: tuple[float, float],
    radius: float,
) -> SceneObject:
    """Draws one object into `canvas` (uint8 [h, w, 3], changed in place); what lies outside is cut off.

    `centre` (x, y) and `radius` in pixels. Raises ValueError where nothing of it lies inside.
    """
    height, width = canvas.shape[:2]
    angle = float(rng.uniform(-0.35, 0.35))
    colour = np.asarray(COLOURS[kind.colour], np.float32) + rng.normal(0, 8, 3).astype(np.float32)
    phase = rng.uniform(0, 1, 2)
    left, top = max(0, int(centre[0] - radius * _REACH) - 1), max(0, int(centre[1] - radius * _REACH) - 1)
    right = min(width, int(centre[0] + radius * _REACH) + 2)
    bottom = min(height, int(centre[1] + radius * _REACH) + 2)
    if right <= left or bottom <= top:
        raise ValueError(f"an object at {centre} with radius {radius:.0f} lies outside of {width}x{height} pixels")
    local = (centre[0] - left, centre[1] - top)
    mask = _shape_mask(kind.shape, right - left, bottom - top, local, radius, angle)
    columns, rows = np.flatnonzero((mask >= 0.5).any(0)), np.flatnonzero((mask >= 0.5).any(1))
    if not len(columns):
        raise ValueError(f"no pixel of an object at {centre} with radius {radius:.1f} would be drawn")
    tone = _pattern_tone(kind.pattern, right - left, bottom - top, local, radius, angle, phase)
    patch = canvas[top:bottom, left:right]
    ink = np.clip(colour + tone[..., None], 0, 255)
    patch[...] = np.rint(patch + (ink - patch) * mask[..., None]).astype(np.uint8)
    box = (left + columns[0], top + rows[0], left + columns[-1] + 1, top + rows[-1] + 1)
    return SceneObject(*kind, box=(float(box[0]), float(box[1]), float(box[2]), float(box[3])))


def draw_background(rng: np.random.Generator, width: int, height: int) -> npt.NDArray[np.uint8]:
    """Soft, nearly grey clouds, half of the time with grain."""
    base = rng.uniform(90, 165, 3)
    clouds = rng.normal(0, 1, (*rng.integers(3, 10, 2), 3 if rng.random() < 0.5 else 1)) * rng.uniform(6, 22)
    cells = base + clouds
    grey = cells.mean(-1, keepdims=True)
    cells = np.clip(grey + (cells - grey) * rng.uniform(0.1, 0.6), *_BACKGROUND)
    image = Image.fromarray(cells.astype(np.uint8)).resize((width, height), Image.Resampling.BICUBIC)
    canvas = np.array(image)
    if rng.random() < 0.5:
        grain = rng.normal(0, rng.uniform(2, 10), (_GRAIN_TILE, _GRAIN_TILE, 1)).astype(np.int16)
        tiled = np.tile(grain, (-(-height // _GRAIN_TILE), -(-width // _GRAIN_TILE), 1))[:height, :width]
        canvas = np.clip(canvas + tiled, 0, 255).astype(np.uint8)
    return canvas


def _free_place(
    rng: np.random.Generator,
    width: int,
    height: int,
    radius: tuple[float, float],
    placed: Sequence[tuple[float, float, float]],
) -> tuple[float, float, float] | None:
    """x, y and radius in pixels of a place that is inside the image and clear of the others."""
    for _ in range(_PLACEMENT_TRIES):
        r = float(rng.uniform(*radius))
        edge = r * _REACH + 1
        if 2 * edge >= min(width, height):
            continue
        x, y = float(rng.uniform(edge, width - edge)), float(rng.uniform(edge, height - edge))
        if all(np.hypot(x - other_x, y - other_y) > (r + other_r) * _SPACING for other_x, other_y, other_r in placed):
            return x, y, r
    return None


def _shape_mask(
    shape: str, width: int, height: int, centre: tuple[float, float], radius: float, angle: float
) -> FloatArray:
    """How much of each pixel the shape covers, float32 [height, width] in 0..1."""
    fine = 4 if radius < 120 else 2  # drawn this many times finer, then averaged: smooth edges
    image = Image.new("L", (width * fine, height * fine))
    pen = ImageDraw.Draw(image)
    x, y, r = centre[0] * fine, centre[1] * fine, radius * fine
    if shape == "circle":
        pen.ellipse((x - r, y - r, x + r, y + r), fill=255)
    elif shape == "ring":
        pen.ellipse((x - r, y - r, x + r, y + r), fill=255)
        pen.ellipse((x - 0.6 * r, y - 0.6 * r, x + 0.6 * r, y + 0.6 * r), fill=0)
    else:
        corners = _corners(shape, angle) * r + (x, y)
        pen.polygon([(float(px), float(py)) for px, py in corners], fill=255)
    return np.asarray(image.reduce(fine), np.float32) / 255


def _corners(shape: str, angle: float) -> npt.NDArray[np.float64]:
    """Corners of a polygon of radius 1 about the origin, turned by `angle` radians: float64 [n, 2]."""
    if shape == "square":
        turns, reach = np.arange(4) * np.pi / 2 + np.pi / 4, np.full(4, 1.15)
    elif shape == "triangle":
        turns, reach = np.arange(3) * 2 * np.pi / 3 - np.pi / 2, np.full(3, 1.2)
    elif shape == "star":
        turns, reach = np.arange(10) * np.pi / 5 - np.pi / 2, np.where(np.arange(10) % 2 == 0, 1.2, 0.5)
    elif shape == "cross":
        arm = 0.36
        quarter = np.array([(-arm, -1.0), (arm, -1.0), (arm, -arm)])
        turn = np.array([(0.0, 1.0), (-1.0, 0.0)])
        outline = np.concatenate([quarter @ np.linalg.matrix_power(turn, step) for step in range(4)]) * 1.1
        turns, reach = np.arctan2(outline[:, 1], outline[:, 0]), np.hypot(outline[:, 0], outline[:, 1])
    else:
        raise ValueError(f"unknown shape {shape!r}; known: {', '.join(SHAPES)}")
    return np.stack([np.cos(turns + angle) * reach, np.sin(turns + angle) * reach], axis=1)


def _pattern_tone(
    pattern: str,
    width: int,
    height: int,
    centre: tuple[float, float],
    radius: float,
    angle: float,
    phase: npt.NDArray[np.float64],
) -> FloatArray:
    """Grey levels that a pattern adds to the colour, mean about 0: float32 [height, width]."""
    if pattern == "plain":
        return np.zeros((height, width), np.float32)
    period = max(radius * PATTERN_PERIOD, 1e-3)
    visible = float(np.clip((period - 1.0) / 1.5, 0, 1))  # a period near one pixel would draw moire, not a pattern
    x = (np.arange(width, dtype=np.float32) + np.float32(0.5 - centre[0]))[None, :]
    y = (np.arange(height, dtype=np.float32) + np.float32(0.5 - centre[1]))[:, None]
    turned = angle + np.pi / 4
    cos, sin = np.float32(np.cos(turned) / period), np.float32(np.sin(turned) / period)
    u = (x * cos + y * sin + np.float32(phase[0])) % 1 - np.float32(0.5)
    if pattern == "striped":
        ink = np.clip((np.abs(u) - 0.25) * period + 0.5, 0, 1) - 0.5
    elif pattern == "dotted":
        v = (y * cos - x * sin + np.float32(phase[1])) % 1 - np.float32(0.5)
        ink = np.pi * _DOT_RADIUS**2 - np.clip((_DOT_RADIUS - np.hypot(u, v)) * period + 0.5, 0, 1)
    else:
        raise ValueError(f"unknown pattern {pattern!r}; known: {', '.join(PATTERNS)}")
    return np.asarray(ink * (2 * _TONE * visible), np.float32)
