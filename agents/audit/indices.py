"""Reads both indices into the ledger: a point in time of each shard, page by page, without vectors or sources."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any

from opensearchpy import AsyncOpenSearch
from opensearchpy.exceptions import NotFoundError

from agents.audit.ledger import ImageRow, Ledger, ObjectRow
from agents.index.connection import translated_failures
from agents.settings import IndexSettings
from sightlog.errors import SightlogError

_PAGE = 5_000
_KEEP_ALIVE = "5m"


@dataclass(frozen=True)
class IndexReader:
    """Reads documents of what the aliases mean. Raises DependencyDown, or SightlogError when an index is missing."""

    client: AsyncOpenSearch
    settings: IndexSettings

    async def places(self, alias: str) -> list[str]:
        """The indices behind an alias, the one that is written to first."""
        try:
            with translated_failures(f"read {alias}"):
                found = await self.client.indices.get_alias(name=alias)
        except NotFoundError:
            raise SightlogError(f"OpenSearch has no index {alias}: an indexer creates it when it starts") from None
        write = {name for name, body in found.items() if body["aliases"][alias].get("is_write_index", True)}
        return sorted(found, key=lambda name: (name not in write, name))

    async def count(self) -> int:
        """How many documents there are to read, for a progress bar."""
        total = 0
        for alias in (self.settings.images, self.settings.objects):
            with translated_failures("count"):
                total += (await self.client.count(index=",".join(await self.places(alias))))["count"]
        return total

    async def load(self, ledger: Ledger, told: Callable[[int], None]) -> None:
        """Make everything that was written visible and load it; `told` hears how many documents were read."""
        aliases = (self.settings.images, self.settings.objects)
        with translated_failures("refresh"):
            await self.client.indices.refresh(index=",".join(aliases))
        # Objects first: those of an image that is indexed in between are judged another time, as it is in flight.
        for place, index in enumerate(await self.places(self.settings.objects)):
            async for hits in self._pages(index, _OBJECT_FIELDS):
                ledger.objects(_object_row(hit, place) for hit in hits)
                told(len(hits))
        for place, index in enumerate(await self.places(self.settings.images)):
            async for hits in self._pages(index, _IMAGE_FIELDS):
                ledger.images(_image_row(hit, place) for hit in hits)
                told(len(hits))

    async def _pages(self, index: str, fields: list[str]) -> AsyncIterator[list[dict[str, Any]]]:
        with translated_failures(f"read {index}"):
            shards = (await self.client.search_shards(index=index))["shards"]
        for number in range(len(shards)):
            async for hits in self._shard(index, number, fields):
                yield hits

    async def _shard(self, index: str, number: int, fields: list[str]) -> AsyncIterator[list[dict[str, Any]]]:
        """Documents of one shard in the order in which they lie there, which costs no sorting."""
        opened = {"keep_alive": _KEEP_ALIVE, "preference": f"_shards:{number}"}
        with translated_failures(f"read {index}"):
            point = (await self.client.create_pit(index=index, params=opened))["pit_id"]
        body: dict[str, Any] = {
            "size": _PAGE,
            "pit": {"id": point, "keep_alive": _KEEP_ALIVE},
            "sort": [{"_doc": "asc"}],
            "_source": False,
            "docvalue_fields": fields,
            "seq_no_primary_term": True,
            "version": True,
            "track_total_hits": False,
        }
        try:
            while True:
                with translated_failures(f"read {index}"):
                    hits = (await self.client.search(body=body))["hits"]["hits"]
                if not hits:
                    return
                yield hits
                body["search_after"] = hits[-1]["sort"]
        finally:
            with translated_failures(f"read {index}"):
                await self.client.delete_pit(body={"pit_id": [point]})


_IMAGE_FIELDS = [
    "image_id", "version", "tags_version", "metadata_version", "deleted_version", "object_count", "hidden"
]  # fmt: skip
_OBJECT_FIELDS = ["image_id", "ordinal", "version"]


def _first(hit: dict[str, Any], name: str, default: Any = 0) -> Any:
    values = hit.get("fields", {}).get(name)
    return values[0] if values else default


def _image_row(hit: dict[str, Any], place: int) -> ImageRow:
    content = _first(hit, "version")
    return ImageRow(
        id=hit["_id"],
        place=place,
        image_id=_first(hit, "image_id", None),
        content=content,
        tags=_first(hit, "tags_version"),
        metadata=_first(hit, "metadata_version"),
        deleted=_first(hit, "deleted_version"),
        objects=_first(hit, "object_count"),
        visible=not _first(hit, "hidden", False),
        seq_no=hit["_seq_no"],
        primary_term=hit["_primary_term"],
    )


def _object_row(hit: dict[str, Any], place: int) -> ObjectRow:
    return ObjectRow(
        id=hit["_id"],
        place=place,
        image_id=_first(hit, "image_id", None),
        ordinal=_first(hit, "ordinal", -1),
        content=_first(hit, "version"),
        # Written by us from outside: the revision that its image had.
        revision=hit["_version"],
        seq_no=hit["_seq_no"],
        primary_term=hit["_primary_term"],
    )
