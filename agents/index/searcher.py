"""Searches both indices: by nearness, by words, or by both, page after page."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any, Literal

import numpy as np
from opensearchpy import AsyncOpenSearch
from opensearchpy.exceptions import NotFoundError, RequestError

from agents.delivery.failures import DependencyDown
from agents.index.connection import check_model, translated_failures
from agents.index.cursors import Cursors, Page
from agents.index.facets import aggregations, counts
from agents.index.filters import filter_query
from agents.index.found import Found
from agents.index.hits import hit_of, source_fields
from agents.index.legs import matching, nearest
from agents.index.mappings import ModelIdentity, index_name
from agents.index.msearch import Searches
from agents.index.places import Place, close_point_in_time, open_point_in_time
from agents.index.question import VectorQuestion
from agents.index.windows import DEPTH, Window, Windows, is_partial, window_of
from agents.settings import IndexSettings
from sightlog.errors import ContractError
from sightlog.fields import FloatArray
from sightlog.search import GOOD, FacetCount, FacetName, SearchRequest, Target

_UNKNOWN = {"image": "unknown_image", "object": "unknown_object"}


class IndexSearcher:
    """Searches the indices of one model, by their names: a query never meets vectors of another one."""

    def __init__(
        self, client: AsyncOpenSearch, settings: IndexSettings, model: ModelIdentity, cursors: Cursors
    ) -> None:
        self._client = client
        self._settings = settings
        self._model = model
        self._cursors = cursors
        self._searches = Searches(client)
        self._windows = Windows(self._searches, settings, model)
        self._closing: set[asyncio.Task[None]] = set()

    async def search(self, request: SearchRequest, question: VectorQuestion | None, timeout: float) -> Found:
        """The first hits of a request without a cursor.

        `question`: what the clauses of the request mean, None if it has none. After `timeout` seconds, or a little
        before, there is an answer of what could be found until then, or DependencyDown. Raises ContractError
        `unknown_class`, `not_calibrated`, `too_many_cursors`, ConfigurationError when only another model has indices.
        """
        if request.min_relevance is not None and (question is None or question.slope is None):
            raise ContractError("not_calibrated", "the model has no calibration, so no min_relevance can be wanted")
        page = _first_page(request, question)
        async with self._there(page.target):
            if request.pages:
                return await self._first_of_pages(page, request.facets, timeout)
            if request.facets or page.group or (page.question is not None and page.lexical is not None):
                return await self._first_of_window(page, request.facets, timeout)
            return await self._at_once(page, timeout)

    async def turn_page(self, page: Page, timeout: float) -> Found:
        """The hits of a page that a cursor stands for, in the point in time of the first one.

        Raises ContractError `expired_cursor` where that is gone, DependencyDown.
        """
        place = Place(pit=page.pit, lifetime_s=self._cursors.lifetime_s)
        until = time.monotonic() + timeout
        try:
            window = await self._windows.of_pages(page, place, 0, timeout)
            found = await self._shown(page, place, window, (), until - time.monotonic())
        except NotFoundError:
            self._windows.forget(page)
            raise ContractError("expired_cursor", "its point in time is gone; ask for the first page") from None
        return self._with_cursor(page, window, found)

    async def vector_of(self, kind: Literal["image", "object"], id_: str) -> FloatArray:
        """The vector of an indexed image or object, float32 [dim].

        Raises ContractError `unknown_image` or `unknown_object`, DependencyDown.
        """
        target: Target = "images" if kind == "image" else "objects"
        wanted = {"_index": self._index(target), "_id": id_, "_source": ["vector"]}
        with translated_failures(f"vector of an {kind}"):
            (found,) = (await self._client.mget(body={"docs": [wanted]}))["docs"]
        if found.get("error", {}).get("type") == "index_not_found_exception":
            raise await self._missing(target)
        if "error" in found:
            raise DependencyDown(f"OpenSearch (vector of an {kind}): {found['error'].get('type')}")
        if "vector" not in found.get("_source", {}):
            raise ContractError(_UNKNOWN[kind], f"there is no {kind} {id_[:200]} in the index")
        return np.array(found["_source"]["vector"], np.float32)

    async def _at_once(self, page: Page, timeout: float) -> Found:
        """The best hits with one request."""
        filters = filter_query(page.target, page.filters, self._model.classes)
        if page.question is not None:
            query = nearest(page.question, page.k, filters, page.exact, self._settings)
        else:
            query = matching(page.lexical or "", filters)
        body = {"size": page.k, "query": query, "_source": source_fields(page.target, page.include_vectors)}
        answer = await self._searches.find(Place(self._index(page.target)), body, timeout, dfs=page.question is None)
        raw = sorted(answer.get("hits", {}).get("hits", ()), key=lambda hit: (-hit["_score"], hit["_id"]))
        window = window_of(page, {hit["_id"]: hit["_score"] for hit in raw}, is_partial(answer))
        sources = {hit["_id"]: hit["_source"] for hit in raw}
        return _found(page, window, sources)

    async def _first_of_window(self, page: Page, facets: Sequence[FacetName], timeout: float) -> Found:
        place, until = Place(self._index(page.target)), time.monotonic() + timeout
        if page.group:
            window = await self._windows.of_groups(page, place, max(page.k, DEPTH if facets else 0), timeout)
        else:
            window = await self._windows.of(page, place, DEPTH, timeout)
        return await self._shown(page, place, window, facets, until - time.monotonic())

    async def _first_of_pages(self, page: Page, facets: Sequence[FacetName], timeout: float) -> Found:
        until, lifetime_s = time.monotonic() + timeout, self._cursors.lifetime_s
        pit = await open_point_in_time(self._client, self._index(page.target), lifetime_s, timeout)
        goes_on = False
        try:
            page, place = replace(page, pit=pit), Place(pit=pit, lifetime_s=lifetime_s)
            least = DEPTH if facets else 0
            window = await self._windows.of_pages(page, place, least, until - time.monotonic())
            found = await self._shown(page, place, window, facets, until - time.monotonic())
            found = self._with_cursor(page, window, found)
            goes_on = found.cursor is not None
        finally:
            if not goes_on:
                self._close(page)
        return found

    def _with_cursor(self, page: Page, window: Window, found: Found) -> Found:
        """With a cursor if more was found; not after what is partial, since the next page may then not fit to it."""
        offset = page.offset + page.k
        if found.partial or offset >= len(window.entries):
            return found
        return replace(found, cursor=self._cursors.token(replace(page, offset=offset)))

    def _close(self, page: Page) -> None:
        """Let go of a point in time in which nobody reads on; nobody waits for it."""
        self._windows.forget(page)
        closing = asyncio.create_task(close_point_in_time(self._client, page.pit))
        self._closing.add(closing)
        closing.add_done_callback(self._closing.discard)

    async def _shown(
        self, page: Page, place: Place, window: Window, facets: Sequence[FacetName], timeout: float
    ) -> Found:
        """The hits of a page, read from where the window was found; with facets over the window."""
        ids = [entry.id for entry in window.entries[page.offset : page.offset + page.k]]
        counted = [entry.id for entry in window.entries[:DEPTH]] if facets else ids
        if not ids and not counted:
            return _found(page, window, {}, counts(facets, {}))
        body: dict[str, Any] = {
            "size": len(ids),
            "query": {"ids": {"values": counted}},
            "_source": source_fields(page.target, page.include_vectors),
        }
        if facets:
            body |= {"aggs": aggregations(page.target, facets), "post_filter": {"ids": {"values": ids}}}
        answer = await self._searches.find(place, body, timeout)
        sources = {hit["_id"]: hit["_source"] for hit in answer.get("hits", {}).get("hits", ())}
        window = replace(window, partial=window.partial or is_partial(answer))
        return _found(page, window, sources, counts(facets, answer.get("aggregations", {})))

    def _alias(self, target: Target) -> str:
        return self._settings.images if target == "images" else self._settings.objects

    def _index(self, target: Target) -> str:
        return index_name(self._alias(target), self._model)

    @asynccontextmanager
    async def _there(self, target: Target) -> AsyncIterator[None]:
        """Say of a missing index why it is missing, and of a search that OpenSearch refuses, that it is too much."""
        try:
            yield
        except RequestError as error:
            raise ContractError("bad_request", f"OpenSearch cannot search for this: {_reason(error)}") from None
        except NotFoundError:
            raise await self._missing(target) from None

    async def _missing(self, target: Target) -> DependencyDown:
        """What to raise where there is no index. Raises ConfigurationError when only another model has indices."""
        await check_model(self._client, self._settings, self._model)
        return DependencyDown(
            f"OpenSearch: no {self._alias(target)} of model {self._model.name}; an indexer creates it"
        )


def _reason(error: RequestError) -> str:
    """The innermost cause: OpenSearch wraps it in what happened on which shard."""
    info = error.info if isinstance(error.info, dict) else {}
    causes = [info, *info.get("root_cause", ())]
    return str(causes[-1].get("reason") or error.error)[:500]


def _first_page(request: SearchRequest, question: VectorQuestion | None) -> Page:
    return Page(
        pit="",
        target=request.target,
        k=request.k,
        offset=0,
        question=question,
        lexical=request.lexical,
        fusion=request.fusion,
        lexical_weight=request.lexical_weight,
        filters=request.filters,
        min_relevance=request.min_relevance,
        group=request.group,
        include_vectors=request.include_vectors,
        exact=request.exact,
    )


def _found(
    page: Page,
    window: Window,
    sources: Mapping[str, Mapping[str, Any]],
    facets: Mapping[FacetName, tuple[FacetCount, ...]] | None = None,
) -> Found:
    """The hits of a page; without those that were deleted after the window was found."""
    entries = [entry for entry in window.entries[page.offset : page.offset + page.k] if entry.id in sources]
    calibrated = page.question is not None and page.question.slope is not None
    return Found(
        hits=tuple(hit_of(page.target, entry, sources[entry.id], page.question) for entry in entries),
        no_good_match=calibrated and (window.best is None or window.best < GOOD),
        partial=window.partial,
        facets=facets or {},
    )
