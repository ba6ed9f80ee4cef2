"""Triton model configurations: typed objects that turn into the protobuf text of a config.pbtxt."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2 as pb

from models.decoding import DEFAULT_MAX_PIXELS
from models.manifest import ModelManifest
from sightlog.errors import ConfigurationError
from triton_repo import contract
from triton_repo.contract import PARAMETERS, StepTensors


@dataclass(frozen=True)
class ServingSettings:
    """How the repository is run; counts are processes of Triton's python backend, threads are onnxruntime's."""

    preprocess_instances: int = 2
    detector_instances: int = 1
    box_embedder_instances: int = 2  #: one cuts crops while the other waits for the tower
    clip_image_instances: int = 1
    clip_text_instances: int = 1
    model_threads: int = 1
    max_batch_size: int = 8
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


@dataclass(frozen=True)
class TensorSpec:
    """An input or output without its batch dimension; -1 is a length that differs between requests."""

    name: str
    dtype: str
    dims: tuple[int, ...]
    ragged: bool = False  #: requests with different shapes may share a batch

    def as_input(self) -> pb.ModelInput:
        """Protobuf form."""
        return pb.ModelInput(
            name=self.name,
            data_type=pb.DataType.Value(f"TYPE_{self.dtype}"),
            dims=self.dims,
            allow_ragged_batch=self.ragged,
        )

    def as_output(self) -> pb.ModelOutput:
        """Protobuf form."""
        return pb.ModelOutput(name=self.name, data_type=pb.DataType.Value(f"TYPE_{self.dtype}"), dims=self.dims)


@dataclass(frozen=True)
class QueueLimit:
    """The queue in front of a model that clients reach. Inner steps have none: there it would refuse finished work."""

    max_size: int
    timeout_ms: int


@dataclass(frozen=True)
class PythonModel:
    """A model of the python backend with a dynamic batcher."""

    name: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    max_batch_size: int
    instances: int = 1
    queue_delay_us: int = 0
    queue: QueueLimit | None = None
    parameters: Mapping[str, Any] = field(default_factory=dict)

    def to_protobuf(self) -> pb.ModelConfig:
        """The complete config: Triton is started without auto-completion."""
        config = pb.ModelConfig(
            name=self.name,
            backend="python",
            max_batch_size=self.max_batch_size,
            input=[spec.as_input() for spec in self.inputs],
            output=[spec.as_output() for spec in self.outputs],
            instance_group=[pb.ModelInstanceGroup(count=self.instances, kind=pb.ModelInstanceGroup.KIND_CPU)],
        )
        config.dynamic_batching.max_queue_delay_microseconds = self.queue_delay_us
        if self.queue:
            policy = config.dynamic_batching.default_queue_policy
            policy.max_queue_size = self.queue.max_size
            policy.default_timeout_microseconds = self.queue.timeout_ms * 1000
            policy.timeout_action = pb.ModelQueuePolicy.REJECT
            policy.allow_timeout_override = True
        config.parameters[PARAMETERS].string_value = json.dumps(dict(self.parameters), sort_keys=True)
        return config


@dataclass(frozen=True)
class EnsembleStep:
    """One model of an ensemble; the maps go from the model's tensor name to the ensemble's."""

    model: str
    version: int
    inputs: Mapping[str, str]
    outputs: Mapping[str, str]


@dataclass(frozen=True)
class Ensemble:
    """Models in a row. The order of `steps` is the order in which they run."""

    name: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    max_batch_size: int
    steps: tuple[EnsembleStep, ...]

    def to_protobuf(self) -> pb.ModelConfig:
        """The complete config."""
        return pb.ModelConfig(
            name=self.name,
            platform="ensemble",
            max_batch_size=self.max_batch_size,
            input=[spec.as_input() for spec in self.inputs],
            output=[spec.as_output() for spec in self.outputs],
            ensemble_scheduling=pb.ModelEnsembling(
                step=[
                    pb.ModelEnsembling.Step(
                        model_name=step.model,
                        model_version=step.version,
                        input_map=dict(step.inputs),
                        output_map=dict(step.outputs),
                    )
                    for step in self.steps
                ]
            ),
        )


def to_text(config: pb.ModelConfig) -> str:
    """What goes into config.pbtxt."""
    return str(text_format.MessageToString(config))


def pipeline_models(manifest: ModelManifest, settings: ServingSettings) -> list[PythonModel | Ensemble]:
    """Every model of the repository; all dimensions come from the manifest."""
    side, rows = manifest.clip.image_size, manifest.detector.max_detections
    canvas, dim = manifest.detector.input_size, manifest.clip.dim
    image = TensorSpec(contract.IMAGE, "STRING", (1,))
    size = TensorSpec(contract.IMAGE_SIZE, "INT32", (2,))
    letterboxed = TensorSpec(StepTensors.LETTERBOXED, "UINT8", (canvas, canvas, 3))
    centre = TensorSpec(StepTensors.CENTRE, "UINT8", (side, side, 3))
    original = TensorSpec(StepTensors.ORIGINAL, "UINT8", (-1, -1, 3), ragged=True)
    found = (
        TensorSpec(StepTensors.NUM_DETS, "INT32", (1,)),
        TensorSpec(StepTensors.DET_BOXES, "FP32", (rows, 4)),
        TensorSpec(StepTensors.DET_SCORES, "FP32", (rows,)),
        TensorSpec(StepTensors.DET_CLASSES, "INT32", (rows,)),
    )
    results = (
        TensorSpec(contract.IMAGE_EMBEDDING, "FP32", (dim,)),
        TensorSpec(contract.BOXES, "FP32", (-1, 4)),
        TensorSpec(contract.SCORES, "FP32", (-1,)),
        TensorSpec(contract.CLASS_IDS, "INT32", (-1,)),
        TensorSpec(contract.OBJECT_EMBEDDINGS, "FP32", (-1, dim)),
    )
    crops = TensorSpec(contract.CROPS, "UINT8", (side, side, 3))
    tokens = TensorSpec(contract.TOKENS, "INT64", (manifest.clip.context_length,))
    vector = TensorSpec(contract.EMBEDDING, "FP32", (dim,))
    batch = settings.max_batch_size
    limit = QueueLimit(settings.max_queue_size, settings.queue_timeout_ms)
    threads = {"model_threads": settings.model_threads}

    def step(model: str, inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...]) -> EnsembleStep:
        """A step whose tensors keep their names."""
        version = contract.serving_version(manifest.digest)
        return EnsembleStep(model, version, {t.name: t.name for t in inputs}, {t.name: t.name for t in outputs})

    def model(name: str, inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...], **rest: Any) -> PythonModel:
        given: dict[str, Any] = {
            "max_batch_size": batch,
            "queue_delay_us": settings.queue_delay_us,
            "parameters": threads,
        } | rest
        return PythonModel(name, inputs, outputs, **given)

    prepared = (letterboxed, centre, original, size)
    embedded = (centre, original, size, *found)
    return [
        model(
            contract.PREPROCESS,
            (image,),
            prepared,
            instances=settings.preprocess_instances,
            queue=limit,
            parameters={"max_pixels": settings.max_pixels},
        ),
        model(contract.DETECTOR, (letterboxed,), found, instances=settings.detector_instances),
        model(contract.BOX_EMBEDDER, embedded, results, instances=settings.box_embedder_instances),
        # One call brings the crops of a whole batch of pictures, each with its global view and all its objects.
        model(
            contract.CLIP_IMAGE,
            (crops,),
            (vector,),
            instances=settings.clip_image_instances,
            max_batch_size=batch * (1 + rows),
        ),
        model(contract.CLIP_TEXT, (tokens,), (vector,), instances=settings.clip_text_instances, queue=limit),
        Ensemble(
            contract.IMAGE_PIPELINE,
            (image,),
            (*results, size),
            batch,
            (
                step(contract.PREPROCESS, (image,), prepared),
                step(contract.DETECTOR, (letterboxed,), found),
                step(contract.BOX_EMBEDDER, embedded, results),
            ),
        ),
    ]
