"""Members of consumer groups that read with librdkafka and acknowledge by themselves."""

from __future__ import annotations

from typing import Any

from agents.settings import AgentSettings


def member_settings(settings: AgentSettings, group: str) -> dict[str, Any]:
    """Of librdkafka: it commits what was stored, not what was read, and stays in the group however long it waits."""
    return {
        "bootstrap.servers": settings.kafka,
        "client.id": settings.client_id,
        "group.id": group,
        "auto.offset.reset": "earliest",
        "enable.auto.commit": True,
        "auto.commit.interval.ms": 500,
        "enable.auto.offset.store": False,
        "partition.assignment.strategy": "roundrobin",
        "session.timeout.ms": round(settings.session_timeout * 1000),
        "heartbeat.interval.ms": round(settings.session_timeout * 100),
        # Nothing is read while a window is full or a broker does not answer; that is no reason to leave the group.
        "max.poll.interval.ms": 86_400_000,
        "fetch.max.bytes": 16 * 1024 * 1024,
    }
