"""What a detector's outputs are: decided by their shapes and by the values of a trial run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from models.detectors.errors import UnknownHeadError

Array = npt.NDArray[Any]
HeadName = Literal["yolov8", "yolov5", "yolox", "yolox-raw", "yolov10", "end2end"]

STRIDES = (8, 16, 32)  #: of YOLOX's grids, in the order of its rows


@dataclass(frozen=True)
class Family:
    """A form of outputs, and how the detectors that have it want their pictures."""

    form: str
    colour: Literal["rgb", "bgr"] = "rgb"
    value_range: tuple[float, float] = (0.0, 1.0)
    letterbox: Literal["center", "top-left"] = "center"


_YOLOX = Family("[B, anchors, 5+classes], one anchor a cell", "bgr", (0.0, 255.0), "top-left")
FAMILIES: Mapping[HeadName, Family] = {
    "yolov8": Family("[B, 4+classes, anchors]"),
    "yolov5": Family("[B, anchors, 5+classes]"),
    "yolox": _YOLOX,
    "yolox-raw": replace(_YOLOX, form="[B, anchors, 5+classes], boxes not decoded"),
    "yolov10": Family("[B, rows, 6]"),
    "end2end": Family("num_dets, boxes, scores, classes"),
}


@dataclass(frozen=True)
class Head:
    """The decision."""

    name: HeadName
    outputs: tuple[str, ...]  #: the one output, or the four as num_dets, boxes, scores, classes
    classes: int | None  #: how many the outputs tell of; None = rows with class ids


def recognise(
    outputs: Mapping[str, Array], side: int, names: int | None = None, wanted: HeadName | None = None
) -> Head:
    """What the outputs of two pictures of `side` pixels are.

    `names`: how many class names there are, which helps where values leave a doubt; `wanted`: what the user says.
    Raises UnknownHeadError where nothing fits, or more than one head does.
    """
    if len(outputs) == 4 and wanted in (None, "end2end"):
        return _end2end(outputs, side)
    if len(outputs) != 1 or wanted == "end2end":
        raise _unknown(outputs, f"it has {len(outputs)} outputs")
    ((name, value),) = outputs.items()
    if value.ndim != 3:
        raise _unknown(outputs, f"it has {value.ndim} dimensions, not 3")
    # Heads with objectness differ in what their detectors were trained with, not in what can be checked.
    candidates: list[HeadName] = [wanted] if wanted else ["yolov8", _kind_with_objectness(value, side), "yolov10"]
    objections = {head: _CHECKS[head](value, side) for head in candidates}
    fitting = [head for head in candidates if not objections[head]]
    if "yolov10" in fitting:  # no anchors have xyxy and a whole number in every row
        fitting = ["yolov10"]
    for narrow in (_with_as_many_classes(value, names), _with_a_full_grid(value, side)):
        if len(fitting) > 1:
            fitting = [head for head in fitting if narrow(head)] or fitting
    if len(fitting) == 1:
        return Head(fitting[0], (name,), _classes(fitting[0], value))
    if fitting:
        raise UnknownHeadError(
            f"the output {shown(name)} {shown_shape(value)} may be {' or '.join(fitting)}; say which with --head"
        )
    likely = [head for head in candidates if wanted or _grid_is(head, value, side)]
    reasons = "; ".join(f"as {head}, {objections[head]}" for head in likely)
    raise _unknown(outputs, reasons or "no head has this shape and these values")


def final_rows(head: Head, outputs: Mapping[str, Array]) -> Array:
    """Of a head that suppresses by itself: rows (x1, y1, x2, y2, score, class) [2, R, 6], zeros where there is none."""
    if head.name == "yolov10":
        return outputs[head.outputs[0]]
    count, boxes, scores, classes = (outputs[name].astype(np.float64) for name in head.outputs)
    real = np.arange(boxes.shape[1]) < count.reshape(2, 1)
    rows = np.concatenate([boxes, scores[..., None], classes[..., None]], 2)
    return np.where(real[..., None], rows, 0)


def cells_of(side: int, stride: int) -> int:
    """How many cells a grid has along a side."""
    return -(-side // stride)


def anchors_of(side: int, strides: tuple[int, ...] = STRIDES) -> int:
    """How many cells the grids of these strides have."""
    return sum(cells_of(side, stride) ** 2 for stride in strides)


def shown(name: str) -> str:
    """The name of a value as the exporter gave it."""
    return repr(name.removeprefix("model/"))


def shown_shape(value: Array) -> str:
    """The shape of an output for people, its batch as B."""
    return f"[{', '.join(['B', *map(str, value.shape[1:])])}]"


def _end2end(outputs: Mapping[str, Array], side: int) -> Head:
    head = Head("end2end", _four(outputs), None)
    objection = _objection_to_rows(final_rows(head, outputs), side)
    if objection:
        raise _unknown(outputs, f"as end2end, {objection}")
    return head


def _four(outputs: Mapping[str, Array]) -> tuple[str, ...]:
    """The names of num_dets, boxes, scores and classes, by shape, then by type, then by values."""
    boxes = [name for name, value in outputs.items() if value.ndim == 3 and value.shape[2] == 4]
    rows = outputs[boxes[0]].shape[1] if len(boxes) == 1 else 0
    pairs = [name for name, value in outputs.items() if value.shape == (2, rows)]
    counts = [name for name, value in outputs.items() if value.size == 2 and _whole(value)]
    if rows == 1:  # all have one column: the names must tell
        counts = [name for name in counts if "num" in name.lower()]
        pairs = [name for name in pairs if name not in counts]
    if len(boxes) != 1 or len(pairs) != 2 or len(counts) != 1:
        raise _unknown(outputs, "its four outputs are not num_dets, boxes, scores and classes")
    classes = [name for name in pairs if outputs[name].dtype.kind in "iu"]
    if len(classes) != 1:
        classes = [name for name in pairs if "class" in name.lower() or "label" in name.lower()]
    if len(classes) != 1:
        classes = [name for name in pairs if _whole(outputs[name])]
    if len(classes) != 1:
        raise UnknownHeadError(
            f"of the outputs {' and '.join(map(shown, pairs))} either may be the classes; "
            "call one of them det_classes when you export"
        )
    scores = pairs[1 - pairs.index(classes[0])]
    return counts[0], boxes[0], scores, classes[0]


def _kind_with_objectness(value: Array, side: int) -> HeadName:
    """Which family an output [2, anchors, 5+classes] would be of."""
    if not _grid_is("yolox", value, side) or (value[..., 4:5] == 1).all():
        return "yolov5"  # three anchors a cell, or objectness that says nothing, as YOLOv6 has it
    return "yolox-raw" if _undecoded(value, side) else "yolox"


def _anchors_last(value: Array, side: int) -> str | None:
    if value.shape[1] < 5:
        return "it has fewer than 5 channels"
    rows = value.transpose(0, 2, 1)
    return _few(rows) or _bad_boxes(rows[..., :4]) or _bad_scores(rows[..., 4:], "class scores")


def _decoded(value: Array, side: int) -> str | None:
    return _with_objectness(value) or _bad_boxes(value[..., :4])


def _raw(value: Array, side: int) -> str | None:
    if not _grid_is("yolox-raw", value, side):
        return f"it does not have the {anchors_of(side)} anchors of {side} pixels"
    return _with_objectness(value)


def _with_objectness(value: Array) -> str | None:
    if value.shape[2] < 6:
        return "it has fewer than 6 columns"
    return _few(value) or _bad_scores(value[..., 4:], "objectness and class scores")


def _objection_to_rows(value: Array, side: int) -> str | None:
    if value.shape[2] != 6:
        return "it does not have 6 columns"
    boxes, scores, classes = value[..., :4], value[..., 4], value[..., 5]
    if not _whole(classes) or (classes < 0).any():
        return "its classes are no ids"
    if (boxes[..., 2:] < boxes[..., :2]).any():
        return "its boxes are not xyxy"
    if boxes.any() and boxes.max() <= _NORMALISED:
        return "its boxes are not in pixels"
    return _bad_scores(scores, "scores")


_CHECKS: Mapping[HeadName, Callable[[Array, int], str | None]] = {
    "yolov8": _anchors_last,
    "yolov5": _decoded,
    "yolox": _decoded,
    "yolox-raw": _raw,
    "yolov10": _objection_to_rows,
}
#: Boxes that reach no further than this many pixels are parts of the picture's size instead.
_NORMALISED = 2.0
_ROUNDING = 1e-3


def _few(rows: Array) -> str | None:
    return "it has too few rows for anchors" if rows.shape[1] < anchors_of(32) else None


def _bad_boxes(boxes: Array) -> str | None:
    """Of decoded boxes cxcywh in pixels."""
    if (boxes[..., 2:] < 0).any():
        return "widths and heights are negative"
    return "the boxes are not in pixels" if boxes.max() <= _NORMALISED else None


def _bad_scores(scores: Array, what: str) -> str | None:
    low, high = float(scores.min()), float(scores.max())
    if low < -_ROUNDING or high > 1 + _ROUNDING:
        return f"its {what} are not in 0..1 but {low:.3g}..{high:.3g} (export it with its sigmoid)"
    return None


def _undecoded(value: Array, side: int) -> bool:
    """Whether centres are offsets inside cells, and not pixels near their cells."""
    grids = [cells_of(side, stride) for stride in STRIDES]
    cells = np.concatenate([np.arange(cells * cells) % cells for cells in grids])
    strides = np.repeat(STRIDES, np.square(grids))
    centres = value[..., 0].astype(np.float64)
    return bool(np.median(np.abs(centres)) < np.median(np.abs(centres / strides - cells)))


def _whole(value: Array) -> bool:
    return bool((value == np.round(value)).all())


def _with_a_full_grid(value: Array, side: int) -> Callable[[HeadName], bool]:
    return lambda head: _grid_is(head, value, side)


def _with_as_many_classes(value: Array, names: int | None) -> Callable[[HeadName], bool]:
    return lambda head: names is None or _classes(head, value) in (names, None)


def _grid_is(head: HeadName, value: Array, side: int) -> bool:
    """Whether the rows are those of grids that detectors of this family have."""
    anchors = value.shape[2] if head == "yolov8" else value.shape[1]
    if head == "yolov10":
        return value.shape[2] == 6
    grids = [STRIDES] if head.startswith("yolox") else [STRIDES, (*STRIDES, 64), (4, *STRIDES)]
    each = (1, 3) if head == "yolov5" else (1,)
    return anchors in {anchors_of(side, grid) * count for grid in grids for count in each}


def _classes(head: HeadName, value: Array) -> int | None:
    if head == "yolov10":
        return None
    return value.shape[1] - 4 if head == "yolov8" else value.shape[2] - 5


def _unknown(outputs: Mapping[str, Array], reason: str) -> UnknownHeadError:
    found = ", ".join(f"{shown(name)} {shown_shape(value)}" for name, value in outputs.items())
    forms = "; ".join(f"{head} {family.form}" for head, family in FAMILIES.items())
    return UnknownHeadError(f"the head of the detector is not known: {reason} (found {found}; recognised are {forms})")
