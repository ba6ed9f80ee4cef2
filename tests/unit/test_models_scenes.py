"""Generated scenes are reproducible and their truth is true: boxes are tight around the drawn pixels."""

from __future__ import annotations

import numpy as np
import pytest

from models.scenes import COLOURS, PATTERNS, SHAPES, Kind, draw_object, generate_scene, random_kind

GREY = 120


def test_a_seed_gives_one_scene() -> None:
    first, second = (generate_scene(np.random.default_rng(7), 400, 300, 4) for _ in range(2))
    np.testing.assert_array_equal(first.image, second.image)
    assert first.objects == second.objects
    other = generate_scene(np.random.default_rng(8), 400, 300, 4)
    assert not np.array_equal(first.image, other.image)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("pattern", PATTERNS)
def test_a_box_is_tight_around_the_drawn_pixels(shape: str, pattern: str) -> None:
    for seed, colour in enumerate(COLOURS):
        canvas = np.full((200, 220, 3), GREY, np.uint8)
        rng = np.random.default_rng(seed)
        item = draw_object(canvas, rng, Kind(shape, colour, pattern), centre=(108.3, 97.6), radius=50)
        changed = (np.abs(canvas.astype(int) - GREY).max(2)) > 20
        rows, columns = np.flatnonzero(changed.any(1)), np.flatnonzero(changed.any(0))
        drawn = (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)
        np.testing.assert_allclose(item.box, drawn, atol=1.0)


def test_an_object_cut_by_the_border_has_a_box_inside_the_scene() -> None:
    canvas = np.full((60, 80, 3), GREY, np.uint8)
    kind = Kind("circle", "red", "plain")
    item = draw_object(canvas, np.random.default_rng(0), kind, centre=(0.0, 30.0), radius=20)
    assert item.box[0] == 0
    assert item.box[2] == pytest.approx(20, abs=1)


def test_an_object_outside_of_the_scene_is_refused() -> None:
    canvas = np.full((60, 80, 3), GREY, np.uint8)
    with pytest.raises(ValueError, match="outside"):
        draw_object(canvas, np.random.default_rng(0), Kind("ring", "red", "plain"), centre=(-90.0, 30.0), radius=20)


@pytest.mark.parametrize(("width", "height"), [(900, 600), (600, 900), (500, 500)])
def test_objects_lie_inside_and_apart(width: int, height: int) -> None:
    scene = generate_scene(np.random.default_rng(3), width, height, 5)
    assert scene.image.shape == (height, width, 3)
    assert scene.image.dtype == np.uint8
    assert len(scene.objects) == 5
    for index, item in enumerate(scene.objects):
        x1, y1, x2, y2 = item.box
        assert 0 <= x1 < x2 <= width
        assert 0 <= y1 < y2 <= height
        for other in scene.objects[:index]:
            a1, b1, a2, b2 = other.box
            middle = np.hypot((x1 + x2 - a1 - a2) / 2, (y1 + y2 - b1 - b2) / 2)
            assert middle > max(min(x2 - x1, y2 - y1), min(a2 - a1, b2 - b1)) / 2


def test_radii_are_parts_of_the_shorter_side() -> None:
    scene = generate_scene(np.random.default_rng(1), 1200, 400, 3, radius=(0.1, 0.1))
    for item in scene.objects:
        longest = max(item.box[2] - item.box[0], item.box[3] - item.box[1])
        assert 0.9 * 80 <= longest <= 1.3 * 80


def test_a_crowded_scene_has_fewer_objects_and_not_overlapping_ones() -> None:
    assert len(generate_scene(np.random.default_rng(0), 100, 100, 50, radius=(0.2, 0.2)).objects) < 10


def test_wanted_kinds_are_drawn_and_said() -> None:
    kinds = [Kind("circle", "red", "striped"), Kind("star", "blue", "plain")]
    scene = generate_scene(np.random.default_rng(2), 500, 500, 2, kinds=kinds)
    assert [item.kind for item in scene.objects] == kinds
    assert [item.caption for item in scene.objects] == ["striped red circle", "plain blue star"]


def test_a_pattern_keeps_the_mean_colour_so_that_blur_hides_it() -> None:
    means = {}
    for pattern in PATTERNS:
        canvas = np.full((240, 240, 3), GREY, np.uint8)
        kind = Kind("square", "orange", pattern)
        draw_object(canvas, np.random.default_rng(5), kind, centre=(120.0, 120.0), radius=100)
        means[pattern] = canvas[70:170, 70:170].reshape(-1, 3).mean(0)
    np.testing.assert_allclose(means["striped"], means["plain"], atol=4)
    np.testing.assert_allclose(means["dotted"], means["plain"], atol=4)


def test_every_kind_can_occur() -> None:
    rng = np.random.default_rng(0)
    assert len({random_kind(rng) for _ in range(3000)}) == len(SHAPES) * len(COLOURS) * len(PATTERNS)
