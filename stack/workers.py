"""The Faust workers as supervised processes: `sightlog worker NAME`."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping

from confluent_kafka import ConsumerGroupState, KafkaException

from stack.artifacts import Artifact
from stack.component import Launch, Progress, Usage
from stack.kafka import admin_client
from stack.ports import Endpoints
from stack.settings import StackSettings


class Worker:
    """One worker; its consumer group is `sightlog-<name>`."""

    ports: Mapping[str, int] = {}

    def __init__(self, settings: StackSettings, worker: str) -> None:
        self._settings, self._worker = settings, worker
        self._endpoints = Endpoints.of(settings)
        self.name = f"worker-{worker}"
        self.group = f"sightlog-{worker}"
        self.usage = Usage(memory_mb=150)
        self.ready_timeout_s = settings.worker_ready_timeout_s

    def artifacts(self) -> Mapping[str, tuple[Artifact, ...]]:
        """Nothing to download."""
        return {}

    def prepare(self, progress: Progress) -> None:
        """Make its working folder."""
        (self._settings.data_dir / "workers" / self._worker).mkdir(parents=True, exist_ok=True)

    def launch(self) -> Launch:
        """The same interpreter, with the caller's environment and the addresses of this stack."""
        env = {
            **os.environ,
            "SIGHTLOG_KAFKA": self._endpoints.kafka,
            "SIGHTLOG_TRITON": self._endpoints.triton_grpc,
            "SIGHTLOG_OPENSEARCH": self._endpoints.opensearch,
            "SIGHTLOG_DATA_DIR": str(self._settings.data_dir),
            # All workers of this stack run one model, which `sightlog models use` changes on purpose.
            "SIGHTLOG_INDEX_MODEL_CHANGE": "switch",
            "PYTHONUNBUFFERED": "1",
        }
        if self._settings.models is not None:
            env["SIGHTLOG_MODELS"] = str(self._settings.models)
        command = (sys.executable, "-m", "sightlog", "worker", self._worker)
        return Launch(command, env, self._settings.data_dir / "workers" / self._worker)

    def unready(self) -> str | None:
        """Ready when its consumer group is stable and somebody in it has partitions."""
        admin = admin_client(self._endpoints.kafka)
        try:
            group = admin.describe_consumer_groups([self.group], request_timeout=2)[self.group].result(timeout=3)
        except KafkaException as error:
            return f"group {self.group}: {error.args[0].str()}"
        assigned = any(member.assignment.topic_partitions for member in group.members)
        if group.state == ConsumerGroupState.STABLE and assigned:
            return None
        return f"group {self.group} is {group.state.name.lower()}"

    def damage(self, pid: int) -> str | None:
        """A worker ends by itself when its work breaks."""
        return None

    def clean(self) -> None:
        """Leaves nothing outside the data folder."""
