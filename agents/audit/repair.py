"""Mends what an audit found: publishes events once more, deletes documents that no event accounts for.

Safe to repeat and to interrupt: an event that comes back has the version of its origin, so it never overwrites newer
ones; a document is deleted only as it was read, so one that was written meanwhile stays.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from typing import Any

import orjson

from agents.audit.indices import IndexReader
from agents.audit.ledger import Ledger, batches
from agents.audit.log import LogReader, LogRecord
from agents.delivery.producer import ConfirmedProducer
from agents.index.connection import translated_failures
from agents.settings import AgentSettings
from sightlog.events import consumed_headers
from sightlog.fields import now
from sightlog.history import History, Origin, without_history
from sightlog.settings import MAX_RECORD_BYTES


@dataclass(frozen=True)
class Repaired:
    """What was done."""

    requeued: int = 0
    gone: int = 0
    """Events that have left the log: nobody can publish them again."""
    removed: int = 0
    changed_meanwhile: int = 0
    """Documents that somebody wrote after they were read; the next audit looks at them again."""


@dataclass(frozen=True)
class Repair:
    """The repair of one judged ledger."""

    settings: AgentSettings
    ledger: Ledger
    reader: LogReader
    indices: IndexReader

    async def run(self) -> Repaired:
        """Delete first: what is published afterwards writes such documents anew where an event wants them."""
        done = Repaired()
        for alias, rows in (
            (self.settings.index.objects, self.ledger.surplus_objects()),
            (self.settings.index.images, self.ledger.surplus_images()),
        ):
            places = await self.indices.places(alias)
            for batch in batches(rows):
                removed = await self._remove(places, batch)
                meanwhile = done.changed_meanwhile + len(batch) - removed
                done = replace(done, removed=done.removed + removed, changed_meanwhile=meanwhile)
        return await self._requeue(done)

    async def _remove(self, places: Sequence[str], rows: Sequence[tuple[str, int, int, int]]) -> int:
        """Delete documents unless they changed since they were read; returns how many that were."""
        lines = [
            {"delete": {"_index": places[place], "_id": name, "if_seq_no": number, "if_primary_term": term}}
            for name, place, number, term in rows
        ]
        body = b"".join(orjson.dumps(line) + b"\n" for line in lines)
        with translated_failures("repair"):
            reply = await self.indices.client.bulk(body=body.decode(), params={"refresh": "wait_for"})
        return sum(item["delete"]["status"] == 200 for item in reply["items"])

    async def _requeue(self, done: Repaired) -> Repaired:
        producer = ConfirmedProducer(self.settings.kafka, linger_ms=5, max_record_bytes=MAX_RECORD_BYTES)
        topic = self.settings.topics.images
        # The origin is the very record that is read: an event of which only the return is left counts as gone.
        async with producer:
            for message in self.reader.pick(topic, self.ledger.lost_events()):
                if message is None:
                    done = replace(done, gone=done.gone + 1)
                    continue
                headers = consumed_headers(message.headers())
                history = History(origin=_origin(topic, message), attempts=0, first_failed_at=now())
                again: Any = [*without_history(headers), history.replayed(now()).to_header()]
                await producer.send(topic, message.value(), key=message.key(), headers=again)
                done = replace(done, requeued=done.requeued + 1)
        return done


def _origin(topic: str, message: LogRecord) -> Origin:
    timestamp = datetime.fromtimestamp(message.timestamp()[1] / 1000, timezone.utc)
    return Origin(topic=topic, partition=message.partition(), offset=message.offset(), timestamp=timestamp)
