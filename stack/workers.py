"""The Faust workers as supervised processes: `sightlog worker NAME`."""

from __future__ import annotations

import os
import sys
import uuid
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from confluent_kafka import ConsumerGroupState, KafkaException

from models.manifest import load_manifest
from models.settings import chosen_folder
from sightlog.settings import Topics
from stack.artifacts import Artifact
from stack.component import Launch, Progress, Usage
from stack.kafka import DEFAULT_TOPICS, TopicSpec, admin_client, retry_topic
from stack.ports import Endpoints
from stack.settings import StackSettings
from triton_repo.tuning import load_tuning


def workers_of(settings: StackSettings) -> tuple[Worker, ...]:
    """Every worker process of a stack; those of a kind share its topic."""
    if not settings.workers:
        return ()
    processes = {"vision": settings.vision_workers, "indexer": settings.indexer_workers}
    return tuple(
        Worker(settings, name, number)
        for name in settings.worker_names
        for number in range(1, processes.get(name, 1) + 1)
    )


def topics_for(settings: StackSettings) -> tuple[TopicSpec, ...]:
    """The topics as a new stack creates them, with as many partitions for each worker process as for the next."""
    sharing = {"images": settings.vision_workers, "images.embedded": settings.indexer_workers}
    known = {spec.name for spec in DEFAULT_TOPICS}
    tiers = tuple(retry_topic(name) for name in Topics.load().retry_delays if name not in known)
    return tuple(_divisible(spec, sharing.get(spec.name, 1)) for spec in (*DEFAULT_TOPICS, *tiers))


def _divisible(spec: TopicSpec, by: int) -> TopicSpec:
    return replace(spec, partitions=-(-spec.partitions // by) * by)


class Worker:
    """One process of a worker; the consumer group is `sightlog-<worker>`, whatever the process's number."""

    ports: Mapping[str, int] = {}

    def __init__(self, settings: StackSettings, worker: str, number: int = 1) -> None:
        self._settings, self._worker = settings, worker
        self._endpoints = Endpoints.of(settings)
        self.name = f"worker-{worker}" + (f"-{number}" if number > 1 else "")
        self.group = f"sightlog-{worker}"
        self.usage = Usage(memory_mb=150)
        self.ready_timeout_s = settings.worker_ready_timeout_s
        self._client_id = ""

    def artifacts(self) -> Mapping[str, tuple[Artifact, ...]]:
        """Nothing to download."""
        return {}

    def prepare(self, progress: Progress) -> None:
        """Make its working folder."""
        self._folder.mkdir(parents=True, exist_ok=True)

    def launch(self) -> Launch:
        """The same interpreter, with the caller's environment and the addresses of this stack.

        Without a Triton of its own, the environment says which ones the workers ask.
        """
        # Fresh at each start: the group remembers a killed process for a while, and that one is not this.
        self._client_id = f"{self.name}-{uuid.uuid4().hex[:8]}"
        env = {
            **os.environ,
            "SIGHTLOG_CLIENT_ID": self._client_id,
            "SIGHTLOG_KAFKA": self._endpoints.kafka,
            "SIGHTLOG_OPENSEARCH": self._endpoints.opensearch,
            "SIGHTLOG_DATA_DIR": str(self._settings.data_dir),
            # All workers of this stack run one model, which `sightlog models use` changes on purpose.
            "SIGHTLOG_INDEX_MODEL_CHANGE": "switch",
            "PYTHONUNBUFFERED": "1",
        }
        if "triton" in self._settings.components:
            env["SIGHTLOG_TRITON"] = self._endpoints.triton_grpc
        if self._settings.models is not None:
            env["SIGHTLOG_MODELS"] = str(self._settings.models)
        if self._worker == "vision" and (concurrency := self._tuned_concurrency()):
            env.setdefault("SIGHTLOG_VISION_CONCURRENCY", str(concurrency))
        command = (sys.executable, "-m", "sightlog", "worker", self._worker)
        return Launch(command, env, self._folder)

    def _tuned_concurrency(self) -> int | None:
        """This process's share of what `sightlog tune` found for the models, the profile and the machine."""
        settings = self._settings
        manifest = load_manifest(chosen_folder(settings.data_dir, settings.models))
        tuned = load_tuning(settings.data_dir, manifest.digest, settings.triton_profile)
        if tuned is None or tuned.vision_concurrency is None:
            return None
        return -(-tuned.vision_concurrency // settings.vision_workers)

    def unready(self) -> str | None:
        """Ready when its consumer group is stable and this very process has partitions."""
        admin = admin_client(self._endpoints.kafka)
        try:
            group = admin.describe_consumer_groups([self.group], request_timeout=2)[self.group].result(timeout=3)
        except KafkaException as error:
            return f"group {self.group}: {error.args[0].str()}"
        if group.state != ConsumerGroupState.STABLE:
            return f"group {self.group} is {group.state.name.lower()}"
        mine = [member.assignment.topic_partitions for member in group.members if member.client_id == self._client_id]
        if not mine:
            return f"not in group {self.group} yet"
        if not any(mine):
            held = sum(len(member.assignment.topic_partitions) for member in group.members)
            return f"group {self.group} has {len(group.members)} workers for {held} partitions: run fewer"
        return None

    def damage(self, pid: int) -> str | None:
        """A worker ends by itself when its work breaks."""
        return None

    def clean(self) -> None:
        """Leaves nothing outside the data folder."""

    @property
    def _folder(self) -> Path:
        return self._settings.data_dir / "workers" / self.name.removeprefix("worker-")
