"""The public face of the served models: names of models and tensors, the result type, the coding of refused items."""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from models.decoding import ERROR_CODES

#: The ensemble that clients call, and the steps it runs one after the other.
IMAGE_PIPELINE = "image_pipeline"
PREPROCESS = "preprocess"
DETECTOR = "detector"
BOX_EMBEDDER = "box_embedder"
CLIP_IMAGE = "clip_image"
CLIP_TEXT = "clip_text"
#: Stands before DALI, which refuses or misreads some files.
DALI_READY = "dali_ready"
#: All after it as one model, in the profile `fused`.
FUSED_PIPELINE = "fused_pipeline"

#: Tensors of `image_pipeline`.
IMAGE = "image"
IMAGE_EMBEDDING = "image_embedding"
BOXES = "boxes"
SCORES = "scores"
CLASS_IDS = "class_ids"
OBJECT_EMBEDDINGS = "object_embeddings"
IMAGE_SIZE = "image_size"
IMAGE_OUTPUTS = (IMAGE_EMBEDDING, BOXES, SCORES, CLASS_IDS, OBJECT_EMBEDDINGS, IMAGE_SIZE)
#: Tensors of the towers.
TOKENS = "tokens"
CROPS = "crops"
EMBEDDING = "embedding"

#: The one config parameter of ours: JSON that the stubs read at start.
PARAMETERS = "sightlog"

Float32 = npt.NDArray[np.float32]

_REFUSAL = re.compile(
    # Triton puts the ensemble's name and the request's id before the words of a model.
    r"(?:in ensemble '[^']*', )?(?:\[request id: [^\]]*\] )?(?P<code>"
    + "|".join(sorted(ERROR_CODES))
    + r"): (?P<text>.*)",
    re.DOTALL,
)


class StepTensors:
    """Names of the tensors between the steps; nobody outside the ensemble sees them."""

    DALI_IMAGE = "dali_image"
    DALI_PIXELS = "dali_pixels"
    LETTERBOXED = "letterboxed"
    CENTRE = "centre"
    ORIGINAL = "original"
    NUM_DETS = "num_dets"
    DET_BOXES = "det_boxes"
    DET_SCORES = "det_scores"
    DET_CLASSES = "det_classes"
    #: All four as one row of numbers, in the profile `ensemble`.
    DETECTIONS = "detections"


@dataclass(frozen=True)
class ImageInference:
    """What the models see in one picture; rows are objects, sorted by score, best first.

    width, height: pixels of the upright original
    embedding: float32 [dim], L2-normalised, the centre square of the whole picture
    boxes: float32 [n, 4], xyxy, pixels of the upright original
    scores: float32 [n], 0..1     class_ids: int32 [n], index into the manifest's classes
    object_embeddings: float32 [n, dim], L2-normalised
    """

    width: int
    height: int
    embedding: Float32
    boxes: Float32
    scores: Float32
    class_ids: npt.NDArray[np.int32]
    object_embeddings: Float32


def serving_version(digest: str) -> int:
    """The version under which every model of a manifest is served: 48 bits of its digest, at least 1.

    Triton answers a request that names a version with that version or not at all, so a caller that sends it is never
    answered by other models.
    """
    return max(1, int(digest[:12], 16))


def refused_item_code(message: str) -> tuple[str, str] | None:
    """Split `<code>: <text>` of a refused picture; None where an INVALID_ARGUMENT blames something else.

    Triton answers a caller that names a wrong tensor with the same status, which is no fault of the item.
    """
    match = _REFUSAL.match(message)
    return (match["code"], match["text"]) if match else None
