"""The Faust app that every agent is: raw topics, no tables, and nothing acknowledged before its effect is confirmed."""

from __future__ import annotations

import logging
import os
from collections.abc import Awaitable, Callable
from typing import Any

import faust
from faust.streams import Stream

from agents.allocation import keep_large_buffers
from agents.delivery.outbox import Outbox
from agents.delivery.producer import ConfirmedProducer
from agents.index.mappings import ModelIdentity
from agents.settings import AgentSettings
from models.manifest import ModelManifest
from sightlog.history import Stage
from sightlog.settings import MAX_RECORD_BYTES

log = logging.getLogger(__name__)

#: Seconds; a number that still fits into 32 bits as milliseconds.
_NEVER = 2_000_000.0

Agent = Callable[[Stream[bytes]], Awaitable[None]]


def new_app(name: str, settings: AgentSettings) -> faust.App:
    """An app whose consumer group is `sightlog-<name>`."""
    return faust.App(
        f"sightlog-{name}",
        broker=[f"kafka://{server}" for server in settings.kafka.split(",")],
        broker_client_id=settings.client_id,
        store="memory://",
        web_enabled=False,
        topic_allow_declare=False,
        topic_disable_leader=True,
        consumer_auto_offset_reset="earliest",
        broker_session_timeout=settings.session_timeout,
        broker_heartbeat_interval=settings.session_timeout / 10,
        broker_commit_interval=0.5,
        # While a dependency is down nothing is read, and work may take longer than any of these: the process is in the
        # group as long as it lives and its heartbeats, from a thread of their own, say so. By default it would leave
        # the group after a thousand seconds, and write pages about it into the log before.
        broker_max_poll_interval=_NEVER,
        stream_processing_timeout=_NEVER,
        broker_commit_livelock_soft_timeout=_NEVER,
        # How long the group waits for a member that joins again: nothing has to be finished before.
        broker_rebalance_timeout=settings.rebalance_timeout,
        stream_wait_empty=False,
        # The window bounds what is worked on; the stream's own buffer (4096 events by default) would hold megabytes
        # of pictures for nothing.
        stream_buffer_maxsize=16,
        broker_max_poll_records=20,
        consumer_max_fetch_size=settings.fetch_bytes,
    )


def new_outbox(stage: Stage, settings: AgentSettings, *, linger_ms: float) -> Outbox:
    """The outbox of an agent; `linger_ms` is 0 where somebody waits for each record."""
    return Outbox(
        stage,
        ConfirmedProducer(settings.kafka, linger_ms=linger_ms, max_record_bytes=MAX_RECORD_BYTES),
        dead_topic=settings.topics.dead,
        dead_inline_limit=settings.dead_letter_inline_limit,
        backoff=settings.backoff,
        retry_topics=tuple(settings.topics.retry_delays),
    )


def model_identity(manifest: ModelManifest) -> ModelIdentity:
    """What the indices need to know of a model."""
    return ModelIdentity(manifest.name, manifest.digest, manifest.clip.dim, manifest.detector.classes)


def attach(app: faust.App, topic: str, agent: Agent) -> faust.App:
    """Let `agent` consume a topic of plain bytes: Faust would acknowledge and drop what it cannot decode.

    When the agent raises, the process ends: Faust would restart it and acknowledge what it was holding.
    """

    async def run(stream: Any) -> None:
        try:
            await agent(stream)
        except Exception as error:
            log.critical("%s cannot go on: %s", app.conf.id, error, exc_info=error)
            os._exit(70)

    raw = app.topic(topic, key_type=bytes, key_serializer="raw", value_type=bytes, value_serializer="raw")
    app.agent(raw, name=app.conf.id)(run)
    return app


def run_worker(app: faust.App, *, loglevel: str = "info") -> None:
    """Run the app until SIGTERM or SIGINT."""
    keep_large_buffers()
    # One line a request otherwise.
    logging.getLogger("opensearch").setLevel(logging.WARNING)
    worker: Any = faust.Worker(app, loglevel=loglevel, redirect_stdouts=False)
    worker.execute_from_commandline()
