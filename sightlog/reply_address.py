"""The headers that tie a reply to its request: those of Spring for Apache Kafka, plus `deadline` and `caller`."""

from __future__ import annotations

from dataclasses import dataclass

from sightlog.errors import ContractError
from sightlog.events import Headers, OutgoingHeaders

REPLY_TOPIC = "kafka_replyTopic"
REPLY_PARTITION = "kafka_replyPartition"
CORRELATION_ID = "kafka_correlationId"
DEADLINE = "deadline"
CALLER = "caller"

#: Bytes of a correlation id: it comes back with the reply, which has to fit into a record with it.
_MAX_CORRELATION_ID = 1024
#: Bytes of a caller's name that count; longer ones are cut.
_MAX_CALLER = 128


@dataclass(frozen=True)
class ReplyAddress:
    """Where a reply goes and until when it is wanted; travels in the headers of the request."""

    topic: str
    partition: int | None
    correlation_id: bytes
    deadline_ms: int | None
    """Milliseconds since the epoch; None: the agent's own limit holds."""
    caller: str | None = None
    """On whose behalf, where one client asks for many (a gateway); turns are taken between callers. None: the place
    that the reply goes to is the caller."""

    @property
    def turn(self) -> str:
        """The name under which requests wait for their turn."""
        return self.caller or f"{self.topic}[{self.partition}]"

    @classmethod
    def from_headers(cls, headers: Headers) -> ReplyAddress:
        """Read the address; raises ContractError `no_reply_address` when one cannot reply with these headers."""
        by_name = dict(headers)
        topic, correlation_id = by_name.get(REPLY_TOPIC), by_name.get(CORRELATION_ID)
        if not topic or not correlation_id:
            raise ContractError("no_reply_address", f"a request needs the headers {REPLY_TOPIC} and {CORRELATION_ID}")
        if len(correlation_id) > _MAX_CORRELATION_ID:
            raise ContractError(
                "no_reply_address", f"{CORRELATION_ID} has {len(correlation_id)} bytes, {_MAX_CORRELATION_ID} at most"
            )
        partition = by_name.get(REPLY_PARTITION)
        if partition is not None and (len(partition) != 4 or partition[0] > 127):
            raise ContractError("no_reply_address", f"{REPLY_PARTITION} is a 4-byte big-endian integer, not negative")
        deadline, caller = by_name.get(DEADLINE), by_name.get(CALLER)
        try:
            return cls(
                topic=topic.decode("ascii"),
                partition=None if partition is None else int.from_bytes(partition, "big"),
                correlation_id=correlation_id,
                deadline_ms=None if deadline is None else int(deadline),
                caller=caller[:_MAX_CALLER].decode("utf-8", "replace") if caller else None,
            )
        except ValueError as error:
            raise ContractError("no_reply_address", f"a reply header cannot be read: {error}") from None

    def to_headers(self) -> OutgoingHeaders:
        """The headers of a request that wants its reply here."""
        headers: OutgoingHeaders = [(REPLY_TOPIC, self.topic.encode()), (CORRELATION_ID, self.correlation_id)]
        if self.partition is not None:
            headers.append((REPLY_PARTITION, self.partition.to_bytes(4, "big")))
        if self.deadline_ms is not None:
            headers.append((DEADLINE, str(self.deadline_ms).encode()))
        if self.caller is not None:
            headers.append((CALLER, self.caller.encode()))
        return headers
