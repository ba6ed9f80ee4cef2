"""How the GPU profiles run; `sightlog tune` chooses these by measurement. Needs no GPU to be read."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Literal

from sightlog.errors import ConfigurationError


@dataclass(frozen=True)
class GpuSettings:
    """Sizes and limits of one GPU's pipeline."""

    device: Literal["cuda", "cpu"] = "cuda"  #: cpu: the same code without graphs, for tests
    batch: int = 32  #: pictures decoded and looked at together
    decode_ahead: int = 2  #: batches in DALI
    dali_threads: int = 8
    #: Decoded pixels of the originals of one batch, in millions; larger pictures make smaller batches.
    batch_megapixels: int = 160
    #: Batches that are captured; one of 1 would be compiled for itself.
    detector_sizes: tuple[int, ...] = (2, 8, 32)
    tower_sizes: tuple[int, ...] = (11, 44, 88, 176, 352)
    text_sizes: tuple[int, ...] = (1, 8)
    crops: int = 1024  #: that one slot holds
    slots: int = 4  #: batches between their crops and their answers
    compiled: bool = True
    memory_mb: int = 0  #: most that PyTorch may take in a process; 0: all there is
    # Of the profile `ensemble`, whose steps are processes:
    preprocess_instances: int = 2  #: one reads requests while the other waits for DALI
    box_embedder_instances: int = 2  #: one cuts crops while the other waits for the tower
    #: Of the server, for tensors between the steps. Those that do not fit go through the host: 64 MB, Triton's default,
    #: halved the throughput, and each 1080p picture under way takes 8.
    pool_mb: int = 6144

    def __post_init__(self) -> None:
        if self.device not in ("cuda", "cpu"):
            raise ConfigurationError(f"GPU setting device is {self.device!r}; it must be 'cuda' or 'cpu'")
        for spec in fields(self):
            value = getattr(self, spec.name)
            numbers = value if isinstance(value, tuple) else (value,)
            kind = str if spec.name == "device" else bool if spec.name == "compiled" else int
            if isinstance(value, tuple) != isinstance(spec.default, tuple) or any(
                type(one) is not kind for one in numbers
            ):
                raise ConfigurationError(f"GPU setting {spec.name} is {value!r}; it must be like {spec.default!r}")
            least = 0 if spec.name == "memory_mb" else 1
            if kind is int and (not numbers or min(numbers) < least):
                raise ConfigurationError(f"GPU setting {spec.name} is {value}; it must be {least} or more")
        if self.slots < self.decode_ahead + 2:
            # Each batch in DALI holds one, and one whose crops need more waits for another.
            raise ConfigurationError(f"GPU setting slots is {self.slots}; it must be decode_ahead + 2 or more")

    @property
    def batch_pixels(self) -> int:
        """`batch_megapixels` as a number of pixels."""
        return self.batch_megapixels * 1_000_000

    @staticmethod
    def from_json(values: dict[str, object]) -> GpuSettings:
        """From what `dataclasses.asdict` made; lists become tuples."""
        try:
            return GpuSettings(**{key: tuple(v) if isinstance(v, list) else v for key, v in values.items()})  # type: ignore[arg-type]
        except TypeError as error:
            known = ", ".join(spec.name for spec in fields(GpuSettings))
            raise ConfigurationError(f"unknown GPU setting ({error}); there are: {known}") from None
