"""Models of a Triton repository as typed objects, which turn into the protobuf text of a config.pbtxt."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2 as pb


@dataclass(frozen=True)
class TensorSpec:
    """An input or output without its batch dimension; -1 is a length that differs between requests."""

    name: str
    dtype: str
    dims: tuple[int, ...]
    ragged: bool = False  #: requests with different shapes may share a batch

    @property
    def data_type(self) -> int:
        """`dtype` as the number that protobuf has for it."""
        return int(pb.DataType.Value(f"TYPE_{self.dtype}"))

    def as_input(self) -> pb.ModelInput:
        """Protobuf form."""
        return pb.ModelInput(name=self.name, data_type=self.data_type, dims=self.dims, allow_ragged_batch=self.ragged)

    def as_output(self) -> pb.ModelOutput:
        """Protobuf form."""
        return pb.ModelOutput(name=self.name, data_type=self.data_type, dims=self.dims)


@dataclass(frozen=True)
class Runtime:
    """What executes a model."""

    backend: str = ""
    platform: str = ""
    gpu: bool = False


PYTHON = Runtime(backend="python")
PYTHON_GPU = Runtime(backend="python", gpu=True)
DALI = Runtime(backend="dali", gpu=True)
ONNXRUNTIME = Runtime(platform="onnxruntime_onnx", gpu=True)
TENSORRT = Runtime(platform="tensorrt_plan", gpu=True)


@dataclass(frozen=True)
class QueueLimit:
    """The queue in front of a model that clients reach. Inner steps have none: there it would refuse finished work."""

    max_size: int
    timeout_ms: int


@dataclass(frozen=True)
class SampleFile:
    """Bytes for an input of one dimension that zeros would not be valid for."""

    name: str
    content: bytes


@dataclass(frozen=True)
class Model:
    """A model with a dynamic batcher."""

    name: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    max_batch_size: int
    runtime: Runtime = PYTHON
    instances: int = 1  #: on a GPU: on each GPU
    gpus: tuple[int, ...] = ()  #: which; empty: all
    queue_delay_us: int = 0
    queue: QueueLimit | None = None
    parameters: Mapping[str, str] = field(default_factory=dict)
    #: Whether an instance runs a request before it counts as ready: these files, zeros for all other inputs.
    warmup: Mapping[str, SampleFile] | None = field(default_factory=dict)
    source: str = ""  #: folder of its model.py, if that is not its name
    cached: bool = False  #: a server with a response cache may answer a repeated request from it

    def to_protobuf(self) -> pb.ModelConfig:
        """The complete config: Triton is started without auto-completion."""
        kind = pb.ModelInstanceGroup.KIND_GPU if self.runtime.gpu else pb.ModelInstanceGroup.KIND_CPU
        config = pb.ModelConfig(
            name=self.name,
            backend=self.runtime.backend,
            platform=self.runtime.platform,
            max_batch_size=self.max_batch_size,
            input=[spec.as_input() for spec in self.inputs],
            output=[spec.as_output() for spec in self.outputs],
            instance_group=[pb.ModelInstanceGroup(count=self.instances, kind=kind, gpus=self.gpus)],
            model_warmup=[] if self.warmup is None else self._warmup(self.warmup),
        )
        config.dynamic_batching.max_queue_delay_microseconds = self.queue_delay_us
        if self.queue:
            policy = config.dynamic_batching.default_queue_policy
            policy.max_queue_size = self.queue.max_size
            policy.default_timeout_microseconds = self.queue.timeout_ms * 1000
            policy.timeout_action = pb.ModelQueuePolicy.REJECT
            policy.allow_timeout_override = True
        if self.cached:
            config.response_cache.enable = True
        for name, value in self.parameters.items():
            config.parameters[name].string_value = value
        return config

    def _warmup(self, files: Mapping[str, SampleFile]) -> list[pb.ModelWarmup]:
        inputs = {}
        for spec in self.inputs:
            file = files.get(spec.name)
            inputs[spec.name] = (
                pb.ModelWarmup.Input(data_type=spec.data_type, dims=[len(file.content)], input_data_file=file.name)
                if file
                else pb.ModelWarmup.Input(data_type=spec.data_type, dims=spec.dims, zero_data=True)
            )
        # A GPU allocates and tunes for what it is given, so it is given the largest batch too.
        sizes = (1, self.max_batch_size) if self.runtime.gpu else (1,)
        return [pb.ModelWarmup(name=f"batch of {size}", batch_size=size, inputs=inputs) for size in sizes]


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
