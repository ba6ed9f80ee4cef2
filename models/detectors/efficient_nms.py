"""TensorRT's `EfficientNMS_TRT` node: taken out of a graph, which onnxruntime can then run, and written into one."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx
from onnx import TensorProto, helper, shape_inference

from models.detectors.decode import corners, name_outputs
from models.detectors.end2end import OUTPUTS, Suppression, end2end_outputs
from models.detectors.errors import GraphError
from models.detectors.graph import GraphWriter, set_outputs

OPERATOR = "EfficientNMS_TRT"
_DOMAIN = "TRT"
_CENTRE_AND_SIZE = 1  # of box_coding; 0 is xyxy


@dataclass(frozen=True)
class EfficientNms:
    """What a node was told."""

    boxes: str
    scores: str
    centre_coded: bool  #: boxes are cxcywh
    sigmoid: bool  #: scores are logits
    background: int  #: class that is no object; -1 = all are
    settings: Suppression


def cut_efficient_nms(model: onnx.ModelProto) -> EfficientNms | None:
    """Makes the inputs of the graph's EfficientNMS_TRT its outputs (in place); None where there is no such node.

    Raises GraphError for a form of the node that has no counterpart here.
    """
    nodes = [node for node in model.graph.node if node.op_type == OPERATOR]
    if not nodes:
        return None
    node = nodes[0]
    told = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
    for wrong, what in (
        (len(nodes) > 1, "stands more than once in the graph"),
        (len(node.input) != 2, "decodes anchors itself"),
        (told.get("class_agnostic"), "suppresses across classes"),
    ):
        if wrong:
            raise GraphError(f"{OPERATOR} {what}, which is not supported; export the detector without NMS")
    boxes, scores = node.input
    # What follows the node may be left: nothing asks for it, so it is dropped with the node.
    kinds = _kinds(model)
    _keep_ancestors(model.graph, (boxes, scores))
    outputs = [helper.make_tensor_value_info(name, kinds.get(name, TensorProto.FLOAT), None) for name in node.input]
    set_outputs(model.graph, outputs)
    default = Suppression()
    settings = Suppression(
        max_detections=int(told.get("max_output_boxes", default.max_detections)),
        iou_threshold=round(told.get("iou_threshold", default.iou_threshold), 6),  # float32 in the file
        score_threshold=round(told.get("score_threshold", default.score_threshold), 6),
    )
    return EfficientNms(
        boxes=boxes,
        scores=scores,
        centre_coded=told.get("box_coding", 0) == _CENTRE_AND_SIZE,
        sigmoid=bool(told.get("score_activation", 0)),
        background=int(told.get("background_class", -1)),
        settings=settings,
    )


def expose_inputs(model: onnx.ModelProto, node: EfficientNms, classes: int) -> tuple[str, str]:
    """Boxes float32 [N, A, 4] xyxy and scores float32 [N, A, classes] as the node understood them; their names."""
    writer = GraphWriter(model)
    # Boxes may be [N, A, 1, 4].
    boxes = writer.add("Reshape", writer.as_float(node.boxes), writer.constant([0, -1, 4]))
    scores = writer.as_float(node.scores)
    if node.centre_coded:
        boxes = corners(writer, writer.columns(boxes, 0, 2), writer.columns(boxes, 2, 4))
    if node.sigmoid:
        scores = writer.add("Sigmoid", scores)
    if node.background >= 0:
        objects = np.arange(classes) != node.background
        scores = writer.add("Mul", scores, writer.constant(objects.reshape(1, 1, -1), np.float32))
    return name_outputs(writer, boxes, scores)


def add_efficient_nms(model: onnx.ModelProto, boxes: str, scores: str, settings: Suppression) -> onnx.ModelProto:
    """Replaces the outputs (in place) with those of one EfficientNMS_TRT node, the same four as `add_end2end` gives.

    The node would return an anchor once for each class above the threshold, so all but its best class are zeroed.
    Its rows beyond num_dets are undefined.
    """
    writer = GraphWriter(model)
    depth = writer.length(scores, 2)
    best = writer.add("ArgMax", scores, axis=2, keepdims=0)
    one_hot = writer.add("OneHot", best, depth, writer.constant([0, 1], np.float32), axis=2)
    writer.add_many(
        OPERATOR,
        (boxes, writer.add("Mul", scores, one_hot)),
        list(OUTPUTS),
        domain=_DOMAIN,
        background_class=-1,
        box_coding=0,
        class_agnostic=0,
        iou_threshold=settings.iou_threshold,
        max_output_boxes=settings.max_detections,
        plugin_version="1",
        score_activation=0,
        score_threshold=settings.score_threshold,
    )
    set_outputs(writer.graph, end2end_outputs(settings.max_detections))
    if all(entry.domain != _DOMAIN for entry in model.opset_import):
        model.opset_import.append(helper.make_opsetid(_DOMAIN, 1))
    return model


def _kinds(model: onnx.ModelProto) -> dict[str, int]:
    """The element type of every value that shape inference knows."""
    inferred = shape_inference.infer_shapes(model).graph
    return {value.name: value.type.tensor_type.elem_type for value in (*inferred.value_info, *inferred.input)}


def _keep_ancestors(graph: onnx.GraphProto, values: tuple[str, ...]) -> None:
    """Drops every node that none of the values depends on."""
    wanted = set(values)
    kept = []
    for node in reversed(graph.node):
        if wanted & set(node.output):
            wanted |= set(node.input) | set(_outer_names(node))
            kept.append(node)
    del graph.node[:]
    graph.node.extend(reversed(kept))


def _outer_names(node: onnx.NodeProto) -> list[str]:
    """Names that the branches of a node use, their own included."""
    branches = [graph for attribute in node.attribute for graph in (attribute.g, *attribute.graphs)]
    inner = [child for graph in branches for child in graph.node]
    return [name for child in inner for name in (*child.input, *_outer_names(child))]
