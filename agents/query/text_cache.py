"""Vectors of the texts that were asked last: people ask the same things, and the text tower is the slow part."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from models.tokenizer import ClipTokenizer
from sightlog.fields import FloatArray

Tokens = npt.NDArray[np.int64]
#: Token ids [context] and seconds -> float32 [dim], unit length.
Embed = Callable[[Tokens, float], Awaitable[FloatArray]]

#: Seconds that the tower has for a text; who waits for it may leave before, and the last one to leave ends it.
_EMBED_S = 30.0


@dataclass
class _Asked:
    """A text that the tower has now, and how many wait for it."""

    task: asyncio.Task[FloatArray]
    waiting: int = 0


class TextCache:
    """The last `size` texts of one model and their vectors; equal texts that come at once are asked once.

    A text is known by what the tower reads of it: its token ids. So case, spaces, entities, and whatever stands beyond
    the last token that fits, make no difference here as they make none there. Belongs to one event loop.
    """

    def __init__(self, embed: Embed, tokenizer: ClipTokenizer, digest: str, size: int) -> None:
        self._embed = embed
        self._tokenizer = tokenizer
        self._digest = digest
        self._size = size
        #: The one that was asked for longest ago first.
        self._known: OrderedDict[tuple[str, bytes], FloatArray] = OrderedDict()
        self._asked: dict[tuple[str, bytes], _Asked] = {}
        self.hits = 0
        self.misses = 0

    async def vector(self, text: str) -> tuple[FloatArray, bool]:
        """The text's vector, float32 [dim], and whether it was known; raises as `embed` does."""
        tokens = self._tokenizer.encode([text])[0]
        key = (self._digest, tokens.tobytes())
        known = self._known.get(key)
        if known is not None:
            self._known.move_to_end(key)
            self.hits += 1
            return known, True
        self.misses += 1
        return await self._new(key, tokens), False

    async def _new(self, key: tuple[str, bytes], tokens: Tokens) -> FloatArray:
        asked = self._asked.get(key)
        if asked is None:
            asked = self._asked[key] = _Asked(asyncio.ensure_future(self._embed(tokens, _EMBED_S)))
            asked.task.add_done_callback(lambda task: self._answered(key, task))
        asked.waiting += 1
        try:
            return await asyncio.shield(asked.task)
        finally:
            asked.waiting -= 1
            if not asked.waiting and not asked.task.done():
                # Nobody wants it any more. Who asks for it next starts anew.
                self._asked.pop(key)
                asked.task.cancel()

    def _answered(self, key: tuple[str, bytes], task: asyncio.Future[FloatArray]) -> None:
        asked = self._asked.get(key)
        if asked is not None and asked.task is task:
            del self._asked[key]
        if task.cancelled() or task.exception() is not None:
            return
        vector = task.result()
        # Many requests share it.
        vector.setflags(write=False)
        self._known[key] = vector
        if len(self._known) > self._size:
            self._known.popitem(last=False)
