"""A client of the topics: publish images, search, follow what becomes searchable. Needs only a Kafka broker."""

from __future__ import annotations

import concurrent.futures
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import Future
from datetime import datetime
from types import TracebackType

from typing_extensions import Unpack

from sightlog.connection import Connection
from sightlog.documents import IndexReceipt
from sightlog.errors import FileTooLarge, PublishFailed
from sightlog.events import ImageEvent
from sightlog.outcomes import settled, waits_for
from sightlog.pictures import About, Picture, event_of
from sightlog.published import Published
from sightlog.questions import Asked, first_page, next_page, read_reply, request_of, similar_request
from sightlog.search import Hit, SearchReply, SearchRequest
from sightlog.settings import ClientSettings

#: While the producer's buffer is full.
_ROOM_SECONDS = 0.01


class Client:
    """Publishes images and asks the search agent, over Kafka topics.

    One client serves all threads of a process, over one connection; a process that is forked opens its own. `caller` is
    on whose behalf searches are asked, where one process asks for many: callers take turns.

    >>> with Client() as client:                                     # doctest: +SKIP
    ...     published = client.publish("garden.jpg", tags=["night"])
    ...     client.wait_until_indexed(published)
    ...     for hit in client.search("a fox", target="objects", filters={"tags": ["night"]}).hits:
    ...         print(hit.image_id, hit.box, hit.relevance)
    """

    def __init__(self, settings: ClientSettings | None = None, *, caller: str | None = None) -> None:
        """Settings come from the environment and the running stack unless given. Connects when first needed."""
        self.settings = settings or ClientSettings.load()
        self._connection = Connection(self.settings, caller)

    def search(
        self, question: str | SearchRequest | None = None, *, timeout: float | None = None, **asked: Unpack[Asked]
    ) -> SearchReply:
        """Ask once: `search("a red star", k=3)`, `search(image="a.jpg", target="objects")`, or a whole SearchRequest.

        The keywords are the fields of SearchRequest; `image` may be bytes, a path or an open file. `timeout`: seconds
        from sending to the reply, SIGHTLOG_SEARCH_TIMEOUT unless given; nobody works for a request that is over.
        Hits come by falling score, vectors in them (`include_vectors=True`) are float32 [dim] of unit length.

        Raises BadRequest when the question does not fit, another SearchFailed by the code of the reply, NoReply,
        SightlogError when Kafka does not answer.
        """
        return self._ask(request_of(question, asked), timeout)

    def similar(self, *, timeout: float | None = None, **asked: Unpack[Asked]) -> SearchReply:
        """What is like one picture (`image`, `dataref`), one indexed image (`image_id`) or object (`object_id`).

        Objects are compared with objects unless `target` says otherwise. What is in the index is like itself most.
        Otherwise as `search`; raises NotIndexed when the image or object is not there.
        """
        return self._ask(similar_request(asked), timeout)

    def pages(
        self, question: str | SearchRequest | None = None, *, timeout: float | None = None, **asked: Unpack[Asked]
    ) -> Iterator[SearchReply]:
        """Replies of `k` hits each, as far as there are any, to 10,000 hits; each is asked for when it is wanted.

        All pages are of the index as it was at the first one. `timeout` is of each page. Raises as `search`, and
        ExpiredCursor when the caller takes longer for a page than the agent keeps it open.
        """
        return self._pages(first_page(request_of(question, asked)), timeout)

    def hits(
        self, question: str | SearchRequest | None = None, *, timeout: float | None = None, **asked: Unpack[Asked]
    ) -> Iterator[Hit]:
        """The hits of all pages, one by one; `itertools.islice(client.hits(...), 500)` asks for no more than it needs.

        `k` is how many hits come with each request. Raises as `pages`.
        """
        return (hit for reply in self.pages(question, timeout=timeout, **asked) for hit in reply.hits)

    def publish(
        self, image: ImageEvent | Picture, *, key: str | None = None, timeout: float = 30.0, **about: Unpack[About]
    ) -> Published:
        """Publish a picture (bytes, a path, an open file) or an event, and return when the broker has it.

        `key` is the image id; without it the event's subject, else the SHA-256 of the bytes, so that the same picture
        twice is one image. `tags`, `metadata`, `captured_at`, `filename` and `source` describe a picture; an event has
        its own. `timeout` in seconds. What comes back is what `wait_until_indexed` takes.

        Raises FileTooLarge above SIGHTLOG_INLINE_LIMIT bytes, PublishFailed when the broker does not confirm (the event
        may still be published), ValueError when tags or metadata are not as an event has them, OSError when a file
        cannot be read.
        """
        record = self._connection.outgoing(event_of(image, about, self.settings.inline_limit), key)
        end = time.monotonic() + timeout
        while (outcome := self._connection.publish(record)) is None and time.monotonic() < end:
            time.sleep(_ROOM_SECONDS)
        try:
            if outcome is not None:
                return outcome.result(max(0.0, end - time.monotonic()))
        except concurrent.futures.TimeoutError:
            pass
        raise PublishFailed(f"{self.settings.kafka} did not confirm within {timeout:g} s")

    def publish_async(
        self, event: ImageEvent, *, key: str | None = None, structured: bool = False
    ) -> Future[Published]:
        """Hand one event to the producer; the future is done, or failed with PublishFailed, when the broker answered.

        It fails at once with FileTooLarge when the file is above the inline limit.
        Blocks while the producer's buffer of 64 MiB is full.
        """
        try:
            record = self._connection.outgoing(event, key, structured=structured)
        except FileTooLarge as error:
            refused: Future[Published] = Future()
            refused.set_exception(error)
            return refused
        while (outcome := self._connection.publish(record)) is None:
            time.sleep(_ROOM_SECONDS)
        return outcome

    def flush(self, timeout: float = 30.0) -> None:
        """Wait until the broker answered for everything published so far. Raises PublishFailed."""
        if left := self._connection.flush(timeout):
            raise PublishFailed(f"{left} events were not confirmed by {self.settings.kafka} within {timeout} s")

    def wait_until_indexed(
        self,
        images: str | Published | Iterable[str | Published],
        *,
        timeout: float = 60.0,
        since: datetime | None = None,
    ) -> dict[str, IndexReceipt]:
        """Return the receipts, by image id, when searches see all of these images.

        Best with what `publish` returned: it is told from earlier and later events of the same image. Of a bare image
        id the outcome counts that was written at any time from `since` on, ten minutes ago unless given.

        Raises BecameDeadLetter, whose `code` and `letters` say why, once every image has an outcome or `timeout`
        seconds are over; NotSearchableYet when the time is over; SightlogError when Kafka does not answer.
        """
        waits = waits_for(images, since)
        try:
            self._connection.expect(waits)
            concurrent.futures.wait([wait.outcome for wait in waits], timeout)
            return settled(waits, timeout)
        finally:
            for wait in waits:
                wait.outcome.cancel()

    def close(self) -> None:
        """Send what is still buffered and stop reading; what still waits on other threads fails."""
        self._connection.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _ask(self, request: SearchRequest, timeout: float | None) -> SearchReply:
        seconds = self.settings.search_timeout if timeout is None else timeout
        self._connection.ready().result()
        reply = self._connection.ask(request, seconds)
        try:
            value = reply.result(seconds)
        except concurrent.futures.TimeoutError:
            raise self._connection.no_reply(seconds) from None
        finally:
            reply.cancel()
        return read_reply(value)

    def _pages(self, request: SearchRequest, timeout: float | None) -> Iterator[SearchReply]:
        asking: SearchRequest | None = request
        while asking is not None:
            reply = self._ask(asking, timeout)
            yield reply
            asking = next_page(reply)
