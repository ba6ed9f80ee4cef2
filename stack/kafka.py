"""Apache Kafka as one KRaft node (broker and controller), and the topics of the stack."""

from __future__ import annotations

import base64
import subprocess
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic

from sightlog.atomic_write import write_atomically
from stack import ports
from stack.artifacts import Artifact, ArtifactCache, pinned
from stack.component import Launch, Progress, Usage
from stack.errors import StartError
from stack.java import JavaRuntime
from stack.jvm import LOG4J2_CONSOLE, heap_options, jvm_environment
from stack.settings import HOST, StackSettings

#: An event with its image inline (1 MiB by default) and room for larger limits. Broker and topics alike.
MAX_MESSAGE_BYTES = 8 * 1024 * 1024
_LARGE = {"max.message.bytes": str(MAX_MESSAGE_BYTES)}


@dataclass(frozen=True)
class TopicSpec:
    """A topic as it is created: name, partitions, configuration."""

    name: str
    partitions: int
    config: Mapping[str, str] = field(default_factory=dict)


def retry_topic(name: str) -> TopicSpec:
    """A retry tier."""
    return TopicSpec(name, 1, {**_LARGE, "message.timestamp.type": "LogAppendTime"})


DEFAULT_TOPICS: tuple[TopicSpec, ...] = (
    # The broker's clock orders uploads of all producers and is what freshness is measured from.
    TopicSpec("images", 4, {**_LARGE, "message.timestamp.type": "LogAppendTime"}),
    TopicSpec("images.embedded", 4, _LARGE),
    TopicSpec("images.indexed", 4),
    # A delay counts from the broker's clock; these are the default tiers, see `topics_for`.
    *(retry_topic(name) for name in ("images.retry.10s", "images.retry.1m", "images.retry.10m")),
    # Kept until somebody cleans up: a letter that went with its time would be an event without an end.
    TopicSpec("images.dead", 1, {**_LARGE, "retention.ms": "-1"}),
    TopicSpec("images.dead.closed", 1, {"retention.ms": "-1"}),
    TopicSpec("search.requests", 2),
    TopicSpec("search.replies", 16),
)

_PROPERTIES = """\
process.roles=broker,controller
node.id=1
listeners=PLAINTEXT://{host}:{port},CONTROLLER://{host}:{controller}
advertised.listeners=PLAINTEXT://{host}:{port}
controller.listener.names=CONTROLLER
controller.quorum.voters=1@{host}:{controller}
log.dirs={logs}
auto.create.topics.enable=false
message.max.bytes={max_bytes}
replica.fetch.max.bytes={max_bytes}
# One node: internal topics cannot have more replicas.
offsets.topic.replication.factor=1
offsets.topic.num.partitions=8
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
transaction.state.log.num.partitions=4
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1
share.coordinator.state.topic.num.partitions=4
group.initial.rebalance.delay.ms=0
# After a kill the node may come back only when its old session is over: 9 s by default.
broker.session.timeout.ms=5000
broker.heartbeat.interval.ms=1000
# Small footprint: the cleaner's buffer alone is 128 MB by default, a quarter of the heap.
log.cleaner.dedupe.buffer.size=16777216
num.network.threads=2
num.io.threads=4
background.threads=4
"""


def admin_client(bootstrap: str) -> AdminClient:
    """An AdminClient that retries fast and keeps quiet while the broker is not there yet."""
    config: dict[str, Any] = {
        "bootstrap.servers": bootstrap,
        "log_level": 0,
        "error_cb": lambda _error: None,
        "reconnect.backoff.ms": 50,
        "reconnect.backoff.max.ms": 200,
    }
    return AdminClient(config)


def ensure_topics(bootstrap: str, specs: Iterable[TopicSpec] = DEFAULT_TOPICS, timeout_s: float = 15.0) -> list[str]:
    """Create the topics that are missing and wait until each has a leader; returns the names created.

    An existing topic is left as it is: more partitions would send a key's next event elsewhere.
    Raises confluent_kafka.KafkaException.
    """
    wanted = list(specs)
    admin = admin_client(bootstrap)
    known = admin.list_topics(timeout=timeout_s).topics
    missing = [spec for spec in wanted if spec.name not in known]
    if not missing:
        return []
    new = [NewTopic(s.name, num_partitions=s.partitions, replication_factor=1, config=dict(s.config)) for s in missing]
    for future in admin.create_topics(new, request_timeout=timeout_s, operation_timeout=timeout_s).values():
        try:
            future.result(timeout=timeout_s)
        except KafkaException as error:
            if error.args[0].code() != KafkaError.TOPIC_ALREADY_EXISTS:
                raise
    return [spec.name for spec in missing]


