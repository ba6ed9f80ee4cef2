"""What was seen already: the same bytes are not inferred twice.

The results of the last pictures are kept, by the SHA-256 of the file, as many as their bytes allow. Of pictures that
come at the same time the first is inferred and the others wait for it. Whatever is older is asked for in the index.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable

from agents.inference.results import ImageInference

Infer = Callable[[], Awaitable[ImageInference]]
Lookup = Callable[[str], Awaitable[ImageInference | None]]

#: Of an entry without its vectors, in Python objects.
_ENTRY_BYTES = 1500


class SeenPictures:
    """Remembers results of at most `max_bytes`, 0: everything is inferred; `lookup` finds older ones, or None."""

    def __init__(self, max_bytes: int, lookup: Lookup | None = None) -> None:
        self._max_bytes = max_bytes
        self._lookup = lookup
        #: By SHA-256, the last used at the end.
        self._recent: OrderedDict[str, ImageInference] = OrderedDict()
        self._bytes = 0
        self._under_way: dict[str, asyncio.Future[ImageInference]] = {}

    async def see(self, sha256: str, infer: Infer) -> tuple[ImageInference, bool]:
        """What is seen in a file, and whether that was known before; raises what `infer` raises.

        Whoever waits for another's inference shares its failure too: the bytes are the same.
        """
        if not self._max_bytes:
            return await infer(), False
        while True:
            if (known := self._recent.get(sha256)) is not None:
                self._recent.move_to_end(sha256)
                return known, True
            other = self._under_way.get(sha256)
            if other is None:
                return await self._see_first(sha256, infer)
            try:
                return await asyncio.shield(other), True
            except asyncio.CancelledError:
                if not other.cancelled():
                    raise
                # The other one was given up, not this one.

    async def _see_first(self, sha256: str, infer: Infer) -> tuple[ImageInference, bool]:
        mine: asyncio.Future[ImageInference] = asyncio.get_running_loop().create_future()
        self._under_way[sha256] = mine
        try:
            known = await self._lookup(sha256) if self._lookup is not None else None
            seen = known if known is not None else await infer()
        except asyncio.CancelledError:
            mine.cancel()
            raise
        except BaseException as error:
            mine.set_exception(error)
            mine.exception()  # nobody may be waiting
            raise
        else:
            mine.set_result(seen)
            self._keep(sha256, seen)
            return seen, known is not None
        finally:
            del self._under_way[sha256]

    def _keep(self, sha256: str, seen: ImageInference) -> None:
        self._recent[sha256] = seen
        self._bytes += _size(seen)
        while self._bytes > self._max_bytes:
            self._bytes -= _size(self._recent.popitem(last=False)[1])


def _size(seen: ImageInference) -> int:
    arrays = (seen.embedding, seen.boxes, seen.scores, seen.class_ids, seen.object_embeddings)
    return _ENTRY_BYTES + sum(array.nbytes for array in arrays)
