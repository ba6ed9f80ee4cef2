"""What a detector's outputs are is decided by shape and values, and never guessed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from models.detectors.errors import UnknownHeadError
from models.detectors.heads import Head, HeadName, anchors_of, recognise
from tests.unit.detector_graphs import ANCHORS, SIDE, anchors_table, rows_table

Array = Any


def pair(table: Array) -> Array:
    """What two pictures gave."""
    return np.stack([table, table])


def of(table: Array, **options: Any) -> Head:
    return recognise({"output0": pair(table)}, options.pop("side", SIDE), **options)


def raw_yolox(classes: int) -> Array:
    table = anchors_table(classes, objectness=True)
    table[:, :4] = np.random.default_rng(0).normal(0.3, 0.5, (ANCHORS, 4))
    return table


@pytest.mark.parametrize(
    ("table", "name", "classes"),
    [
        (anchors_table(80).T, "yolov8", 80),  # [84, 84]: the values tell
        (anchors_table(3).T, "yolov8", 3),
        (anchors_table(1).T, "yolov8", 1),
        (anchors_table(2).T, "yolov8", 2),
        (anchors_table(80, 3 * ANCHORS, objectness=True), "yolov5", 80),
        (anchors_table(1, 3 * ANCHORS, objectness=True), "yolov5", 1),  # six columns, but no class ids
        (anchors_table(1, 300, objectness=True), "yolov5", 1),
        (anchors_table(79, objectness=True), "yolox", 79),  # [84, 84] again
        (anchors_table(1, objectness=True), "yolox", 1),
        (raw_yolox(80), "yolox-raw", 80),
        (raw_yolox(1), "yolox-raw", 1),
        (rows_table(300, 80), "yolov10", None),
        (rows_table(300, 1), "yolov10", None),
        (rows_table(5, 2), "yolov10", None),
        (rows_table(ANCHORS, 2), "yolov10", None),
        (np.zeros((300, 6), np.float32), "yolov10", None),  # its own suppression found nothing
    ],
)
def test_shape_and_values_tell_the_head(table: Array, name: str, classes: int | None) -> None:
    head = of(table)
    assert (head.name, head.classes, head.outputs) == (name, classes, ("output0",))


@pytest.mark.parametrize("side", [320, 416, 640])
@pytest.mark.parametrize("classes", [1, 2, 20, 80, 365])
def test_the_usual_sizes_are_told_apart(side: int, classes: int) -> None:
    anchors = anchors_of(side)
    assert of(anchors_table(classes, anchors, side=side).T, side=side).name == "yolov8"
    assert of(anchors_table(classes, 3 * anchors, side=side, objectness=True), side=side).name == "yolov5"
    assert of(anchors_table(classes, anchors, side=side, objectness=True), side=side).name == "yolox"


def test_objectness_of_one_everywhere_is_yolov6_which_wants_rgb() -> None:
    table = anchors_table(3, objectness=True)
    table[:, 4] = 1
    assert of(table).name == "yolov5"


def test_the_user_may_say_which_family_it_is() -> None:
    table = anchors_table(3, objectness=True)
    assert of(table, wanted="yolov5").name == "yolov5"


def ambiguous() -> Array:
    """[4 + 80, 84 anchors] as well as [84 anchors, 5 + 79] that are not decoded."""
    table = np.full((84, 84), 0.5, np.float32)
    table[:4, :4] = 30
    return table


def test_two_fitting_heads_are_an_error_that_names_the_option() -> None:
    with pytest.raises(UnknownHeadError, match=r"may be yolov8 or yolox-raw.*--head"):
        of(ambiguous())
    assert of(ambiguous(), wanted="yolov8").classes == 80
    assert of(ambiguous(), wanted="yolox-raw").classes == 79


def test_the_number_of_names_settles_a_doubt() -> None:
    assert of(ambiguous(), names=80).name == "yolov8"
    assert of(ambiguous(), names=79).name == "yolox-raw"


def test_logits_are_refused_and_named() -> None:
    table = anchors_table(3)
    table[:, 4:] = table[:, 4:] * 10 - 5
    with pytest.raises(UnknownHeadError, match=r"class scores are not in 0\.\.1 .*sigmoid"):
        of(table.T)


def test_key_points_of_a_pose_are_no_class_scores() -> None:
    points = np.random.default_rng(0).uniform(0, SIDE, (ANCHORS, 51))
    with pytest.raises(UnknownHeadError, match=r"class scores are not in 0\.\.1"):
        of(np.concatenate([anchors_table(1), points], 1).astype(np.float32).T)


def test_boxes_as_parts_of_the_picture_are_refused() -> None:
    table = anchors_table(3)
    table[:, :4] /= SIDE
    with pytest.raises(UnknownHeadError, match="not in pixels"):
        of(table.T)


@pytest.mark.parametrize(
    "shape",
    [(1000,), (3, 8, 8, 8), (300, 84), (ANCHORS, 4), (2, 2), (7,)],
)
def test_other_outputs_are_shown_with_what_is_recognised(shape: tuple[int, ...]) -> None:
    value = np.random.default_rng(0).normal(0, 3, (2, *shape)).astype(np.float32)
    with pytest.raises(UnknownHeadError, match=r"found 'output0' \[B, .*recognised are yolov8"):
        recognise({"output0": value}, SIDE)


def test_a_wrong_number_of_outputs_is_refused() -> None:
    segmentation = {"output0": pair(anchors_table(35).T), "output1": np.zeros((2, 32, 16, 16), np.float32)}
    with pytest.raises(UnknownHeadError, match="it has 2 outputs"):
        recognise(segmentation, SIDE)


@pytest.mark.parametrize("wanted", ["yolov5", "yolox-raw", "yolov10", "end2end"])
def test_a_head_that_the_user_says_must_fit_too(wanted: HeadName) -> None:
    with pytest.raises(UnknownHeadError):
        of(anchors_table(3).T, wanted=wanted)


def four(rows: int = 10) -> dict[str, Array]:
    table = rows_table(rows, 7)
    return {
        "num": np.full((2, 1), rows - 2, np.int32),
        "boxes": pair(table[:, :4]),
        "scores": pair(table[:, 4]),
        "classes": pair(table[:, 5]).astype(np.int32),
    }


@pytest.mark.parametrize("order", [("num", "boxes", "scores", "classes"), ("classes", "scores", "boxes", "num")])
@pytest.mark.parametrize("kinds", [(np.int32, np.int32), (np.int64, np.int64), (np.float32, np.float32)])
def test_four_outputs_are_told_apart_in_any_order_and_type(order: tuple[str, ...], kinds: tuple[Any, Any]) -> None:
    outputs = four()
    outputs["num"], outputs["classes"] = outputs["num"].astype(kinds[0]), outputs["classes"].astype(kinds[1])
    head = recognise({name: outputs[name] for name in order}, SIDE)
    assert head.outputs == ("num", "boxes", "scores", "classes")


def test_four_empty_outputs_are_told_apart_by_name_or_refused() -> None:
    outputs = {name: np.zeros_like(value, np.float32) for name, value in four().items()}
    assert recognise(outputs, SIDE).outputs == ("num", "boxes", "scores", "classes")
    outputs["x"] = outputs.pop("classes")
    with pytest.raises(UnknownHeadError, match="det_classes"):
        recognise(outputs, SIDE)


def test_four_outputs_of_one_row_are_told_apart_by_name() -> None:
    assert recognise(four(1), SIDE).outputs == ("num", "boxes", "scores", "classes")


def test_rows_beyond_the_count_are_not_looked_at() -> None:
    outputs = four()
    outputs["classes"][:, 8:] = -1
    outputs["scores"][:, 8:] = 7
    assert recognise(outputs, SIDE).name == "end2end"
    outputs["num"][:] = 9
    with pytest.raises(UnknownHeadError, match="as end2end"):
        recognise(outputs, SIDE)


def test_four_feature_maps_are_no_end2end() -> None:
    maps = {str(side): np.zeros((2, 3, side, side, 85), np.float32) for side in (1, 2, 3, 4)}
    with pytest.raises(UnknownHeadError, match="four outputs"):
        recognise(maps, SIDE)
