"""What callers ask, mixed: texts by Zipf's law, pictures, objects, filters, words, pages, and mistakes."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from models.scenes import KINDS, SHAPES, caption_of
from sightlog.client import Client
from sightlog.errors import NoReply, SearchFailed, SightlogError
from sightlog.filters import SearchFilters, TagFilter
from sightlog.search import SearchRequest

#: Shares of the kinds. Pages are few: each search that is paged through holds a point in time open for minutes.
SHARES: dict[str, float] = {
    "text": 0.50,
    "picture": 0.08,
    "objects": 0.12,
    "like": 0.07,
    "clauses": 0.05,
    "filters": 0.08,
    "hybrid": 0.05,
    "pages": 0.01,
    "mistake": 0.03,
    "impatient": 0.01,
}

_SAYINGS = ("a {}", "one {}", "the {}", "a photo of a {}", "a drawing of a {}", "two {}s", "a small {}", "a large {}")
#: More texts than a search worker remembers.
TEXTS = [saying.format(caption_of(kind)) for kind in KINDS for saying in _SAYINGS]
#: Of an impatient caller, who is gone before there can be a reply.
_NO_TIME = 0.001
_TIMEOUT = 30.0

#: Outcomes that are no error.
FOUND = ("found", "no_good_match")


@dataclass(frozen=True)
class Ask:
    """One thing that a caller does. `expected`: outcomes that are right."""

    kind: str
    request: SearchRequest
    expected: tuple[str, ...] = FOUND
    pages: int = 1
    timeout: float = _TIMEOUT


class Mix:
    """Asks without end, the same ones for the same seed. `pictures`: indexed image ids, each with its file."""

    def __init__(self, tag: str, pictures: Mapping[str, bytes], objects: Sequence[str], seed: int) -> None:
        self._tag, self._pictures, self._objects = tag, pictures, objects
        self._ours = SearchFilters(tags=TagFilter(all=(tag,)))
        self._images = list(pictures)
        self._random = random.Random(seed)
        self._texts = self._random.sample(TEXTS, len(TEXTS))
        self._ranks = list(accumulate(1 / rank for rank in range(1, len(TEXTS) + 1)))
        self._kinds = list(SHARES)
        self._shares = list(accumulate(SHARES.values()))

    def next(self) -> Ask:
        """What is asked next. Not safe in threads."""
        kind = self._random.choices(self._kinds, cum_weights=self._shares)[0]
        if kind == "mistake":
            return self._mistake()
        if kind == "impatient":
            # A worker may still be in time, by a hair.
            return Ask(kind, SearchRequest(text=self._text()), ("no_reply", *FOUND), timeout=_NO_TIME)
        if kind == "pages":
            request = SearchRequest(text=self._text(), k=20, pages=True, filters=self._ours)
            # OpenSearch keeps so many points in time and no more.
            return Ask(kind, request, (*FOUND, "too_many_cursors"), pages=self._random.randint(1, 4))
        return Ask(kind, SearchRequest(**self._asked(kind)))

    def _asked(self, kind: str) -> dict[str, Any]:
        pick = self._random
        if kind == "picture":
            return {"image": self._pictures[pick.choice(self._images)], "target": pick.choice(("images", "objects"))}
        if kind == "objects":
            return {"text": self._text(), "target": "objects", "group": pick.choice(("image", None))}
        if kind == "like":
            if pick.random() < 0.5:
                return {"image_id": pick.choice(self._images)}
            return {"object_id": pick.choice(self._objects), "target": "objects"}
        if kind == "clauses":
            return {"clauses": [{"text": self._text()}, {"text": self._text(), "weight": -0.4}]}
        if kind == "filters":
            shape = pick.choice(SHAPES)
            filters = {"classes": {"any": [shape]}, "min_confidence": 0.3, "tags": [self._tag], "min_width": 64}
            return {"text": self._text(), "filters": filters, "facets": ("classes", "tags")}
        if kind == "hybrid":
            return {"text": self._text(), "lexical": self._tag, "fusion": pick.choice(("rrf", "weighted"))}
        return {"text": self._text()}

    def _mistake(self) -> Ask:
        mistakes: tuple[tuple[dict[str, Any], str], ...] = (
            ({"text": "x", "filters": {"classes": ["unheard of"]}}, "unknown_class"),
            ({"image_id": "nobody has seen it"}, "unknown_image"),
            ({"image": b"no picture"}, "unsupported_format"),
            ({"cursor": "forged"}, "bad_cursor"),
        )
        asked, code = self._random.choice(mistakes)
        return Ask("mistake", SearchRequest(**asked), (code,))

    def _text(self) -> str:
        return self._random.choices(self._texts, cum_weights=self._ranks)[0]


def perform(client: Client, ask: Ask) -> str:
    """Ask, and turn the pages wanted. The outcome: found, no_good_match, no_reply, a code, or the name of an error."""
    try:
        reply = client.search(ask.request, timeout=ask.timeout)
        for _ in range(ask.pages - 1):
            if reply.cursor is None:
                break
            reply = client.search(SearchRequest(cursor=reply.cursor), timeout=ask.timeout)
    except SearchFailed as failure:
        return failure.code
    except NoReply:
        return "no_reply"
    except SightlogError as failure:
        return type(failure).__name__
    return "no_good_match" if reply.no_good_match else "found"
