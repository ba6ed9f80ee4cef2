"""Cursors: where the next page begins, and of what, signed, so that any worker with the same key can go on."""

from __future__ import annotations

import base64
import hashlib
import hmac
import struct
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import orjson
from pydantic import ValidationError

from agents.index.question import VectorQuestion
from sightlog.errors import ContractError
from sightlog.filters import SearchFilters
from sightlog.search import MAX_CURSOR, Fusion, Target

#: Of the layout below; a cursor of another version is refused.
_VERSION = 1
#: Version, and bytes of the JSON that follows; after it the vector, little-endian float32.
_HEAD = struct.Struct("<BI")
#: Characters of HMAC-SHA256 as base64 without padding.
_SIGNATURE_LENGTH = 43


@dataclass(frozen=True, eq=False)
class Page:
    """A page that is still to come: what was asked, in which point in time of the index, and from which hit on."""

    pit: str
    """Id of the point in time, as OpenSearch gave it."""
    target: Target
    k: int
    """Hits of a page."""
    offset: int
    """Hits of the pages before."""
    question: VectorQuestion | None = None
    """None: words alone."""
    lexical: str | None = None
    fusion: Fusion = "rrf"
    lexical_weight: float = 0.5
    filters: SearchFilters = field(default_factory=SearchFilters)
    min_relevance: float | None = None
    group: Literal["image"] | None = None
    include_vectors: bool = False
    exact: bool = False


#: Fields of a page that JSON holds as they are.
_PLAIN = (
    "pit",
    "target",
    "k",
    "offset",
    "lexical",
    "fusion",
    "lexical_weight",
    "min_relevance",
    "group",
    "include_vectors",
    "exact",
)


class Cursors:
    """Turns pages into cursors and back.

    A cursor is text, url-safe base64: a signature (HMAC-SHA256) and what it signs. It is not secret, but nobody without
    the key can make or change one. `lifetime_s`: from when it is made; the point in time must live as long.
    """

    def __init__(
        self, key: bytes, lifetime_s: float, model_digest: str, clock: Callable[[], float] = time.time
    ) -> None:
        self._key = key
        self.lifetime_s = lifetime_s
        self._model_digest = model_digest
        self._clock = clock

    def token(self, page: Page) -> str:
        """The cursor of a page. Raises ContractError `too_large` where the filters are too long for one."""
        facts: dict[str, Any] = {name: getattr(page, name) for name in _PLAIN}
        facts["filters"] = page.filters.model_dump(mode="json", exclude_defaults=True)
        facts["model"] = self._model_digest
        facts["expires"] = self._clock() + self.lifetime_s
        vector = b""
        if page.question is not None:
            facts["slope"], facts["intercept"] = page.question.slope, page.question.intercept
            vector = page.question.vector.astype("<f4").tobytes()
        packed = orjson.dumps(facts)
        content = _base64(_HEAD.pack(_VERSION, len(packed)) + packed + vector)
        cursor = self._signature(content) + content
        if len(cursor) > MAX_CURSOR:
            raise ContractError("too_large", f"filters and words too long for pages: {len(cursor)} of {MAX_CURSOR}")
        return cursor.decode("ascii")

    def read(self, cursor: str) -> Page:
        """The page of a cursor.

        Raises ContractError `bad_cursor` for anything that these cursors, of this version and this model, did not make,
        and `expired_cursor` past its time.
        """
        # Nothing of it is decoded before the signature of the very same characters was found to be right.
        if len(cursor) > MAX_CURSOR or not cursor.isascii():
            raise _not_ours()
        signature, content = cursor[:_SIGNATURE_LENGTH].encode(), cursor[_SIGNATURE_LENGTH:].encode()
        if not hmac.compare_digest(signature, self._signature(content)):
            raise _not_ours()
        packed = base64.urlsafe_b64decode(content + b"=" * (-len(content) % 4))
        version, length = _HEAD.unpack_from(packed)
        if version != _VERSION:
            raise ContractError("bad_cursor", "another version of the search worker made it; ask for the first page")
        facts = orjson.loads(packed[_HEAD.size : _HEAD.size + length])
        if facts["model"] != self._model_digest:
            raise ContractError("bad_cursor", "it is of another model, whose vectors are not searched now; ask anew")
        if facts["expires"] <= self._clock():
            raise ContractError("expired_cursor", f"a cursor lives {self.lifetime_s:g} s; ask for the first page")
        return _page(facts, packed[_HEAD.size + length :])

    def _signature(self, content: bytes) -> bytes:
        return _base64(hmac.digest(self._key, content, hashlib.sha256))


def _page(facts: dict[str, Any], vector: bytes) -> Page:
    question = None
    if vector:
        question = VectorQuestion(np.frombuffer(vector, "<f4"), facts["slope"], facts["intercept"])
    try:
        filters = SearchFilters.model_validate(facts["filters"])
    except ValidationError:  # made before the rules for filters changed
        raise _not_ours() from None
    return Page(**{name: facts[name] for name in _PLAIN}, question=question, filters=filters)


def _base64(content: bytes) -> bytes:
    return base64.urlsafe_b64encode(content).rstrip(b"=")


def _not_ours() -> ContractError:
    return ContractError("bad_cursor", "no cursor of this service; send the one of the last reply, as it came")
