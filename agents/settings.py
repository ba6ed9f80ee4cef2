"""Settings of the workers; `sightlog config` prints them, `SIGHTLOG_<NAME>` sets them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, PlainSerializer, SecretStr, StringConstraints, field_validator
from pydantic_settings import NoDecode, SettingsConfigDict

from agents.delivery.fair import WaitingLimits
from agents.delivery.retry import Backoff
from agents.delivery.window import WindowLimits
from agents.index.pace import BulkLimits
from agents.sources.settings import SourceSettings
from models.settings import ModelSettings
from sightlog.settings import ENV_PREFIX, MAX_RECORD_BYTES, Settings

_MIB = 1024 * 1024


def _split(value: Any) -> Any:
    return tuple(part.strip() for part in value.split(",")) if isinstance(value, str) else value


#: Written as `host:port[,host:port]` in the environment, in the endpoints of a stack and by `sightlog config`.
Hosts = Annotated[
    tuple[Annotated[str, StringConstraints(pattern=r"^([^\s:,/]+|\[[^\s,/]+\]):\d+$")], ...],
    Field(min_length=1),
    NoDecode,
    BeforeValidator(_split),
    PlainSerializer(",".join, return_type=str, when_used="json"),
]


class IndexSettings(Settings):
    """How the indices are built and searched."""

    model_config = SettingsConfigDict(env_prefix=f"{ENV_PREFIX}INDEX_", frozen=True, extra="ignore")

    images: str = Field("images", description="alias of the image index; the index behind it is images-<digest>")
    objects: str = Field("objects", description="alias of the object index")
    engine: Literal["lucene", "faiss"] = Field(
        "lucene", description="k-NN engine; faiss needs native libraries that only full distributions ship"
    )
    m: int = Field(16, ge=2, le=100, description="HNSW neighbours a node")
    ef_construction: int = Field(512, ge=2, le=4096, description="HNSW beam while building")
    ef_search: int = Field(100, ge=1, le=10_000, description="smallest HNSW beam of a search")
    oversampling: float = Field(1.5, ge=1, le=10, description="HNSW beam of a search for each wanted hit, at least")
    windows_kept: int = Field(
        32, ge=0, description="orders of up to 10,000 hits that a search worker keeps for pages that follow"
    )
    shards: int = Field(2, ge=1)
    replicas: int = Field(1, ge=0, description="copies of each shard; a single node keeps none")
    refresh_interval: str = Field(
        "1s", description="how often new documents become searchable; shorter makes more HNSW graphs to merge"
    )
    model_change: Literal["refuse", "switch"] = Field(
        "refuse",
        description="what an indexer does at its start when the aliases point to the vectors of another model",
    )
    gc_deletes: str = Field(
        "1h", description="how long a deletion is remembered; afterwards a stale write could bring the document back"
    )


class AgentSettings(ModelSettings):
    """What the vision, indexer and search workers need to know."""

    triton: Hosts = Field(
        ("127.0.0.1:18001",), description="gRPC endpoints of Triton, host:port[,host:port]; all serve the same models"
    )
    triton_heal: bool = Field(
        True,
        description="have Triton load a model anew whose process stays dead; it needs --model-control-mode=explicit",
    )
    client_id: str = Field("sightlog", description="name of this process among the members of its Kafka group")
    opensearch: str = Field("http://127.0.0.1:19200", description="URL of OpenSearch")
    index: IndexSettings = Field(default_factory=IndexSettings)

    allowed_folders: tuple[Path, ...] | None = Field(
        None,
        description='folders that file: references may point into, as JSON ["/a","/b"]; <data_dir>/uploads by default',
    )
    max_image_bytes: int = Field(32 * _MIB, gt=0, description="size of a file above which it becomes a dead letter")
    dead_letter_inline_limit: int = Field(
        4 * _MIB, ge=0, le=MAX_RECORD_BYTES // 2, description="bytes up to which a dead letter carries the value"
    )

    vision_unacked: int = Field(64, gt=0, description="events held un-acknowledged by a vision worker")
    vision_unacked_bytes: int = Field(64 * _MIB, gt=0, description="their values' bytes")
    vision_concurrency: int = Field(16, gt=0, description="images in inference at once; fills Triton's batches")
    inference_timeout: float = Field(
        120.0, gt=0, description="seconds for one image in Triton, queueing included; large models on CPU need them"
    )

    indexer_unacked: int = Field(1024, gt=0)
    indexer_unacked_bytes: int = Field(64 * _MIB, gt=0)
    indexer_concurrency: int = Field(
        16, gt=0, description="bulk requests at once; each waits for a refresh, so with the batch it bounds images/s"
    )
    indexer_batch: int = Field(64, gt=0, description="images in a bulk request")
    indexer_linger: float = Field(0.1, ge=0, description="seconds that a bulk request waits for more images")
    indexer_bulk_bytes: int = Field(
        8 * _MIB,
        gt=0,
        le=64 * _MIB,
        description="bytes of a bulk request; this, the batch and the concurrency shrink while OpenSearch answers 429",
    )

    search_concurrency: int = Field(32, gt=0, description="requests answered at once")
    search_unacked: int = Field(
        10_000, gt=0, description="requests held un-acknowledged: how far one caller's burst is looked behind"
    )
    search_unacked_bytes: int = Field(64 * _MIB, gt=0, description="their values' bytes")
    search_waiting: int = Field(
        500, gt=0, description="requests that one caller may have waiting; the rest is answered too_many_requests"
    )
    search_waiting_bytes: int = Field(16 * _MIB, gt=0, description="their values' bytes")
    search_megapixels: float = Field(128.0, gt=0, description="of query pictures in Triton at once; a larger one alone")
    text_cache: int = Field(1000, ge=0, description="texts whose vectors a search worker keeps; 0: none")
    metrics_port: int | None = Field(
        None, ge=1, le=65535, description="where a search worker serves /metrics to Prometheus; not set: nowhere"
    )
    reply_topics: str = Field(
        r"search\.replies(\..+)?", description="pattern of the topics that a request may have its reply written to"
    )
    search_deadline: float = Field(5.0, gt=0, description="seconds for a request that brings no deadline")

    cursor_key: SecretStr | None = Field(
        None,
        min_length=16,
        description="secret that all search workers sign cursors with; by default <data_dir>/cursor.key, made once",
    )
    cursor_lifetime: float = Field(
        300.0, gt=0, le=86_400, description="seconds that a cursor is good for; for as long the index keeps what it saw"
    )

    retry_first: float = Field(0.1, gt=0, description="first pause in seconds when a dependency is down")
    retry_limit: float = Field(5.0, gt=0, description="longest pause in seconds")
    session_timeout: float = Field(10.0, gt=0, description="seconds until a dead worker's partitions move on")
    rebalance_timeout: float = Field(
        30.0,
        gt=0,
        description="seconds that a group waits for its workers when one joins; work may last longer",
    )
    fetch_bytes: int = Field(
        4 * _MIB,
        gt=0,
        le=16 * _MIB,
        description="bytes read ahead of each partition; at least one record",
    )
    vision_megapixels: float = Field(
        256.0,
        gt=0,
        description="of the pictures that one vision worker has in Triton at once; a larger one is alone",
    )
    reuse_bytes: int = Field(
        32 * _MIB,
        ge=0,
        description="results of the last pictures that a vision worker keeps for the same bytes again; 0: infer always",
    )
    reuse_lookup: bool = Field(True, description="ask the index, too, for what was seen in the same bytes before")

    sources: SourceSettings = Field(default_factory=SourceSettings)

    @property
    def folders(self) -> tuple[Path, ...]:
        """Folders that `file:` references may point into."""
        return (self.uploads_dir,) if self.allowed_folders is None else self.allowed_folders

    @field_validator("reply_topics")
    @classmethod
    def _is_a_pattern(cls, value: str) -> str:
        try:
            re.compile(value)
        except re.error as error:
            raise ValueError(f"not a regular expression: {error}") from None
        return value

    @property
    def backoff(self) -> Backoff:
        return Backoff(first=self.retry_first, limit=self.retry_limit)

    @property
    def vision_window(self) -> WindowLimits:
        return WindowLimits(self.vision_unacked, self.vision_unacked_bytes, self.vision_concurrency)

    @property
    def indexer_window(self) -> WindowLimits:
        return WindowLimits(
            self.indexer_unacked,
            self.indexer_unacked_bytes,
            self.indexer_concurrency,
            batch=self.indexer_batch,
            linger=self.indexer_linger,
        )

    @property
    def bulk_limits(self) -> BulkLimits:
        return BulkLimits(self.indexer_batch, self.indexer_bulk_bytes, self.indexer_concurrency)

    @property
    def search_window(self) -> WindowLimits:
        return WindowLimits(self.search_unacked, self.search_unacked_bytes, self.search_concurrency)

    @property
    def search_waiting_limits(self) -> WaitingLimits:
        return WaitingLimits(self.search_waiting, self.search_waiting_bytes)
