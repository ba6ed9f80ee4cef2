"""From the ONNX file of any exporter to a detector in the model store."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import onnx

from models.checks import check_detector
from models.detectors.batch import with_any_batch
from models.detectors.class_names import fitting_names, names_in_metadata
from models.detectors.decode import expose_boxes, expose_rows, has_final_rows
from models.detectors.efficient_nms import OPERATOR, EfficientNms, add_efficient_nms, cut_efficient_nms, expose_inputs
from models.detectors.end2end import Suppression, add_end2end, add_selection
from models.detectors.errors import ClassNamesError, GraphError, UnknownHeadError
from models.detectors.graph import opset_of
from models.detectors.heads import FAMILIES, Array, Head, HeadName, final_rows, recognise, shown_shape
from models.detectors.onnx_file import fixed_batch, read_onnx, unify_input
from models.detectors.probe import Trial, probe_pictures
from models.manifest import DetectorSpec, sha256_of
from models.store import ModelStore

ONNX_FILE = "detector.onnx"
TENSORRT_FILE = "detector.trt.onnx"


@dataclass(frozen=True)
class ImportOptions:
    """What a user may say about a detector; None = as the file or its head has it."""

    head: HeadName | None = None
    classes: tuple[str, ...] | None = None
    input_size: int | None = None  #: pixels, for graphs that leave it open
    score_threshold: float | None = None
    iou_threshold: float | None = None
    max_detections: int | None = None
    colour: Literal["rgb", "bgr"] | None = None
    value_range: tuple[float, float] | None = None
    letterbox: Literal["center", "top-left"] | None = None
    pad_value: int = 114
    tensorrt: bool = False  #: also write a graph with EfficientNMS_TRT


@dataclass(frozen=True)
class _Recognised:
    """An exporter's graph, its input unified and its batch free, and what its outputs are."""

    model: onnx.ModelProto
    side: int
    head: Head
    node: EfficientNms | None  #: was cut off; the outputs are its inputs
    names: tuple[str, ...]


def import_file(
    path: Path,
    store: ModelStore,
    name: str,
    options: ImportOptions,
    *,
    overwrite: bool = False,
    origin: Mapping[str, str] | None = None,
    note: Callable[[str], None] = lambda line: None,
) -> DetectorSpec:
    """Recognises the head of an ONNX file, appends what makes its outputs End2End, checks it, stores it as `name`.

    `origin`: where the file came from, kept beside its digest; `note` receives a line for each step.
    Raises a DetectorError where the file cannot be taken, ModelCheckError where the result does not run, StoreError
    where the name is taken.
    """
    with store.adding("detector", name, replace=overwrite) as folder:
        note(f"reading {path}")
        model = read_onnx(path)
        found = _recognise(model, options, note)
        settings = _settings(options, found.node)
        spec = _spec(name, found, settings, options)
        note(f"writing {ONNX_FILE}, {len(spec.classes)} classes, {spec.colour_order}, {spec.letterbox} letterbox")
        for file, graph in _finished(found, settings, tensorrt=options.tensorrt).items():
            onnx.save(graph, str(folder / file))
        if options.tensorrt and not (folder / TENSORRT_FILE).exists():
            note(f"no {TENSORRT_FILE}: the detector suppresses by itself, TensorRT takes {ONNX_FILE}")
        note("trying it on batches of one and two")
        check_detector(folder, spec)
        source = {
            **(origin or {"file": path.name}),
            "sha256": sha256_of(path),
            "producer": f"{model.producer_name} {model.producer_version}".strip(),
            "opset": str(opset_of(model)),
            "head": OPERATOR if found.node else found.head.name,
            "iou_threshold": str(settings.iou_threshold),
            "candidates": str(settings.candidates),
        }
        store.write_part(folder, spec, source)
    return spec


def _recognise(model: onnx.ModelProto, options: ImportOptions, note: Callable[[str], None]) -> _Recognised:
    stored = names_in_metadata(model) if options.classes is None else None
    fixed = fixed_batch(model)
    side = unify_input(model, options.input_size)
    node = cut_efficient_nms(model)
    pictures = probe_pictures(side, options.value_range or (0.0, 1.0))
    note(f"running it on pictures of {side}x{side}")
    apart = Trial(model).run_apart(pictures, fixed or 1)
    known = options.classes or stored
    if node and options.head not in (None, "end2end"):
        raise UnknownHeadError(f"the detector ends in {OPERATOR}, which tells what it is; leave --head out")
    if node:
        head = Head("end2end", (), _classes_of(node, apart))
    else:
        head = recognise(apart, side, len(known) if known else None, options.head)
    names = fitting_names(options.classes, stored, head.classes)
    if head.classes is None:  # nothing but the rows that it finds tells how many there are
        most = int(final_rows(head, apart)[..., 5].max(initial=0))
        if most >= len(names):
            raise ClassNamesError(f"the detector finds class {most}, but {len(names)} are named; give --classes FILE")
    note(f"the head is {head.name}, {FAMILIES[head.name].form}")
    model = with_any_batch(model, fixed, pictures, apart)
    return _Recognised(model, side, head, node, names)


def _classes_of(node: EfficientNms, outputs: Mapping[str, Array]) -> int:
    boxes, scores = outputs[node.boxes], outputs[node.scores]
    one_box_an_anchor = boxes.shape[2:] in ((4,), (1, 4))
    if scores.ndim != 3 or not one_box_an_anchor or boxes.shape[:2] != scores.shape[:2]:
        raise GraphError(
            f"EfficientNMS_TRT gets boxes {shown_shape(boxes)} and scores {shown_shape(scores)}; wanted are "
            "[B, anchors, 4] and [B, anchors, classes]: export the detector without NMS"
        )
    return int(scores.shape[2])


def _settings(options: ImportOptions, node: EfficientNms | None) -> Suppression:
    """What the user says, else what the graph's own NMS was told, else the defaults."""
    told = node.settings if node else Suppression()
    rows = told.max_detections if options.max_detections is None else options.max_detections
    return Suppression(
        max_detections=rows,
        iou_threshold=told.iou_threshold if options.iou_threshold is None else options.iou_threshold,
        score_threshold=told.score_threshold if options.score_threshold is None else options.score_threshold,
        candidates=max(told.candidates, rows),
    )


def _spec(name: str, found: _Recognised, settings: Suppression, options: ImportOptions) -> DetectorSpec:
    family = FAMILIES[found.head.name]
    return DetectorSpec(
        name=name,
        onnx=ONNX_FILE,
        input_size=found.side,
        colour_order=options.colour or family.colour,
        value_range=options.value_range or family.value_range,
        letterbox=options.letterbox or family.letterbox,
        pad_value=options.pad_value,
        classes=found.names,
        max_detections=settings.max_detections,
        score_threshold=settings.score_threshold,
    )


def _finished(found: _Recognised, settings: Suppression, *, tensorrt: bool) -> dict[str, onnx.ModelProto]:
    """The graphs to store, by file name."""
    model, head, node = found.model, found.head, found.node
    if node is None and has_final_rows(head):
        return {ONNX_FILE: add_selection(model, *expose_rows(model, head), settings)}
    if node:
        boxes, scores = expose_inputs(model, node, len(found.names))
    else:
        boxes, scores = expose_boxes(model, head, found.side)
    graphs = {}
    if tensorrt:
        copy = onnx.ModelProto()
        copy.CopyFrom(model)
        graphs[TENSORRT_FILE] = add_efficient_nms(copy, boxes, scores, settings)
    return {ONNX_FILE: add_end2end(model, boxes, scores, settings), **graphs}
