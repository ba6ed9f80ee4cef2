"""What the configs of all profiles share: the tensors, the queue at the entrance, the row of steps."""

from __future__ import annotations

import functools
import io
from collections.abc import Sequence

from PIL import Image

from models.manifest import ModelManifest
from triton_repo import contract
from triton_repo.contract import StepTensors
from triton_repo.model_config import Ensemble, EnsembleStep, Model, QueueLimit, TensorSpec
from triton_repo.serving_settings import ServingSettings


class Tensors:
    """The tensors of the pipeline; all dimensions come from the manifest."""

    def __init__(self, manifest: ModelManifest) -> None:
        side, canvas = manifest.clip.image_size, manifest.detector.input_size
        rows, dim = manifest.detector.max_detections, manifest.clip.dim
        # Bytes of a file. Not STRING, which Triton's DALI backend cannot read; ragged, because files differ in length.
        self.image = TensorSpec(contract.IMAGE, "UINT8", (-1,), ragged=True)
        self.dali_image = TensorSpec(StepTensors.DALI_IMAGE, "UINT8", (-1,), ragged=True)
        self.dali_pixels = TensorSpec(StepTensors.DALI_PIXELS, "INT64", (1,))
        self.size = TensorSpec(contract.IMAGE_SIZE, "INT32", (2,))
        self.letterboxed = TensorSpec(StepTensors.LETTERBOXED, "UINT8", (canvas, canvas, 3))
        self.centre = TensorSpec(StepTensors.CENTRE, "UINT8", (side, side, 3))
        self.original = TensorSpec(StepTensors.ORIGINAL, "UINT8", (-1, -1, 3), ragged=True)
        self.prepared = (self.letterboxed, self.centre, self.original, self.size)
        self.found = (
            TensorSpec(StepTensors.NUM_DETS, "INT32", (1,)),
            TensorSpec(StepTensors.DET_BOXES, "FP32", (rows, 4)),
            TensorSpec(StepTensors.DET_SCORES, "FP32", (rows,)),
            TensorSpec(StepTensors.DET_CLASSES, "INT32", (rows,)),
        )
        self.detections = TensorSpec(StepTensors.DETECTIONS, "FP32", (1 + 6 * rows,))
        self.embedded = (self.centre, self.original, self.size, *self.found)
        self.results = (
            TensorSpec(contract.IMAGE_EMBEDDING, "FP32", (dim,)),
            TensorSpec(contract.BOXES, "FP32", (-1, 4)),
            TensorSpec(contract.SCORES, "FP32", (-1,)),
            TensorSpec(contract.CLASS_IDS, "INT32", (-1,)),
            TensorSpec(contract.OBJECT_EMBEDDINGS, "FP32", (-1, dim)),
        )
        self.crops = TensorSpec(contract.CROPS, "UINT8", (side, side, 3))
        self.tokens = TensorSpec(contract.TOKENS, "INT64", (manifest.clip.context_length,))
        self.vector = TensorSpec(contract.EMBEDDING, "FP32", (dim,))


def entrance(settings: ServingSettings) -> QueueLimit:
    """Of the models that clients ask."""
    return QueueLimit(settings.max_queue_size, settings.queue_timeout_ms)


def in_a_row(
    tensors: Tensors, steps: Sequence[Model], max_batch_size: int, version: int, *, dali: bool = False
) -> Ensemble:
    """`image_pipeline` as an ensemble. Linear: with parallel branches a cancelled request ends Triton."""
    return Ensemble(
        contract.IMAGE_PIPELINE,
        (tensors.image,),
        (*tensors.results, tensors.size),
        max_batch_size,
        tuple(_step(model, version, dali=dali) for model in steps),
    )


def _step(model: Model, version: int, *, dali: bool) -> EnsembleStep:
    """A step whose tensors keep their names; with DALI, the picture that it prepares is the one made ready for it."""
    renamed = {contract.IMAGE: StepTensors.DALI_IMAGE} if dali and model.name == contract.PREPROCESS else {}
    return EnsembleStep(
        model.name,
        version,
        {spec.name: renamed.get(spec.name, spec.name) for spec in model.inputs},
        {spec.name: spec.name for spec in model.outputs},
    )


@functools.cache
def sample_picture() -> bytes:
    """A JPEG of ordinary size."""
    buffer = io.BytesIO()
    Image.linear_gradient("L").resize((640, 480)).convert("RGB").save(buffer, "JPEG")
    return buffer.getvalue()
