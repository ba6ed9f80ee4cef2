"""Writes changes of images to both indices, joined with what is there: in any order and however often they come."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace

import numpy as np
from opensearchpy import AsyncOpenSearch

from agents.delivery.failures import ItemBroken
from agents.delivery.retry import Backoff
from agents.index.bulk import Action, Bulk, Trouble
from agents.index.documents import image_document, object_documents
from agents.index.mappings import ModelIdentity, index_name
from agents.index.pace import BulkLimits, BulkPace
from agents.index.state import ImageState, has_part_in, joined, state_of_all, superseded
from agents.index.stored import Stored, StoredImages
from agents.settings import IndexSettings
from sightlog.documents import EmbeddingDocument, ImageChange, object_id

log = logging.getLogger(__name__)

#: Bytes of a keyword beyond which OpenSearch refuses the whole document; Lucene takes no longer term.
_MAX_TERM_BYTES = 32_766

#: Attempts for an image whose objects another worker is still writing, before going on without them.
_ATTEMPTS_TO_SETTLE = 5


@dataclass(frozen=True)
class Written:
    """Searches see the change now; `superseded` when newer ones had the last word already."""

    superseded: bool = False


Outcome = Written | ItemBroken


@dataclass
class _Work:
    """The changes of one image in a batch, as far as they are done."""

    image_id: str
    changes: list[ImageChange]
    state: ImageState = field(default_factory=ImageState)
    """The changes joined; then, when they are done, with what the index holds."""
    attempts: int = 0

    def __post_init__(self) -> None:
        self.state = state_of_all(self.changes)


class IndexWriter:
    """Bulk writer of both indices.

    The image document holds the state of an image and is written only as long as it is the one that was read (compare
    and set); whoever loses reads again and joins again. The objects have the ordinals from 0 upwards and the revision
    of the state as external version, so an older state never overwrites those of a newer one. `object_rows` remembers
    how many there ever were; those that are too many are deleted with every write. A new image and its objects are one
    bulk; for others the objects follow. Until all of it is confirmed the change is not acknowledged, and when it comes
    again, all of it is written again. Two batches of a worker never hold the same image at the same time.
    """

    def __init__(
        self,
        client: AsyncOpenSearch,
        settings: IndexSettings,
        model: ModelIdentity,
        limits: BulkLimits | None = None,
        backoff: Backoff | None = None,
    ) -> None:
        # Of this model by name: an alias may be moved to another model's index while this process lives.
        self._images = index_name(settings.images, model)
        self._objects = index_name(settings.objects, model)
        self._model = model
        self._stored = StoredImages(client, self._images, self._objects)
        self.pace = BulkPace(limits or BulkLimits())
        self._bulk = Bulk(client, self.pace)
        self._backoff = backoff or Backoff()
        self._in_flight = _KeyedLocks()

    async def write(self, changes: Sequence[ImageChange]) -> list[Outcome]:
        """Join the changes into the indices; return once searches see them, one outcome for each.

        Raises DependencyDown when OpenSearch does not answer; the same changes may then be written again. While it
        answers that it has too much to do, smaller bulks are sent, after pauses.
        """
        refusals = [self._refusal(change) for change in changes]
        by_image: dict[str, list[ImageChange]] = {}
        for change, refusal in zip(changes, refusals, strict=True):
            if refusal is None:
                by_image.setdefault(change.image_id, []).append(change)
        async with self._in_flight.holding(by_image):
            outcomes = await self._write([_Work(image_id, ordered) for image_id, ordered in by_image.items()])
        return [refusal or outcomes[id(change)] for change, refusal in zip(changes, refusals, strict=True)]

    def _refusal(self, change: ImageChange) -> ItemBroken | None:
        """What OpenSearch would refuse, found before anything of the image is written."""
        terms: list[str] = list(getattr(change, "tags", None) or ())
        if isinstance(change, EmbeddingDocument):
            if change.model.digest != self._model.digest:
                return ItemBroken(
                    "model_mismatch",
                    f"vectors of model {change.model.digest[:12]}, the index holds {self._model.digest[:12]}",
                )
            for vector in (change.vector, *(detection.vector for detection in change.detections)):
                if vector.shape != (self._model.dim,):
                    return ItemBroken("bad_vector", f"{vector.shape[0]} values, the index holds {self._model.dim}")
                if not np.isfinite(vector).all() or not vector.any():
                    return ItemBroken("bad_vector", "a vector is zero or not finite")
            terms += [change.event_source, change.tenant or "", change.content_type or ""]
        if any(len(term) > _MAX_TERM_BYTES // 4 and len(term.encode()) > _MAX_TERM_BYTES for term in terms):
            return ItemBroken("index_refused", f"a tag or another name has more than {_MAX_TERM_BYTES} bytes")
        return None

    async def _write(self, waiting: list[_Work]) -> dict[int, Outcome]:
        """Write bulk after bulk; what became of each change, by its identity."""
        outcomes: dict[int, Outcome] = {}
        refused = 0
        while waiting:
            part, waiting = waiting[: self.pace.images], waiting[self.pace.images :]
            troubles = await self._attempt(part)
            refused = refused + 1 if Trouble.OVERLOADED in troubles.values() else 0
            for work in part:
                trouble = troubles.get(work.image_id)
                if trouble is None:
                    outcomes |= {id(c): Written(superseded(c, work.state)) for c in work.changes}
                elif isinstance(trouble, ItemBroken) and len(work.changes) == 1:
                    outcomes[id(work.changes[0])] = trouble
                elif isinstance(trouble, ItemBroken):
                    # Only one of them may be broken: each by itself.
                    ordered = sorted(work.changes, key=lambda c: c.version)
                    for change in ordered:
                        outcomes |= await self._write([_Work(work.image_id, [change])])
                else:
                    waiting.append(work)
            if refused:
                await asyncio.sleep(self._backoff.pause(refused - 1))
        return outcomes

    async def _attempt(self, works: list[_Work]) -> dict[str, Trouble | ItemBroken]:
        """Read, join and write once; the images that are not done, and why."""
        stored = await self._stored.read([work.image_id for work in works])
        troubles: dict[str, Trouble | ItemBroken] = {}
        finals: dict[str, ImageState] = {}
        for work in works:
            held = stored.get(work.image_id)
            finals[work.image_id] = joined(held.state, work.state) if held else work.state
        troubles |= await self._load(works, finals, stored)
        first: list[Action] = []
        then: list[Action] = []
        for work in works:
            if work.image_id not in troubles:
                image, objects = self._actions(work, finals[work.image_id], stored.get(work.image_id))
                first += image
                (first if _at_once(work, stored) else then).extend(objects)
        troubles |= await self._bulk.send(first)
        troubles |= await self._bulk.send([action for action in then if action.image_id not in troubles])
        for work in works:
            if isinstance(troubles.get(work.image_id), ItemBroken) and _at_once(work, stored):
                await self._bulk.send(self._deletes(work.image_id, finals[work.image_id], 0))
            final = finals[work.image_id]
            work.attempts += 1
            # What a vain attempt may have written stays in mind until it is deleted.
            in_vain = work.image_id in troubles
            work.state = replace(work.state, object_rows=final.object_rows) if in_vain else final
        return troubles

    async def _load(
        self, works: list[_Work], finals: dict[str, ImageState], stored: dict[str, Stored]
    ) -> dict[str, Trouble | ItemBroken]:
        """Read the content of images of which only tags or metadata change."""
        wanted = {
            work.image_id: work.state
            for work in works
            if finals[work.image_id].visible
            and finals[work.image_id].content is None
            and has_part_in(work.state, finals[work.image_id])
        }
        if not wanted:
            return {}
        contents = await self._stored.contents({image_id: stored[image_id] for image_id in wanted})
        unsettled: dict[str, Trouble | ItemBroken] = {}
        for work in works:
            if work.image_id not in wanted:
                continue
            found = contents.get(work.image_id)
            if found is None or (not found.whole and work.attempts < _ATTEMPTS_TO_SETTLE):
                unsettled[work.image_id] = Trouble.CONFLICT
            else:
                finals[work.image_id] = replace(finals[work.image_id], content=found.content)
        if unsettled:
            await asyncio.sleep(self._backoff.pause(min(work.attempts for work in works)))
        return unsettled

    def _actions(self, work: _Work, final: ImageState, held: Stored | None) -> tuple[list[Action], list[Action]]:
        """The image document, if it has to be written; the objects, and the deletion of those that are too many."""
        if held is not None and not has_part_in(work.state, final):
            # Newer changes had the last word. Objects that this one left behind in a crash may still be there.
            return [], self._deletes(work.image_id, held.state, held.object_count, final.object_rows)
        objects = [
            Action(
                work.image_id,
                "index",
                {
                    "_index": self._objects,
                    "_id": object_id(work.image_id, source["ordinal"]),
                    "version": final.revision,
                    "version_type": "external_gte",
                },
                source,
            )
            for source in object_documents(final)
        ]
        target = {"_index": self._images, "_id": work.image_id}
        document = image_document(work.image_id, final)
        if held is None:
            image = Action(work.image_id, "create", target, document, compared=True)
        else:
            unchanged = {"if_seq_no": held.seq_no, "if_primary_term": held.primary_term}
            image = Action(work.image_id, "index", target | unchanged, document, compared=True)
        return [image], [*objects, *self._deletes(work.image_id, final, document["object_count"])]

    def _deletes(self, image_id: str, state: ImageState, start: int, stop: int | None = None) -> list[Action]:
        return [
            Action(
                image_id,
                "delete",
                {
                    "_index": self._objects,
                    "_id": object_id(image_id, ordinal),
                    "version": state.revision,
                    "version_type": "external_gte",
                },
            )
            for ordinal in range(start, state.object_rows if stop is None else stop)
        ]


def _at_once(work: _Work, stored: dict[str, Stored]) -> bool:
    """Whether the objects may be written in the same bulk as the image document, which may be refused there.

    Only those of one upload of an image that the index does not know: when another worker creates it at the same time,
    either that one's upload is newer, then so is its revision; or this one's is, then it writes its objects again. All
    other states mix what several events said, so their objects come when the comparison has succeeded: revisions then
    grow from writer to writer, a slow one overwrites nothing, and a refusal leaves what is there.
    """
    return work.image_id not in stored and len(work.changes) == 1


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
