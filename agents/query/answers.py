"""A request and its answer, whichever way the request came: question, search, reply."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Protocol

from async_timeout import timeout

from agents.app import model_identity
from agents.delivery.failures import DependencyDown, ItemBroken, NotYet
from agents.delivery.retry import Backoff, until_up
from agents.index.connection import connect
from agents.index.cursor_key import cursor_key
from agents.index.cursors import Cursors, Page
from agents.index.found import Found
from agents.index.question import VectorQuestion
from agents.index.searcher import IndexSearcher
from agents.inference.client import TritonClient
from agents.inference.pixels import PixelBound
from agents.inference.quarantine import Quarantine
from agents.query.vectors import Vectors
from agents.settings import AgentSettings
from agents.sources.reader import SourceReader
from models.manifest import ModelManifest
from sightlog.errors import ConfigurationError, ContractError
from sightlog.search import SearchError, SearchReply, SearchRequest

log = logging.getLogger(__name__)


class Searcher(Protocol):
    """The part of `IndexSearcher` that finds."""

    async def search(self, request: SearchRequest, question: VectorQuestion | None, timeout: float) -> Found: ...

    async def turn_page(self, page: Page, timeout: float) -> Found: ...


class Answers:
    """Answers requests with replies; what is wrong with a request is in its reply."""

    def __init__(self, vectors: Vectors, searcher: Searcher, cursors: Cursors, digest: str, backoff: Backoff) -> None:
        self.vectors = vectors
        self._searcher = searcher
        self._cursors = cursors
        self._digest = digest
        self._backoff = backoff

    async def answer(self, value: bytes | None, seconds: float) -> SearchReply:
        """The reply to the JSON of a request; after `seconds`, that there is none."""
        try:
            request = SearchRequest.from_kafka(value)
            # Not wait_for: a task for each request, and the switches to it and back, are a tenth of its work here.
            async with timeout(seconds):
                return await self.find(request, seconds)
        except (ContractError, ItemBroken, NotYet) as cause:
            return refusal(cause.code, cause.message)
        except ConfigurationError as cause:
            return refusal("model_mismatch", str(cause))
        except asyncio.TimeoutError:
            return refusal("unavailable", f"no result within {seconds:.1f} s; try again later")
        except Exception:
            # One request that nobody thought of must not end the process: it would come again after each start.
            log.exception("a bug: this request was answered with an error")
            return refusal("internal_error", "the search worker failed over this request; its log says how")

    async def find(self, request: SearchRequest, seconds: float) -> SearchReply:
        """The reply to a request that something is found for.

        Raises ContractError, ItemBroken, NotYet, ConfigurationError; waits as long as Triton or OpenSearch is down.
        """
        end = time.monotonic() + seconds
        if request.cursor is not None:
            page, cached = self._cursors.read(request.cursor), True
            found = await self._found(lambda left: self._searcher.turn_page(page, left), end)
        else:
            asked = await self.vectors.ask(request, seconds)
            question, cached = asked.question, asked.cached
            found = await self._found(lambda left: self._searcher.search(request, question, left), end)
        return SearchReply.model_construct(
            hits=found.hits,
            no_good_match=found.no_good_match,
            partial=found.partial,
            cursor=found.cursor,
            facets=dict(found.facets),
            model_digest=self._digest,
            cached=cached,
        )

    async def _found(self, search: Callable[[float], Awaitable[Found]], end: float) -> Found:
        async def attempt() -> Found:
            try:
                return await search(max(end - time.monotonic(), 0.001))
            except DependencyDown:
                if time.monotonic() < end:
                    raise
                # The caller gave too little time. That says nothing about OpenSearch, and holds up nobody else.
                raise asyncio.TimeoutError from None

        return await until_up("opensearch", attempt, self._backoff)


def refusal(code: str, message: str) -> SearchReply:
    """A reply that says why there is none."""
    return SearchReply(error=SearchError(code=code, message=message))


@asynccontextmanager
async def open_answers(settings: AgentSettings, manifest: ModelManifest) -> AsyncIterator[Answers]:
    """Answers from the Triton and the OpenSearch that the settings name."""
    opensearch = connect(settings.opensearch, connections=settings.search_concurrency)
    triton = TritonClient(
        settings.triton, manifest.digest, concurrency=settings.search_concurrency, heal=settings.triton_heal
    )
    sources = SourceReader(settings.folders, settings.max_image_bytes, settings.sources)
    cursors = Cursors(cursor_key(settings), settings.cursor_lifetime, manifest.digest)
    async with opensearch, triton, sources:
        searcher = IndexSearcher(opensearch, settings.index, model_identity(manifest), cursors)
        pictures = PixelBound(Quarantine(triton, settings.backoff), settings.search_megapixels)
        vectors = Vectors(manifest, triton, pictures, sources, searcher, settings.backoff, settings.text_cache)
        yield Answers(vectors, searcher, cursors, manifest.digest, settings.backoff)
