"""Finds in the index what was seen in a file with the same SHA-256, so that it need not be inferred again."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from opensearchpy import AsyncOpenSearch

from agents.index.connection import translated_failures
from agents.index.mappings import ModelIdentity, index_name
from agents.inference.results import ImageInference
from agents.settings import IndexSettings
from sightlog.documents import object_id

log = logging.getLogger(__name__)

#: SHA-256 in one question.
_MOST_AT_ONCE = 64
#: An answer that takes longer, in seconds, is no gain over an inference.
_PATIENCE_S = 2.0
#: After a failure nothing is asked for so many seconds: a search that is down must not slow the stream.
_PAUSE_S = 10.0


class KnownImages:
    """Asks the index of one model; those who ask while an answer is under way are in the next question together."""

    def __init__(self, client: AsyncOpenSearch, settings: IndexSettings, model: ModelIdentity) -> None:
        self._client = client
        self._images = index_name(settings.images, model)
        self._objects = index_name(settings.objects, model)
        self._class_ids = {name: number for number, name in enumerate(model.classes)}
        self._waiting: dict[str, asyncio.Future[ImageInference | None]] = {}
        self._asking: asyncio.Task[None] | None = None
        self._paused_until = 0.0

    async def find(self, sha256: str) -> ImageInference | None:
        """What a visible image of these bytes has in the index; None when there is none, or no answer."""
        loop = asyncio.get_running_loop()
        if loop.time() < self._paused_until:
            return None
        answer = self._waiting.get(sha256)
        if answer is None:
            answer = self._waiting[sha256] = loop.create_future()
        if self._asking is None:
            self._asking = asyncio.create_task(self._ask_all())
        return await asyncio.shield(answer)

    async def _ask_all(self) -> None:
        try:
            while self._waiting:
                asked = {sha256: self._waiting.pop(sha256) for sha256 in list(self._waiting)[:_MOST_AT_ONCE]}
                found: Mapping[str, ImageInference] = {}
                try:
                    with translated_failures("same bytes"):
                        found = await self._ask(list(asked))
                except Exception as error:  # whatever it is: an inference answers as well
                    self._paused_until = asyncio.get_running_loop().time() + _PAUSE_S
                    log.warning("the index does not say what it knows (%s); not asking for %g s", error, _PAUSE_S)
                finally:
                    for sha256, answer in asked.items():
                        answer.set_result(found.get(sha256))
        finally:
            self._asking = None

    async def _ask(self, sha256s: Sequence[str]) -> dict[str, ImageInference]:
        fields = ["sha256", "version", "width", "height", "object_count", "vector"]
        reply = await self._client.search(
            index=self._images,
            body={
                "query": {"bool": {"filter": [{"terms": {"sha256": list(sha256s)}}]}},
                "collapse": {"field": "sha256"},
                "size": len(sha256s),
                "_source": fields,
                "track_total_hits": False,
            },
            params={"request_timeout": _PATIENCE_S},
        )
        images = {hit["_id"]: hit["_source"] for hit in reply["hits"]["hits"]}
        ids = {
            object_id(image_id, ordinal): image_id
            for image_id, image in images.items()
            for ordinal in range(image["object_count"])
        }
        objects: dict[str, list[dict[str, Any]]] = {image_id: [] for image_id in images}
        if ids:
            wanted = ["version", "class", "confidence", "box", "vector"]
            docs = [{"_index": self._objects, "_id": id_, "_source": wanted} for id_ in ids]
            answer = await self._client.mget(body={"docs": docs}, params={"request_timeout": _PATIENCE_S})
            for hit in answer["docs"]:
                # Objects of another version are about to be replaced: as good as missing.
                if hit.get("found") and hit["_source"]["version"] == images[ids[hit["_id"]]]["version"]:
                    objects[ids[hit["_id"]]].append(hit["_source"])
        return {
            image["sha256"]: self._inference(image, objects[image_id])
            for image_id, image in images.items()
            if len(objects[image_id]) == image["object_count"]
        }

    def _inference(self, image: Mapping[str, Any], objects: Sequence[Mapping[str, Any]]) -> ImageInference:
        vector = np.array(image["vector"], np.float32)
        vectors = [one["vector"] for one in objects]
        return ImageInference(
            width=image["width"],
            height=image["height"],
            embedding=vector,
            boxes=np.array([one["box"] for one in objects], np.float32).reshape(-1, 4),
            scores=np.array([one["confidence"] for one in objects], np.float32),
            class_ids=np.array([self._class_ids[one["class"]] for one in objects], np.int32),
            object_embeddings=np.array(vectors, np.float32).reshape(-1, len(vector)),
        )
