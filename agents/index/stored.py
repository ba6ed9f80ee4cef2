"""What the indices hold of images: their states to join changes to, and their content where only a part changes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from opensearchpy import AsyncOpenSearch

from agents.delivery.failures import DependencyDown
from agents.index.connection import translated_failures
from agents.index.documents import Content, stored_content
from agents.index.state import ImageState
from sightlog.documents import object_id

_STATE_FIELDS = [
    "version",
    "tags_version",
    "metadata_version",
    "deleted_version",
    "object_count",
    "object_rows",
    "tags",
    "metadata",
    "kept",
]


@dataclass(frozen=True)
class Stored:
    """The image document as it was read; its content stays in the index."""

    state: ImageState
    object_count: int
    seq_no: int
    primary_term: int


@dataclass(frozen=True)
class StoredContent:
    """Content as the indices have it."""

    content: Content
    whole: bool
    """False while objects are missing or of another upload: somebody is still writing them, or will again."""


class StoredImages:
    """Reads both indices by id, which sees every confirmed write at once, also before a refresh."""

    def __init__(self, client: AsyncOpenSearch, images: str, objects: str) -> None:
        self._client = client
        self._images = images
        self._objects = objects

    async def read(self, image_ids: Sequence[str]) -> dict[str, Stored]:
        """The states of those images that the index knows. Raises DependencyDown."""
        docs = [{"_index": self._images, "_id": id_, "_source": _STATE_FIELDS} for id_ in image_ids]
        return {
            hit["_id"]: Stored(
                _state(hit["_source"]), hit["_source"]["object_count"], hit["_seq_no"], hit["_primary_term"]
            )
            for hit in await self._mget(docs)
        }

    async def contents(self, stored: Mapping[str, Stored]) -> dict[str, StoredContent]:
        """The contents of visible images, without those that are gone; others may have changed since they were read."""
        docs = []
        for image_id, image in stored.items():
            docs.append({"_index": self._images, "_id": image_id})
            docs += [
                {"_index": self._objects, "_id": object_id(image_id, ordinal)} for ordinal in range(image.object_count)
            ]
        found = {(hit["_index"], hit["_id"]): hit for hit in await self._mget(docs)}
        contents: dict[str, StoredContent] = {}
        for image_id, image in stored.items():
            hit = found.get((self._images, image_id))
            if hit is None:
                continue
            ids = [object_id(image_id, ordinal) for ordinal in range(image.object_count)]
            sources = [found[self._objects, id_]["_source"] for id_ in ids if (self._objects, id_) in found]
            own = [source for source in sources if source["version"] == image.state.version]
            content = stored_content(hit["_source"], own)
            contents[image_id] = StoredContent(content, whole=len(own) == image.object_count)
        return contents

    async def _mget(self, docs: list[dict[str, Any]]) -> list[dict[str, Any]]:
        if not docs:
            return []
        with translated_failures("read"):
            found = await self._client.mget(body={"docs": docs})
        for hit in found["docs"]:
            if "error" in hit:
                raise DependencyDown(f"OpenSearch (read): {hit['error'].get('type')}")
        return [hit for hit in found["docs"] if hit["found"]]


def _state(source: Mapping[str, Any]) -> ImageState:
    changeable = source.get("kept", source)
    version = source["version"]
    return ImageState(
        version=version,
        tags_version=source.get("tags_version", version),
        metadata_version=source.get("metadata_version", version),
        deleted_version=source.get("deleted_version", 0),
        object_rows=source.get("object_rows", source["object_count"]),
        tags=tuple(changeable.get("tags", ())),
        metadata=changeable.get("metadata", {}),
    )
