"""Sends bulk requests at the pace that OpenSearch bears, and sorts its answers by image."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from typing import Any, Literal

import orjson
from opensearchpy import AsyncOpenSearch

from agents.delivery.failures import DependencyDown, ItemBroken
from agents.index.connection import Overloaded, translated_failures
from agents.index.pace import BulkPace, Refused

log = logging.getLogger(__name__)


class Trouble(Enum):
    """Why the documents of an image must be written again."""

    CONFLICT = "somebody else changed the image in between"
    OVERLOADED = "OpenSearch has too much to do"


@dataclass(frozen=True)
class Action:
    """One line pair of a bulk request."""

    image_id: str
    verb: Literal["index", "create", "delete"]
    target: dict[str, Any]
    source: dict[str, Any] | None = None
    compared: bool = False
    """Takes effect only on the document that was read: a conflict means to read again. Of others it means that newer
    documents are there already."""

    def lines(self) -> bytes:
        """The pair as OpenSearch takes it."""
        head = orjson.dumps({self.verb: self.target}) + b"\n"
        if self.source is None:
            return head
        return head + orjson.dumps(self.source, option=orjson.OPT_SERIALIZE_NUMPY) + b"\n"


class Bulk:
    """Sends actions; several requests where one would be too large."""

    def __init__(self, client: AsyncOpenSearch, pace: BulkPace) -> None:
        self._client = client
        self._pace = pace

    async def send(self, actions: list[Action]) -> dict[str, Trouble | ItemBroken]:
        """Return once all of it is searchable: the images of which not everything was taken, and why.

        Raises DependencyDown when OpenSearch does not answer.
        """
        results = await asyncio.gather(
            *(self._send_part(part, body) for part, body in _parts(actions, self._pace.bytes)), return_exceptions=True
        )
        troubles: dict[str, Trouble | ItemBroken] = {}
        for result in results:
            if isinstance(result, BaseException):
                raise result
            for image_id, trouble in result.items():
                # A document that can never be written outweighs one that could not be this time.
                if isinstance(trouble, ItemBroken) or image_id not in troubles:
                    troubles[image_id] = trouble
        return troubles

    async def _send_part(self, actions: list[Action], body: bytes) -> dict[str, Trouble | ItemBroken]:
        troubles: dict[str, Trouble | ItemBroken] = {}
        try:
            async with self._pace.turn():
                try:
                    with translated_failures("bulk"):
                        reply = await self._client.bulk(body=body, params={"refresh": "wait_for"})
                except Overloaded:
                    troubles = dict.fromkeys((action.image_id for action in actions), Trouble.OVERLOADED)
                    raise Refused from None
                if reply["errors"]:
                    items = [entry[action.verb] for action, entry in zip(actions, reply["items"], strict=True)]
                    troubles = _troubles(actions, items)
                    if any(item["status"] == 429 for item in items):
                        raise Refused
        except Refused:
            pass
        return troubles


def _parts(actions: list[Action], limit: int) -> Iterator[tuple[list[Action], bytes]]:
    part: list[Action] = []
    body: list[bytes] = []
    size = 0
    for action in actions:
        lines = action.lines()
        if part and size + len(lines) > limit:
            yield part, b"".join(body)
            part, body, size = [], [], 0
        part.append(action)
        body.append(lines)
        size += len(lines)
    if part:
        yield part, b"".join(body)


def _troubles(actions: list[Action], items: list[dict[str, Any]]) -> dict[str, Trouble | ItemBroken]:
    troubles: dict[str, Trouble | ItemBroken] = {}
    for action, item in zip(actions, items, strict=True):
        status, error = item["status"], item.get("error", {})
        if status >= 500 or (status == 404 and action.verb != "delete"):
            raise DependencyDown(f"OpenSearch (bulk): {status} {error.get('type')}")
        if status == 429:
            troubles.setdefault(action.image_id, Trouble.OVERLOADED)
        elif status == 409 and action.compared:
            troubles.setdefault(action.image_id, Trouble.CONFLICT)
        elif status >= 400 and status not in (404, 409):
            reason = f"{error.get('type')}: {error.get('reason')}"
            troubles[action.image_id] = ItemBroken("index_refused", reason)
    return troubles
