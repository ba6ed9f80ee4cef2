"""An event that the broker has: what identifies it, and what its outcome is recognised by."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from sightlog.dead_letters import DeadLetter
from sightlog.documents import IndexReceipt, log_version

Outcome = IndexReceipt | DeadLetter


@dataclass(frozen=True)
class Published:
    """Where an event is in the log, for `wait_until_indexed`."""

    image_id: str
    topic: str
    partition: int
    offset: int | None
    """None where the broker did not tell, after a retry."""
    published_at: datetime
    """By the clock of the broker, UTC."""

    @property
    def version(self) -> int:
        """What the index knows this event by."""
        return log_version(round(self.published_at.timestamp() * 1000), self.offset or 0)

    def is_settled_by(self, outcome: Outcome) -> bool:
        """Whether that is the outcome of this event, rather than of another one of the same image."""
        if isinstance(outcome, IndexReceipt):
            # Each event has a receipt of its own, also when a newer one was quicker.
            return outcome.version >= self.version if self.offset is None else outcome.version == self.version
        origin = outcome.origin
        if self.offset is None:
            return origin.timestamp >= self.published_at
        return (origin.topic, origin.partition, origin.offset) == (self.topic, self.partition, self.offset)
