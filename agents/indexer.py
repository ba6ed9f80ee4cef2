"""The indexer agent: embedding documents, updates and deletions in, what searches see of them, a receipt for each."""

from __future__ import annotations

import asyncio
from typing import Any

import faust
from faust.streams import Stream

from agents.app import attach, model_identity, new_app, new_outbox
from agents.delivery.failures import ItemBroken
from agents.delivery.outbox import Outbox
from agents.delivery.records import Record
from agents.delivery.retry import until_up
from agents.delivery.window import drain
from agents.index.connection import connect, ensure_indices
from agents.index.writer import IndexWriter, Outcome, Written
from agents.settings import AgentSettings
from models.manifest import load_manifest
from sightlog.documents import EmbeddingDocument, ImageChange, ImageUpdate, IndexReceipt, read_change
from sightlog.errors import ContractError
from sightlog.fields import now


def indexer_app(settings: AgentSettings) -> faust.App:
    """The Faust app of the consumer group `sightlog-indexer`."""
    model = model_identity(load_manifest(settings.model_folder))

    async def indexer(stream: Stream[bytes]) -> None:
        async with connect(settings.opensearch) as opensearch, new_outbox("indexer", settings, linger_ms=5) as outbox:
            await until_up("indexer", lambda: ensure_indices(opensearch, settings.index, model), settings.backoff)
            writer = IndexWriter(opensearch, settings.index, model, settings.bulk_limits, settings.backoff)
            agent = Indexer(settings, writer, outbox)
            await drain(stream.noack(), agent.index, settings.indexer_window)

    return attach(new_app("indexer", settings), settings.topics.embedded, indexer)


class Indexer:
    """Writes batches of changes."""

    def __init__(self, settings: AgentSettings, writer: IndexWriter, outbox: Outbox) -> None:
        self._settings = settings
        self._writer = writer
        self._outbox = outbox

    async def index(self, records: list[Record]) -> None:
        """Return when searches see every record's change and its receipt, or its dead letter, is in the log."""
        readable: list[tuple[Record, ImageChange]] = []
        for record in records:
            try:
                readable.append((record, read_change(record.value)))
            except ContractError as cause:
                await self._outbox.bury(record, cause)
        changes = [change for _, change in readable]
        outcomes = await until_up("indexer", lambda: self._writer.write(changes), self._settings.backoff)
        await asyncio.gather(
            *(self._conclude(*pair, outcome) for pair, outcome in zip(readable, outcomes, strict=True))
        )

    async def _conclude(self, record: Record, change: ImageChange, outcome: Outcome) -> None:
        if isinstance(outcome, ItemBroken):
            await self._outbox.bury(record, outcome, change.image_id)
            return
        receipt = _receipt(change, outcome)
        await self._outbox.publish(self._settings.topics.indexed, receipt.to_kafka(), key=record.key)


def _receipt(change: ImageChange, outcome: Written) -> IndexReceipt:
    facts: dict[str, Any]
    if isinstance(change, EmbeddingDocument):
        facts = {
            "kind": "uploaded",
            "objects": len(change.detections),
            "uploaded_at": change.uploaded_at,
            "reused": change.reused,
        }
    elif isinstance(change, ImageUpdate):
        facts = {"kind": "updated", "objects": 0, "uploaded_at": change.updated_at}
    else:
        facts = {"kind": "deleted", "objects": 0, "uploaded_at": change.deleted_at}
    return IndexReceipt(
        image_id=change.image_id,
        version=change.version,
        searchable_at=now(),
        superseded=outcome.superseded,
        **facts,
    )
