"""From what a request asks to the one vector that the index is asked."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np

from agents.delivery.retry import Backoff, until_up
from agents.index.question import VectorQuestion
from agents.inference.quarantine import Seer
from agents.query.combine import combine
from agents.query.text_cache import TextCache, Tokens
from models.manifest import ModelManifest
from models.tokenizer import ClipTokenizer
from sightlog.errors import ContractError
from sightlog.fields import FloatArray
from sightlog.search import Clause, SearchRequest

#: Seconds for one picture in Triton, where nobody said less.
_LONGEST_S = 60.0


class TextTower(Protocol):
    """The part of `TritonClient` that reads words."""

    async def embed_text(self, tokens: Tokens, timeout: float) -> FloatArray: ...


class References(Protocol):
    """The part of `SourceReader` that is needed here."""

    async def read_reference(self, uri: str) -> bytes: ...


class StoredVectors(Protocol):
    """The part of `IndexSearcher` that knows the vectors of what is indexed."""

    async def vector_of(self, kind: Literal["image", "object"], identity: str) -> FloatArray: ...


@dataclass(frozen=True)
class Asked:
    """What the index is asked, None with words alone, and whether no model was needed for it."""

    question: VectorQuestion | None
    cached: bool


class Vectors:
    """Turns clauses into vectors of one model, and these into one question.

    Waits as long as Triton or the index is down: how long is the caller's business.
    """

    def __init__(
        self,
        manifest: ModelManifest,
        text: TextTower,
        pictures: Seer,
        sources: References,
        stored: StoredVectors,
        backoff: Backoff,
        text_cache: int,
    ) -> None:
        """`pictures` must be what uploads pass: the same picture gives the same vector. `text_cache`: texts kept."""
        self._manifest = manifest
        self._pictures = pictures
        self._sources = sources
        self._stored = stored
        self._backoff = backoff

        async def embed(tokens: Tokens, timeout: float) -> FloatArray:
            return await until_up("triton", lambda: text.embed_text(tokens, timeout), backoff)

        tokenizer = ClipTokenizer(manifest.clip.context_length)
        self.texts = TextCache(embed, tokenizer, manifest.digest, text_cache)

    async def question(self, request: SearchRequest, timeout: float = _LONGEST_S) -> VectorQuestion | None:
        """As `ask`, without telling whether a model was needed."""
        return (await self.ask(request, timeout)).question

    async def ask(self, request: SearchRequest, timeout: float = _LONGEST_S) -> Asked:
        """What the index is to be asked. `timeout`: seconds that Triton has for a picture.

        Raises ContractError (`model_mismatch`, `contradictory`, `unknown_image`, `unknown_object`),
        ItemBroken and NotYet for pictures, as uploads have them.
        """
        clauses = request.parts
        if not clauses:
            return Asked(None, cached=True)
        if len(clauses) == 1:
            found = [await self._vector(clauses[0], timeout)]
        else:
            found = await _all(*(asyncio.ensure_future(self._vector(clause, timeout)) for clause in clauses))
        parts = [(clause, vector) for clause, (vector, _) in zip(clauses, found, strict=True)]
        question = combine(parts, request.target, self._manifest.calibration)
        return Asked(question, cached=all(known for _, known in found))

    async def _vector(self, clause: Clause, timeout: float) -> tuple[FloatArray, bool]:
        """float32 [dim], unit length, and whether no model was needed for it."""
        if clause.text is not None:
            return await self.texts.vector(clause.text)
        if clause.vector is not None:
            return self._checked(clause.vector, clause.model_digest), True
        if clause.image_id is not None:
            return await self._indexed("image", clause.image_id), True
        if clause.object_id is not None:
            return await self._indexed("object", clause.object_id), True
        picture = clause.image
        if picture is None:
            assert clause.dataref is not None
            picture = await self._sources.read_reference(clause.dataref)
        return (await self._pictures.infer_image(picture, timeout)).embedding, False

    async def _indexed(self, kind: Literal["image", "object"], identity: str) -> FloatArray:
        return await until_up("opensearch", lambda: self._stored.vector_of(kind, identity), self._backoff)

    def _checked(self, vector: FloatArray, digest: str | None) -> FloatArray:
        """A vector that somebody brought, at unit length."""
        model = self._manifest
        if digest != model.digest:
            raise ContractError(
                "model_mismatch",
                f"the vector is of model {str(digest)[:12]}, the index of {model.name} ({model.digest}); embed it anew",
            )
        if len(vector) != model.clip.dim:
            raise ContractError(
                "model_mismatch", f"the vector has {len(vector)} values, those of {model.name} have {model.clip.dim}"
            )
        # In float64, where no finite float32 is too small or too large to be squared.
        wide = vector.astype(np.float64)
        return (wide / np.linalg.norm(wide)).astype(np.float32)


async def _all(*tasks: asyncio.Future[tuple[FloatArray, bool]]) -> list[tuple[FloatArray, bool]]:
    """The results of all; what one raises ends the others."""
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()
