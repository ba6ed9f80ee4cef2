"""Writes embedding documents in bulk, with derived ids and external versions: a redelivery changes nothing."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import orjson
from opensearchpy import AsyncOpenSearch

from agents.delivery.failures import DependencyDown, ItemBroken
from agents.index.connection import translated_failures
from agents.index.documents import image_document, object_documents
from agents.index.mappings import ModelIdentity, index_name
from agents.settings import IndexSettings
from sightlog.documents import EmbeddingDocument, object_id


@dataclass(frozen=True)
class Written:
    """The image can be found now; `superseded` when a newer version of it was there already."""

    superseded: bool = False


Outcome = Written | ItemBroken

#: OpenSearch refuses bodies above 100 MB, and its breakers trip earlier; every object repeats its image's metadata.
_BULK_BYTES = 8 * 1024 * 1024


@dataclass(frozen=True)
class _Action:
    """One line pair of a bulk request."""

    document: EmbeddingDocument
    verb: Literal["index", "delete"]
    index: str
    id: str
    source: dict[str, Any] | None = None

    def lines(self) -> Iterable[bytes]:
        # external_gte: the same version again is the same document again, so a redelivery succeeds.
        target = {
            "_index": self.index,
            "_id": self.id,
            "version": self.document.version,
            "version_type": "external_gte",
        }
        yield orjson.dumps({self.verb: target})
        if self.source is not None:
            yield orjson.dumps(self.source, option=orjson.OPT_SERIALIZE_NUMPY)


class IndexWriter:
    """Bulk writer of both indices.

    The objects of an image have ids with ordinals from 0 upwards. When an image comes again with fewer of them, those
    above are deleted *before* the image document changes, because it alone remembers how many there were: a crash in
    between leaves the number in place, and the redelivery deletes them again. Two batches never hold the same image at
    the same time.
    """

    def __init__(self, client: AsyncOpenSearch, settings: IndexSettings, model: ModelIdentity) -> None:
        self._client = client
        # Of this model by name: an alias may be moved to another model's index while this process lives.
        self._images, self._objects = (index_name(alias, model) for alias in (settings.images, settings.objects))
        self._model = model
        self._in_flight = _KeyedLocks()

    async def write(self, documents: Sequence[EmbeddingDocument]) -> list[Outcome]:
        """Write the documents and return once they are searchable, with one outcome for each, in order.

        Raises DependencyDown when OpenSearch does not answer or is overloaded; writing all of them again is safe.
        """
        refused = [self._refusal(document) for document in documents]
        accepted = [document for document, refusal in zip(documents, refused, strict=True) if refusal is None]
        newest: dict[str, EmbeddingDocument] = {}
        for document in accepted:
            held = newest.get(document.image_id, document)
            newest[document.image_id] = max(held, document, key=lambda d: d.version)
        async with self._in_flight.holding(newest):
            written = await self._write_newest(newest) if newest else {}
            await self._forget(
                [d for d in accepted if _outcome(d, newest[d.image_id], written[d.image_id]) != Written()]
            )
        return [
            refusal or _outcome(document, newest[document.image_id], written[document.image_id])
            for document, refusal in zip(documents, refused, strict=True)
        ]

    def _refusal(self, document: EmbeddingDocument) -> ItemBroken | None:
        """What OpenSearch would refuse, found before anything of the image is written."""
        if document.model.digest != self._model.digest:
            return ItemBroken(
                "model_mismatch",
                f"vectors of model {document.model.digest[:12]}, the index holds {self._model.digest[:12]}",
            )
        for vector in (document.vector, *(detection.vector for detection in document.detections)):
            if vector.shape != (self._model.dim,):
                return ItemBroken("bad_vector", f"{vector.shape[0]} values, the index holds {self._model.dim}")
            if not np.isfinite(vector).all() or not vector.any():
                return ItemBroken("bad_vector", "a vector is zero or not finite")
        return None

    async def _write_newest(self, newest: dict[str, EmbeddingDocument]) -> dict[str, Outcome]:
        stored = await self._stored(list(newest))
        outcomes: dict[str, Outcome] = {image_id: Written() for image_id in newest}
        writes: list[_Action] = []
        surplus: list[_Action] = []
        for image_id, document in newest.items():
            before = stored.get(image_id)
            if before is not None and before["version"] > document.version:
                outcomes[image_id] = Written(superseded=True)
                continue
            writes += self._writes(document)
            if before is not None:
                surplus += self._object_deletes(document, len(document.detections), before["object_count"])
        await self._bulk(surplus)
        return outcomes | await self._bulk(writes)

    async def _forget(self, documents: Iterable[EmbeddingDocument]) -> None:
        """Delete the objects that documents without effect left behind, now or before a crash.

        Versions protect the objects of a newer document: they refuse to be deleted by an older one.
        """
        await self._bulk([a for d in documents for a in self._object_deletes(d, 0, len(d.detections))])

    async def _stored(self, image_ids: list[str]) -> dict[str, dict[str, int]]:
        with translated_failures("read versions"):
            found = await self._client.mget(
                index=self._images,
                body={"ids": image_ids},
                params={"_source_includes": "version,object_count"},
            )
        for hit in found["docs"]:
            if "error" in hit:
                raise DependencyDown(f"OpenSearch (read versions): {hit['error'].get('type')}")
        return {hit["_id"]: hit["_source"] for hit in found["docs"] if hit["found"]}

    def _writes(self, document: EmbeddingDocument) -> list[_Action]:
        actions = [
            _Action(document, "index", self._objects, object_id(document.image_id, source["ordinal"]), source)
            for source in object_documents(document)
        ]
        image = image_document(document)
        return [*actions, _Action(document, "index", self._images, document.image_id, image)]

    def _object_deletes(self, document: EmbeddingDocument, start: int, stop: int) -> list[_Action]:
        return [
            _Action(document, "delete", self._objects, object_id(document.image_id, ordinal))
            for ordinal in range(start, stop)
        ]

    async def _bulk(self, actions: list[_Action]) -> dict[str, Outcome]:
        """Send the actions in order and wait for the refresh; what differs from plain success, by image id."""
        outcomes: dict[str, Outcome] = {}
        part: list[_Action] = []
        body: list[bytes] = []
        size = 0
        for action in actions:
            lines = b"".join(line + b"\n" for line in action.lines())
            if part and size + len(lines) > _BULK_BYTES:
                outcomes |= await self._send(part, b"".join(body))
                part, body, size = [], [], 0
            part.append(action)
            body.append(lines)
            size += len(lines)
        if part:
            outcomes |= await self._send(part, b"".join(body))
        return outcomes

    async def _send(self, actions: list[_Action], body: bytes) -> dict[str, Outcome]:
        with translated_failures("bulk"):
            reply = await self._client.bulk(body=body.decode(), params={"refresh": "wait_for"})
        outcomes: dict[str, Outcome] = {}
        if not reply["errors"]:
            return outcomes
        for action, entry in zip(actions, reply["items"], strict=True):
            item = entry[action.verb]
            status, image_id = item["status"], action.document.image_id
            if status == 429 or status >= 500 or (status == 404 and action.verb == "index"):
                raise DependencyDown(f"OpenSearch (bulk): {status} {item['error'].get('type')}")
            if status == 409 and action.index == self._images:
                outcomes[image_id] = Written(superseded=True)
            elif status >= 400 and status not in (404, 409):
                reason = f"{item['error'].get('type')}: {item['error'].get('reason')}"
                outcomes[image_id] = ItemBroken("index_refused", reason)
        return outcomes


def _outcome(document: EmbeddingDocument, newest: EmbeddingDocument, written: Outcome) -> Outcome:
    """What became of one of possibly several documents of an image, of which only the newest was written."""
    if isinstance(written, Written) and document.version < newest.version:
        return Written(superseded=True)
    return written


class _KeyedLocks:
    """Locks by name, made when needed and forgotten when free."""

    def __init__(self) -> None:
        self._held: dict[str, asyncio.Future[None]] = {}

    @asynccontextmanager
    async def holding(self, names: Iterable[str]) -> AsyncIterator[None]:
        wanted = set(names)
        while busy := [self._held[name] for name in wanted if name in self._held]:
            await asyncio.wait(busy)
        mine: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._held.update(dict.fromkeys(wanted, mine))
        try:
            yield
        finally:
            for name in wanted:
                del self._held[name]
            mine.set_result(None)
