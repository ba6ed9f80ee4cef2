"""The client for asyncio: the same as `sightlog.client.Client`, with coroutines, and no thread for a request."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from datetime import datetime
from types import TracebackType

from typing_extensions import Unpack

from sightlog.connection import Connection
from sightlog.documents import IndexReceipt
from sightlog.errors import PublishFailed
from sightlog.events import ImageEvent
from sightlog.outcomes import settled, waits_for
from sightlog.pictures import About, Picture, event_of
from sightlog.published import Published
from sightlog.questions import Asked, first_page, next_page, read_reply, request_of, similar_request
from sightlog.search import Hit, SearchReply, SearchRequest
from sightlog.settings import ClientSettings

#: While the producer's buffer is full.
_ROOM_SECONDS = 0.01


class AsyncClient:
    """Publishes images and asks the search agent, over Kafka topics. What is said of Client holds here too.

    Coroutines of any number wait on futures that two threads complete, whatever the event loop. A path or an open file
    is read in the event loop: at most 5 MiB to search, SIGHTLOG_INLINE_LIMIT to publish.

    >>> async with AsyncClient() as client:                          # doctest: +SKIP
    ...     replies = await asyncio.gather(*(client.search(text) for text in ("a fox", "a hedgehog")))
    """

    def __init__(self, settings: ClientSettings | None = None, *, caller: str | None = None) -> None:
        """Settings come from the environment and the running stack unless given. Connects when first needed."""
        self.settings = settings or ClientSettings.load()
        self._connection = Connection(self.settings, caller)

    async def search(
        self, question: str | SearchRequest | None = None, *, timeout: float | None = None, **asked: Unpack[Asked]
    ) -> SearchReply:
        """Ask once; see Client.search."""
        return await self._ask(request_of(question, asked), timeout)

    async def similar(self, *, timeout: float | None = None, **asked: Unpack[Asked]) -> SearchReply:
        """What is like one picture, indexed image or object; see Client.similar."""
        return await self._ask(similar_request(asked), timeout)

    def pages(
        self, question: str | SearchRequest | None = None, *, timeout: float | None = None, **asked: Unpack[Asked]
    ) -> AsyncIterator[SearchReply]:
        """Replies of `k` hits each, as far as there are any; see Client.pages."""
        return self._pages(first_page(request_of(question, asked)), timeout)

    async def hits(
        self, question: str | SearchRequest | None = None, *, timeout: float | None = None, **asked: Unpack[Asked]
    ) -> AsyncIterator[Hit]:
        """The hits of all pages, one by one; see Client.hits."""
        async for reply in self.pages(question, timeout=timeout, **asked):
            for hit in reply.hits:
                yield hit

    async def publish(
        self, image: ImageEvent | Picture, *, key: str | None = None, timeout: float = 30.0, **about: Unpack[About]
    ) -> Published:
        """Publish a picture or an event, and return when the broker has it; see Client.publish."""
        record = self._connection.outgoing(event_of(image, about, self.settings.inline_limit), key)
        loop = asyncio.get_running_loop()
        end = loop.time() + timeout
        while (outcome := self._connection.publish(record)) is None and loop.time() < end:
            await asyncio.sleep(_ROOM_SECONDS)
        try:
            if outcome is not None:
                return await asyncio.wait_for(asyncio.wrap_future(outcome), max(0.0, end - loop.time()))
        except asyncio.TimeoutError:
            pass
        raise PublishFailed(f"{self.settings.kafka} did not confirm within {timeout:g} s")

    async def wait_until_indexed(
        self,
        images: str | Published | Iterable[str | Published],
        *,
        timeout: float = 60.0,
        since: datetime | None = None,
    ) -> dict[str, IndexReceipt]:
        """Return the receipts, by image id, when searches see all of these images; see Client.wait_until_indexed."""
        waits = waits_for(images, since)
        try:
            self._connection.expect(waits)
            if waits:
                await asyncio.wait([asyncio.wrap_future(wait.outcome) for wait in waits], timeout=timeout)
            return settled(waits, timeout)
        finally:
            for wait in waits:
                wait.outcome.cancel()

    async def close(self) -> None:
        """Send what is still buffered and stop reading; what still waits fails."""
        await asyncio.to_thread(self._connection.close)

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def _ask(self, request: SearchRequest, timeout: float | None) -> SearchReply:
        seconds = self.settings.search_timeout if timeout is None else timeout
        await asyncio.wrap_future(self._connection.ready())
        reply = self._connection.ask(request, seconds)
        try:
            value = await asyncio.wait_for(asyncio.wrap_future(reply), seconds)
        except asyncio.TimeoutError:
            raise self._connection.no_reply(seconds) from None
        return read_reply(value)

    async def _pages(self, request: SearchRequest, timeout: float | None) -> AsyncIterator[SearchReply]:
        asking: SearchRequest | None = request
        while asking is not None:
            reply = await self._ask(asking, timeout)
            yield reply
            asking = next_page(reply)
