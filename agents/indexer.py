"""The indexer agent: embedding documents in, searchable documents in OpenSearch, a receipt for each."""

from __future__ import annotations

import asyncio

import faust
from faust.streams import Stream

from agents.app import attach, model_identity, new_app, new_outbox
from agents.delivery.failures import ItemBroken
from agents.delivery.outbox import Outbox
from agents.delivery.records import Record
from agents.delivery.retry import until_up
from agents.delivery.window import drain
from agents.index.connection import connect, ensure_indices
from agents.index.writer import IndexWriter, Outcome
from agents.settings import AgentSettings
from models.manifest import load_manifest
from sightlog.documents import EmbeddingDocument, IndexReceipt
from sightlog.errors import ContractError
from sightlog.fields import now


def indexer_app(settings: AgentSettings) -> faust.App:
    """The Faust app of the consumer group `sightlog-indexer`."""
    model = model_identity(load_manifest(settings.model_folder))

    async def indexer(stream: Stream[bytes]) -> None:
        async with connect(settings.opensearch) as opensearch, new_outbox("indexer", settings, linger_ms=5) as outbox:
            await until_up("indexer", lambda: ensure_indices(opensearch, settings.index, model), settings.backoff)
            agent = Indexer(settings, IndexWriter(opensearch, settings.index, model), outbox)
            await drain(stream.noack(), agent.index, settings.indexer_window)

    return attach(new_app("indexer", settings), settings.topics.embedded, indexer)


class Indexer:
    """Writes batches of embedding documents."""

    def __init__(self, settings: AgentSettings, writer: IndexWriter, outbox: Outbox) -> None:
        self._settings = settings
        self._writer = writer
        self._outbox = outbox

    async def index(self, records: list[Record]) -> None:
        """Return when every record's document is searchable and its receipt, or its dead letter, is in the log."""
        readable: list[tuple[Record, EmbeddingDocument]] = []
        for record in records:
            try:
                readable.append((record, EmbeddingDocument.from_kafka(record.value)))
            except ContractError as cause:
                await self._outbox.bury(record, cause)
        documents = [document for _, document in readable]
        outcomes = await until_up("indexer", lambda: self._writer.write(documents), self._settings.backoff)
        await asyncio.gather(
            *(self._conclude(*pair, outcome) for pair, outcome in zip(readable, outcomes, strict=True))
        )

    async def _conclude(self, record: Record, document: EmbeddingDocument, outcome: Outcome) -> None:
        if isinstance(outcome, ItemBroken):
            await self._outbox.bury(record, outcome, document.image_id)
            return
        receipt = IndexReceipt(
            image_id=document.image_id,
            version=document.version,
            objects=len(document.detections),
            uploaded_at=document.uploaded_at,
            searchable_at=now(),
            superseded=outcome.superseded,
        )
        await self._outbox.publish(self._settings.topics.indexed, receipt.to_kafka(), key=record.key)
