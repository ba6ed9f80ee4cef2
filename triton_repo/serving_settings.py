"""How a model repository is run: counts, batches, queues, limits."""

from __future__ import annotations

from dataclasses import dataclass, field, fields

from models.decoding import DEFAULT_MAX_PIXELS
from sightlog.errors import ConfigurationError
from triton_repo.gpu_settings import GpuSettings


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
    #: For fault tests: SHA-256 of files at which `preprocess` ends its process instead of decoding them.
    crash_on: tuple[str, ...] = ()
    gpus: tuple[int, ...] = (0,)  #: on which the GPU profiles have an instance each
    gpu: GpuSettings = field(default_factory=GpuSettings)

    def __post_init__(self) -> None:
        if not self.gpus:
            raise ConfigurationError("serving setting gpus is empty; name at least one")
        for spec in fields(self):
            if spec.name in {"crash_on", "gpu", "gpus"}:
                continue
            least = 0 if spec.name in {"queue_delay_us", "queue_timeout_ms", "max_queue_size"} else 1
            if getattr(self, spec.name) < least:
                raise ConfigurationError(
                    f"serving setting {spec.name} is {getattr(self, spec.name)}; it must be {least} or more"
                )
