"""What `sightlog tune` found best on this machine: a file in the data folder that the stack and the workers read."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sightlog.atomic_write import write_atomically
from sightlog.errors import ConfigurationError

if TYPE_CHECKING:
    from triton_repo.serving_settings import ServingSettings

TUNING_FILE = "tuning.json"
_GPUS = Path("/proc/driver/nvidia/gpus")


class TuningError(ConfigurationError):
    """The file cannot be read, or holds settings that this release does not know."""


@dataclass(frozen=True)
class Tuning:
    """Settings that differ from the defaults, by their names, and what they were measured on."""

    machine: str
    digest: str  #: of the model manifest
    profile: str
    serving: Mapping[str, int] = field(default_factory=dict)  #: of ServingSettings
    gpu: Mapping[str, Any] = field(default_factory=dict)  #: of GpuSettings
    vision_concurrency: int | None = None  #: images that a vision worker keeps in Triton
    measured: tuple[Mapping[str, Any], ...] = ()  #: every candidate with its figures, in order

    def serving_settings(self) -> ServingSettings:
        """Raises TuningError."""
        from triton_repo.serving_settings import ServingSettings

        try:
            return ServingSettings(**self.serving)  # type: ignore[arg-type]
        except TypeError as error:
            raise TuningError(
                f"{TUNING_FILE} holds a setting of another release ({error}); run `sightlog tune` again"
            ) from None


def load_tuning(data_dir: Path, digest: str, profile: str) -> Tuning | None:
    """What was tuned for these models, this profile and this machine; None where nothing was. Raises TuningError."""
    path = data_dir / TUNING_FILE
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        tuning = _tuning(document)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise TuningError(f"{path} cannot be read ({error}); remove it, or run `sightlog tune` again") from None
    fits = (tuning.machine, tuning.digest, tuning.profile) == (machine_id(), digest, profile)
    return tuning if fits else None


def save_tuning(data_dir: Path, tuning: Tuning) -> Path:
    """Write the file, whole or not at all, and return its path."""
    values = asdict(tuning)
    document = {
        **{name: values[name] for name in ("machine", "digest", "profile", "serving", "gpu")},
        "agents": {} if tuning.vision_concurrency is None else {"vision_concurrency": tuning.vision_concurrency},
        "measured": list(values["measured"]),
    }
    path = data_dir / TUNING_FILE
    write_atomically(path, json.dumps(document, indent=2) + "\n")
    return path


def machine_id() -> str:
    """Processor, cores and GPUs: on another machine other settings are best."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    processor = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")
    return ", ".join([processor, f"{len(os.sched_getaffinity(0))} cores", *_gpus()])


def _gpus() -> list[str]:
    names = []
    for file in sorted(_GPUS.glob("*/information")):
        lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
        names += [line.partition(":")[2].strip() for line in lines if line.startswith("Model:")]
    return names


def _tuning(document: Mapping[str, Any]) -> Tuning:
    return Tuning(
        machine=str(document["machine"]),
        digest=str(document["digest"]),
        profile=str(document["profile"]),
        serving={str(name): int(value) for name, value in dict(document["serving"]).items()},
        gpu=dict(document["gpu"]),
        vision_concurrency=dict(document["agents"]).get("vision_concurrency"),
        measured=tuple(document["measured"]),
    )