def group_lag(bootstrap: str, group: str, topic: str, timeout_s: float = 15.0) -> int:
    """Records of a topic that a consumer group has not committed yet; a partition without a commit counts in full.

    Raises confluent_kafka.KafkaException.
    """
    consumer = Consumer({"bootstrap.servers": bootstrap, "group.id": group, "enable.auto.commit": False})  # never joins
    try:
        known = consumer.list_topics(topic, timeout_s).topics[topic].partitions
        lag = 0
        for at in consumer.committed([TopicPartition(topic, number) for number in known], timeout_s):
            first, end = consumer.get_watermark_offsets(at, timeout_s)
            lag += end - max(at.offset, first)  # without a commit the offset is negative
        return lag
    finally:
        consumer.close()


def cluster_id(number: uuid.UUID) -> str:
    """As Kafka writes one, but never with - in front, which its storage tool would take for an option."""
    first, *rest = number.bytes
    return base64.urlsafe_b64encode(bytes([first & 0x7F, *rest])).decode().rstrip("=")


class Kafka:
    """The broker as a supervised process."""

    name = "kafka"

    def __init__(
        self,
        settings: StackSettings,
        cache: ArtifactCache,
        java: JavaRuntime,
        topics: tuple[TopicSpec, ...] = DEFAULT_TOPICS,
    ) -> None:
        self._settings, self._cache, self._java, self._topics = settings, cache, java, topics
        self._folder = settings.data_dir / "kafka"
        self._port = settings.port(ports.KAFKA)
        self.ports = {"broker": self._port, "controller": settings.port(ports.KAFKA_CONTROLLER)}
        self.usage = Usage(memory_mb=settings.kafka_heap_mb + 200, data_mb=500)
        self.ready_timeout_s = settings.kafka_ready_timeout_s

    def artifacts(self) -> Mapping[str, tuple[Artifact, ...]]:
        """The broker's jars."""
        return {folder: files for folder, files in pinned().items() if folder == "kafka"}

    def prepare(self, progress: Progress) -> None:
        """Write the configuration; format the log folder once."""
        logs = self._folder / "logs"
        logs.mkdir(parents=True, exist_ok=True)
        text = _PROPERTIES.format(
            host=HOST,
            port=self._port,
            controller=self.ports["controller"],
            logs=logs,
            max_bytes=MAX_MESSAGE_BYTES,
        )
        write_atomically(self._properties, text)
        pattern = "[%d{ISO8601}][%-5p] %m (%c{1})%n"
        write_atomically(self._log4j2, LOG4J2_CONSOLE.format(pattern=pattern))
        if not (logs / "meta.properties").exists():
            progress.message("formatting Kafka's log folder")
            self._format()

    def launch(self) -> Launch:
        """`kafka.Kafka` with G1 limits of the upstream start script, and its classes from an archive of its own."""
        options = (
            "-XX:+UseG1GC",
            "-XX:MaxGCPauseMillis=20",
            "-XX:InitiatingHeapOccupancyPercent=35",
            # Written when the broker first stops; a third less CPU at each later start. Made anew if it does not fit.
            "-XX:+AutoCreateSharedArchive",
            f"-XX:SharedArchiveFile={self._folder / 'classes.jsa'}",
        )
        command = (*self._java_command(*options), "kafka.Kafka", str(self._properties))
        return Launch(command, jvm_environment(self._folder), self._folder)

    def unready(self) -> str | None:
        """Ready when metadata is answered and the topics exist."""
        if not ports.answers(self._port):
            return "no listener yet"
        bootstrap = f"{HOST}:{self._port}"
        try:
            if not admin_client(bootstrap).list_topics(timeout=2).brokers:
                return "no broker in the metadata yet"
            ensure_topics(bootstrap, self._topics)
        except KafkaException as error:
            return f"not answering yet: {error.args[0].str()}"
        return None

    def damage(self, pid: int) -> str | None:
        """A broker that lives serves."""
        return None

    def clean(self) -> None:
        """The kernel frees the log folder's lock."""

    @property
    def _properties(self) -> Path:
        return self._folder / "server.properties"

    @property
    def _log4j2(self) -> Path:
        return self._folder / "log4j2.properties"

    def _java_command(self, *options: str) -> tuple[str, ...]:
        jars = [self._cache.path(artifact) for files in self.artifacts().values() for artifact in files]
        return (
            str(self._java.java),
            *heap_options(min(256, self._settings.kafka_heap_mb), self._settings.kafka_heap_mb),
            *options,
            f"-Dlog4j2.configurationFile={self._log4j2}",
            "-cp",
            ":".join(map(str, jars)),
        )

    def _format(self) -> None:
        cluster = cluster_id(uuid.uuid4())
        tool = ("kafka.tools.StorageTool", "format", "--cluster-id", cluster, "--config", str(self._properties))
        done = subprocess.run(
            # Little heap and the quick compiler only: this runs for a second, once.
            [*self._java_command("-XX:TieredStopAtLevel=1"), *tool, "--ignore-formatted"],
            env=dict(jvm_environment(self._folder)),
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            raise StartError(f"Kafka could not format {self._folder / 'logs'}: {(done.stdout + done.stderr)[-800:]}")
