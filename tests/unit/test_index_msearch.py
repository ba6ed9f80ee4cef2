"""Searches that are in flight together travel together, and fail each for itself."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

import pytest
from opensearchpy.exceptions import ConnectionError as OpenSearchConnectionError
from opensearchpy.exceptions import NotFoundError, RequestError, TransportError

from agents.delivery.failures import DependencyDown
from agents.index.connection import Overloaded
from agents.index.msearch import Searches
from agents.index.places import Place

HERE = Place("images")


class Answering:
    """Answers each search with its own query, once it may."""

    def __init__(self, answer: Callable[[Any], Any] = lambda query: {"found": query}) -> None:
        self.answer = answer
        self.requests: list[list[tuple[Any, Any]]] = []
        self.params: list[Any] = []
        self.may = asyncio.Event()
        self.may.set()

    async def msearch(self, body: bytes, params: Any) -> Any:
        lines = [json.loads(line) for line in body.splitlines()]
        searches = list(zip(lines[::2], lines[1::2], strict=True))
        self.requests.append(searches)
        self.params.append(params)
        await self.may.wait()
        return {"responses": [self.answer(search["query"]) for _header, search in searches]}

    @property
    def sizes(self) -> list[int]:
        return [len(searches) for searches in self.requests]


def refusing(status: int, kind: str) -> Callable[[Any], Any]:
    return lambda query: {"status": status, "error": {"type": kind}} if query == "bad" else {"found": query}


async def find(searches: Searches, query: str, timeout: float = 30.0, **how: Any) -> Any:
    return await searches.find(HERE, {"query": query}, timeout, **how)


async def test_lone_search_goes_at_once_and_says_how_long_it_may_take() -> None:
    client: Any = Answering()
    assert await find(Searches(client), "a", 2.0) == {"found": "a"}
    (((header, body),),) = client.requests
    assert header == {"index": "images"}
    assert body == {"query": "a", "timeout": "1600ms", "track_total_hits": False}
    assert client.params[0]["request_timeout"] == 2.0


async def test_words_are_scored_over_all_shards() -> None:
    client: Any = Answering()
    await find(Searches(client), "a", dfs=True)
    assert client.requests[0][0][0] == {"index": "images", "search_type": "dfs_query_then_fetch"}


async def test_search_in_a_point_in_time_names_no_index_and_keeps_it_alive() -> None:
    client: Any = Answering()
    await Searches(client).find(Place(pit="p", lifetime_s=59.5), {"query": "a"}, 1)
    header, body = client.requests[0][0]
    assert (header, body["pit"]) == ({}, {"id": "p", "keep_alive": "60s"})


async def test_searches_that_come_together_are_one_request() -> None:
    client: Any = Answering()
    searches = Searches(client)
    answers = await asyncio.gather(*(find(searches, str(number)) for number in range(5)))
    assert [answer["found"] for answer in answers] == ["0", "1", "2", "3", "4"]
    assert client.sizes == [5]


async def test_requests_under_way_are_few_and_those_that_wait_go_together() -> None:
    client: Any = Answering()
    client.may.clear()
    searches = Searches(client)
    tasks = []
    for number in range(44):
        tasks.append(asyncio.create_task(find(searches, str(number))))
        for _ in range(3):
            await asyncio.sleep(0)
    assert client.sizes == [1] * 4
    client.may.set()
    assert [answer["found"] for answer in await asyncio.gather(*tasks)] == [str(number) for number in range(44)]
    assert client.sizes == [1] * 4 + [32, 8]


async def test_long_search_keeps_nobody_waiting() -> None:
    client: Any = Answering()
    client.may.clear()
    searches = Searches(client)
    long = [asyncio.create_task(find(searches, "long", alone=True)) for _ in range(6)]
    short = asyncio.create_task(find(searches, "short"))
    for _ in range(5):
        await asyncio.sleep(0)
    assert client.sizes == [1] * 7
    client.may.set()
    await asyncio.gather(short, *long)


@pytest.mark.parametrize(
    ("status", "kind", "expected"),
    [
        (404, "index_not_found_exception", NotFoundError),
        (400, "parsing_exception", RequestError),
        (429, "rejected_execution_exception", Overloaded),
        (503, "no_shard_available_action_exception", DependencyDown),
    ],
)
async def test_failure_of_one_search_is_its_own(status: int, kind: str, expected: type[Exception]) -> None:
    client: Any = Answering(refusing(status, kind))
    searches = Searches(client)
    outcomes = await asyncio.gather(*(find(searches, one) for one in ("a", "bad", "b")), return_exceptions=True)
    assert [outcomes[0], outcomes[2]] == [{"found": "a"}, {"found": "b"}]
    assert isinstance(outcomes[1], expected)
    assert client.sizes == [3]


async def test_search_that_spoils_the_request_of_all_is_found_out() -> None:
    class Strict(Answering):
        async def msearch(self, body: bytes, params: Any) -> Any:
            reply = await super().msearch(body, params)
            if b'"bad"' in body:
                raise RequestError(400, "parsing_exception", {})
            return reply

    client: Any = Strict()
    searches = Searches(client)
    outcomes = await asyncio.gather(*(find(searches, one) for one in ("a", "bad", "b")), return_exceptions=True)
    assert [outcomes[0], outcomes[2]] == [{"found": "a"}, {"found": "b"}]
    assert isinstance(outcomes[1], RequestError)


@pytest.mark.parametrize("failure", [OpenSearchConnectionError("N/A", "gone", OSError()), TransportError(503, "x", {})])
async def test_opensearch_that_is_down_is_down_for_all(failure: Exception) -> None:
    class Down(Answering):
        async def msearch(self, body: bytes, params: Any) -> Any:
            raise failure

    client: Any = Down()
    searches = Searches(client)
    outcomes = await asyncio.gather(*(find(searches, one) for one in ("a", "b")), return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [DependencyDown] * 2


async def test_who_cannot_wait_or_goes_away_leaves_the_others_their_answers() -> None:
    client: Any = Answering()
    client.may.clear()
    searches = Searches(client)
    hasty, leaving, patient = (
        asyncio.create_task(find(searches, query, timeout))
        for query, timeout in (("hasty", 0.01), ("leaving", 30), ("patient", 30))
    )
    with pytest.raises(DependencyDown, match="no answer within"):
        await hasty
    leaving.cancel()
    client.may.set()
    assert await patient == {"found": "patient"}
    assert client.params[0]["request_timeout"] == 30


async def test_what_nobody_waits_for_is_not_asked() -> None:
    client: Any = Answering()
    client.may.clear()
    searches = Searches(client)
    under_way = []
    for _ in range(4):
        under_way.append(asyncio.create_task(find(searches, "a")))
        for _ in range(3):
            await asyncio.sleep(0)
    gone = asyncio.create_task(find(searches, "gone"))
    await asyncio.sleep(0)
    gone.cancel()
    last = asyncio.create_task(find(searches, "last"))
    await asyncio.sleep(0)
    client.may.set()
    await asyncio.gather(last, *under_way)
    assert [[body["query"] for _, body in searches] for searches in client.requests[4:]] == [["last"]]
