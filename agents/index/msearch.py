"""Searches that are wanted at the same time go to OpenSearch in one request."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import orjson
from opensearchpy import AsyncOpenSearch
from opensearchpy.exceptions import HTTP_EXCEPTIONS, RequestError, TransportError

from agents.delivery.failures import DependencyDown
from agents.index.connection import translated_failures
from agents.index.places import Place

#: Requests under way; what is asked meanwhile waits for one of them, and then goes together.
_FLIGHTS = 4
#: Searches in a request: as many as a node works on for some tens of milliseconds.
_MOST_TOGETHER = 32

#: What is read of an answer; OpenSearch leaves out the rest.
_FIELDS = ("hits.hits._id", "hits.hits._score", "hits.hits._source", "hits.hits.fields", "aggregations", "timed_out")
_FILTER = ",".join(f"responses.{field}" for field in (*_FIELDS, "_shards.failed", "error", "status"))


@dataclass(frozen=True, eq=False)
class _Wanted:
    lines: bytes
    timeout: float
    answer: asyncio.Future[dict[str, Any]]


class Searches:
    """Sends searches; a lone one at once, many that are in flight together as one `_msearch`."""

    def __init__(self, client: AsyncOpenSearch) -> None:
        self._client = client
        self._waiting: deque[_Wanted] = deque()
        self._flights = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self._due: asyncio.Handle | None = None

    async def find(
        self, place: Place, body: dict[str, Any], timeout: float, *, dfs: bool = False, alone: bool = False
    ) -> dict[str, Any]:
        """The answer to one search, without what nobody reads.

        `dfs`: scores by words do not depend on how documents are spread over shards. `alone`: it takes long, so others
        must not wait for it. Raises DependencyDown, also after `timeout` seconds, NotFoundError, and TransportError for
        what OpenSearch refuses; all of these come to this caller only.
        """
        header = {**place.header, **({"search_type": "dfs_query_then_fetch"} if dfs else {})}
        # OpenSearch then answers with what it has, while there is time to read that.
        body = {**body, **place.body, "timeout": f"{max(int(timeout * 800), 1)}ms", "track_total_hits": False}
        lines = b"%b\n%b\n" % (orjson.dumps(header), orjson.dumps(body, option=orjson.OPT_SERIALIZE_NUMPY))
        loop = asyncio.get_running_loop()
        wanted = _Wanted(lines, timeout, loop.create_future())
        if alone:
            self._depart([wanted])
        else:
            self._waiting.append(wanted)
            # Not before all that is ready to run has had its turn: requests come in bunches.
            self._due = self._due or loop.call_soon(self._depart_all)
        try:
            answer = await asyncio.wait_for(wanted.answer, timeout)
        except asyncio.TimeoutError:
            raise DependencyDown(f"OpenSearch (search): no answer within the {max(timeout, 0):.2f} s left") from None
        if "error" in answer:
            with translated_failures("search"):
                status, error = answer["status"], answer["error"]
                raise HTTP_EXCEPTIONS.get(status, TransportError)(status, error.get("type"), error)
        return answer

    def _depart_all(self) -> None:
        self._due = None
        while self._waiting and self._flights < _FLIGHTS:
            part: list[_Wanted] = []
            while self._waiting and len(part) < _MOST_TOGETHER:
                wanted = self._waiting.popleft()
                # Nobody waits any more for one that is cancelled or was too late.
                part += [] if wanted.answer.done() else [wanted]
            if part:
                self._flights += 1
                self._depart(part).add_done_callback(self._landed)

    def _landed(self, _flight: asyncio.Task[None]) -> None:
        self._flights -= 1
        self._depart_all()

    def _depart(self, part: Sequence[_Wanted]) -> asyncio.Task[None]:
        flight = asyncio.create_task(self._fly(part))
        self._tasks.add(flight)
        flight.add_done_callback(self._tasks.discard)
        return flight

    async def _fly(self, part: Sequence[_Wanted]) -> None:
        try:
            with translated_failures("search"):
                reply = await self._client.msearch(
                    body=b"".join(wanted.lines for wanted in part),
                    params={"filter_path": _FILTER, "request_timeout": max(wanted.timeout for wanted in part)},
                )
        except RequestError as error:
            # One that cannot be read spoils the request for all of them.
            if len(part) > 1:
                await asyncio.gather(*(self._fly([wanted]) for wanted in part))
            else:
                _fail(part, error)
        except Exception as error:
            _fail(part, error)
        else:
            for wanted, answer in zip(part, reply["responses"], strict=True):
                if not wanted.answer.done():
                    wanted.answer.set_result(answer)
        finally:
            for wanted in part:
                wanted.answer.cancel()


def _fail(part: Sequence[_Wanted], error: Exception) -> None:
    for wanted in part:
        if not wanted.answer.done():
            wanted.answer.set_exception(error)
