"""Windows: what a request finds, in order and down to some depth, without the documents themselves.

Pages, fusion, groups and facets all look at a window; only the documents that a reply shows are then read.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from agents.index.cursors import Page
from agents.index.filters import Query, filter_query
from agents.index.fusion import fused, ordered
from agents.index.hits import Entry, cosine_of
from agents.index.legs import matching, nearest
from agents.index.mappings import ModelIdentity
from agents.index.msearch import Searches
from agents.index.places import Place
from agents.settings import IndexSettings
from sightlog.documents import object_id
from sightlog.search import MAX_RESULTS

#: How far facets are counted, and how far the legs of a fusion reach where no pages are wanted.
DEPTH = 1000
#: Objects looked at for each wanted image at first; then four times as many, and so on.
_OBJECTS_AN_IMAGE = 4


@dataclass(frozen=True)
class Window:
    """The found documents in their order."""

    entries: tuple[Entry, ...] = ()
    best: float | None = None
    """The highest relevance of all, also of what was left out; None where nothing is calibrated, or nothing is near."""
    whole: bool = True
    """Nothing lies deeper, or nothing that could be shown."""
    partial: bool = False
    """A part of the index did not answer."""


@dataclass(frozen=True)
class _Leg:
    scores: Mapping[str, float]
    """By id, in their order."""
    whole: bool
    partial: bool


class Windows:
    """Asks for windows; those of pages are kept for the pages that follow."""

    def __init__(self, searches: Searches, settings: IndexSettings, model: ModelIdentity) -> None:
        self._searches = searches
        self._settings = settings
        self._model = model
        self._kept: OrderedDict[str, Window] = OrderedDict()

    async def of_pages(self, page: Page, place: Place, least: int, timeout: float) -> Window:
        """More than the hits of a page and those before it, and at least so many, as far as pages go.

        The same in every worker and every time, since a point in time does not change, nor does a graph in it answer
        differently. Few read more than the first pages, so these look less deep; what only a deeper look finds comes
        after what they showed.
        """
        until = time.monotonic() + timeout
        # Each first page opens a point in time of its own, so nothing else is asked in it.
        window = self._kept.get(page.pit)
        if window is None:
            # Of a fusion the depth decides on the scores, so it has one only.
            depth = DEPTH if page.question is None or page.lexical is None else MAX_RESULTS
            window = await self.of(page, place, depth, timeout)
        if not window.whole and (len(window.entries) <= page.offset + page.k or len(window.entries) < least):
            window = _continued(page, window, await self.of(page, place, MAX_RESULTS, until - time.monotonic()))
        if not window.partial:
            self._kept[page.pit] = window
            self._kept.move_to_end(page.pit)
            while len(self._kept) > self._settings.windows_kept:
                self._kept.popitem(last=False)
        return window

    def forget(self, page: Page) -> None:
        """No page follows."""
        self._kept.pop(page.pit, None)

    async def of_groups(self, page: Page, place: Place, least: int, timeout: float) -> Window:
        """At least so many images if there are, looking at as many objects as it takes."""
        until = time.monotonic() + timeout
        depth = min(max(_OBJECTS_AN_IMAGE * least, DEPTH), MAX_RESULTS)
        while True:
            window = await self.of(page, place, depth, until - time.monotonic())
            if len(window.entries) >= least or window.whole or window.partial or depth == MAX_RESULTS:
                return window
            depth = min(4 * depth, MAX_RESULTS)

    async def of(self, page: Page, place: Place, depth: int, timeout: float) -> Window:
        """What the request of a page finds, from the beginning, as far down as `depth` documents of each leg go."""
        filters = filter_query(page.target, page.filters, self._model.classes)
        asked: list[tuple[Query, bool]] = []
        if page.question is not None:
            asked.append((nearest(page.question, depth, filters, page.exact, self._settings), False))
        if page.lexical is not None:
            asked.append((matching(page.lexical, filters), True))
        legs = await asyncio.gather(*(self._leg(page, place, query, depth, timeout, dfs) for query, dfs in asked))
        near = legs[0] if page.question is not None else None
        worded = legs[-1] if page.lexical is not None else None
        return _window(page, near, worded)

    async def _leg(self, page: Page, place: Place, query: Query, depth: int, timeout: float, dfs: bool) -> _Leg:
        """Ids and scores only. Doc values bring an id without unpacking the document that it is stored with."""
        named = ["image_id"] if page.target == "images" else ["image_id", "ordinal"]
        body = {"size": depth, "query": query, "_source": False, "stored_fields": "_none_", "docvalue_fields": named}
        answer = await self._searches.find(place, body, timeout, dfs=dfs, alone=depth > DEPTH)
        hits = answer.get("hits", {}).get("hits", ())
        scores = {_id(page, hit["fields"]): hit["_score"] for hit in hits}
        return _Leg(ordered(scores), whole=len(hits) < depth, partial=is_partial(answer))


def is_partial(answer: Mapping[str, Any]) -> bool:
    """Whether some shard failed, or had not finished in time."""
    return bool(answer.get("timed_out") or answer.get("_shards", {}).get("failed"))


def _id(page: Page, fields: Mapping[str, Any]) -> str:
    (image_id,) = fields["image_id"]
    return image_id if page.target == "images" else object_id(image_id, fields["ordinal"][0])


def window_of(page: Page, scores: Mapping[str, float], partial: bool) -> Window:
    """Of what one request found: scores by id, in their order, as OpenSearch gave them."""
    leg = _Leg(scores, whole=True, partial=partial)
    return _window(page, None, leg) if page.question is None else _window(page, leg, None)


def _window(page: Page, near: _Leg | None, worded: _Leg | None) -> Window:
    question, words = page.question, worded.scores if worded else {}
    cosines = {id_: cosine_of(score) for id_, score in near.scores.items()} if near else {}
    best = next(iter(cosines.values()), None)
    whole = all(leg.whole for leg in (near, worded) if leg)
    if question is None:
        entries = [Entry(id_, score, None, score) for id_, score in words.items()]
    else:
        if page.min_relevance is not None:
            # What is not relevant takes no place in the fusion either.
            relevances = {id_: question.relevance(cosine) or 0.0 for id_, cosine in cosines.items()}
            cosines = {id_: cosine for id_, cosine in cosines.items() if relevances[id_] >= page.min_relevance}
            words = {id_: score for id_, score in words.items() if id_ in cosines}
            whole = whole or (worded is None and len(cosines) < len(relevances))
        scores = {id_: question.score(cosine) for id_, cosine in cosines.items()}
        if worded is not None:
            scores = ordered(fused(page.fusion, [(scores, 1 - page.lexical_weight), (words, page.lexical_weight)]))
        entries = [Entry(id_, score, cosines.get(id_), words.get(id_)) for id_, score in scores.items()]
    firsts: dict[str, Entry] = {}
    for entry in entries:
        firsts.setdefault(_name(page, entry), entry)
    return Window(
        entries=tuple(firsts.values()),
        best=None if best is None or question is None else question.relevance(best),
        whole=whole,
        partial=any(leg.partial for leg in (near, worded) if leg),
    )


def _continued(page: Page, first: Window, deep: Window) -> Window:
    """The first, and what else lies deeper; of an image that was shown there is nothing more, where it is grouped."""
    shown = {_name(page, entry) for entry in first.entries}
    rest = (entry for entry in deep.entries if _name(page, entry) not in shown)
    entries = (*first.entries, *rest)[:MAX_RESULTS]
    return replace(deep, entries=entries, whole=True, partial=first.partial or deep.partial)


def _name(page: Page, entry: Entry) -> str:
    """What is shown once."""
    return entry.id.rpartition("#")[0] if page.group else entry.id
