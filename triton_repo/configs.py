"""The served models: their tensors, how they are batched and queued, and what runs them in each profile."""

from __future__ import annotations

import functools
import io
import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal

from PIL import Image

from models.decoding import DEFAULT_MAX_PIXELS
from models.manifest import ModelManifest
from sightlog.errors import ConfigurationError
from triton_repo import contract
from triton_repo.contract import PARAMETERS, StepTensors
from triton_repo.model_config import (
    DALI,
    ONNXRUNTIME,
    PYTHON,
    TENSORRT,
    Ensemble,
    EnsembleStep,
    Model,
    QueueLimit,
    Runtime,
    SampleFile,
    TensorSpec,
)

#: `cpu`: the python backend throughout. The others are for NVIDIA's container, with a GPU.
Profile = Literal["cpu", "onnxruntime", "tensorrt"]
_NETWORKS: Mapping[Profile, Runtime] = {"cpu": PYTHON, "onnxruntime": ONNXRUNTIME, "tensorrt": TENSORRT}


@dataclass(frozen=True)
class ServingSettings:
    """How the repository is run; counts are processes of Triton's python backend, threads are onnxruntime's."""

    preprocess_instances: int = 2
    detector_instances: int = 1
    box_embedder_instances: int = 2  #: one cuts crops while the other waits for the tower
    clip_image_instances: int = 1
    clip_text_instances: int = 1
    model_threads: int = 1
    dali_threads: int = 4  #: that prepare what the GPU decodes
    max_batch_size: int = 8
    #: Crops that the image tower takes at once, which bounds its memory; a batch of pictures may bring more.
    max_crops: int = 128
    #: Every step waits this long in full when there is little to do; under load batches fill without it.
    queue_delay_us: int = 0
    #: Requests that may wait at the entrance; one more is answered UNAVAILABLE at once.
    max_queue_size: int = 256
    #: After this time at the entrance a request is answered UNAVAILABLE; 0 lets it wait as long as its caller does.
    queue_timeout_ms: int = 30_000
    max_pixels: int = DEFAULT_MAX_PIXELS  #: larger pictures are refused before they are decoded

    def __post_init__(self) -> None:
        for spec in fields(self):
            least = 0 if spec.name in {"queue_delay_us", "queue_timeout_ms", "max_queue_size"} else 1
            if getattr(self, spec.name) < least:
                raise ConfigurationError(
                    f"serving setting {spec.name} is {getattr(self, spec.name)}; it must be {least} or more"
                )


class _Tensors:
    """The tensors of the pipeline; all dimensions come from the manifest."""

    def __init__(self, manifest: ModelManifest) -> None:
        side, canvas = manifest.clip.image_size, manifest.detector.input_size
        rows, dim = manifest.detector.max_detections, manifest.clip.dim
        # Bytes of a file. Not STRING, which Triton's DALI backend cannot read; ragged, because files differ in length.
        self.image = TensorSpec(contract.IMAGE, "UINT8", (-1,), ragged=True)
        self.dali_image = TensorSpec(StepTensors.DALI_IMAGE, "UINT8", (-1,), ragged=True)
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


def pipeline_models(
    manifest: ModelManifest, settings: ServingSettings, profile: Profile = "cpu"
) -> list[Model | Ensemble]:
    """Every model of the repository; one that is in several profiles has the same tensors in all of them."""
    tensors, network = _Tensors(manifest), _NETWORKS[profile]
    threads = {"model_threads": settings.model_threads}
    steps = [
        *_preparation(tensors, settings, dali=network.gpu),
        _model(
            settings,
            contract.DETECTOR,
            (tensors.letterboxed,),
            tensors.found,
            settings.detector_instances,
            threads,
            network,
        ),
        _model(
            settings,
            contract.BOX_EMBEDDER,
            tensors.embedded,
            tensors.results,
            settings.box_embedder_instances,
            {"max_crops": settings.max_crops},
            warmup=None,  # it would call the image tower, which may not be there yet
        ),
    ]
    return [
        *steps,
        _model(
            settings,
            contract.CLIP_IMAGE,
            (tensors.crops,),
            (tensors.vector,),
            settings.clip_image_instances,
            threads,
            network,
            max_batch_size=settings.max_crops,
        ),
        _model(
            settings,
            contract.CLIP_TEXT,
            (tensors.tokens,),
            (tensors.vector,),
            settings.clip_text_instances,
            threads,
            network,
            queue=_entrance(settings),
            # People repeat their queries. Pictures hardly come twice, and to look for one hashes megabytes.
            cached=True,
        ),
        Ensemble(
            contract.IMAGE_PIPELINE,
            (tensors.image,),
            (*tensors.results, tensors.size),
            settings.max_batch_size,
            tuple(_step(model, contract.serving_version(manifest.digest), dali=network.gpu) for model in steps),
        ),
    ]


def _preparation(tensors: _Tensors, settings: ServingSettings, *, dali: bool) -> list[Model]:
    """From the bytes of a file to the views of a picture; before DALI a step that refuses what it cannot take."""
    sample = {contract.IMAGE: SampleFile("picture.jpg", _picture())}
    entrance = functools.partial(
        _model,
        settings,
        instances=settings.preprocess_instances,
        parameters={"max_pixels": settings.max_pixels},
        queue=_entrance(settings),
        warmup=sample,
    )
    if not dali:
        return [entrance(contract.PREPROCESS, (tensors.image,), tensors.prepared)]
    return [
        entrance(contract.DALI_READY, (tensors.image,), (tensors.dali_image,)),
        Model(
            contract.PREPROCESS,
            (tensors.image,),
            tensors.prepared,
            settings.max_batch_size,
            DALI,
            queue_delay_us=settings.queue_delay_us,
            parameters={"num_threads": str(settings.dali_threads)},
            warmup=sample,
        ),
    ]


def _model(
    settings: ServingSettings,
    name: str,
    inputs: tuple[TensorSpec, ...],
    outputs: tuple[TensorSpec, ...],
    instances: int,
    parameters: Mapping[str, int],
    runtime: Runtime = PYTHON,
    **rest: Any,
) -> Model:
    """A model of ours; `instances` and `parameters` count where Python runs it, a GPU has one instance."""
    given: dict[str, Any] = {
        "max_batch_size": settings.max_batch_size,
        "queue_delay_us": settings.queue_delay_us,
        "runtime": runtime,
    }
    if runtime == PYTHON:
        given |= {"instances": instances, "parameters": {PARAMETERS: json.dumps(parameters)}}
    return Model(name, inputs, outputs, **(given | rest))


def _entrance(settings: ServingSettings) -> QueueLimit:
    return QueueLimit(settings.max_queue_size, settings.queue_timeout_ms)


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
def _picture() -> bytes:
    """A JPEG of ordinary size."""
    buffer = io.BytesIO()
    Image.linear_gradient("L").resize((640, 480)).convert("RGB").save(buffer, "JPEG")
    return buffer.getvalue()
