"""What the search agent does with the topics, in a few lines: for tests of the client."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timezone

from sightlog.reply_address import CORRELATION_ID, ReplyAddress
from sightlog.search import Hit, SearchError, SearchReply, SearchRequest
from tests.unit.fake_kafka import FakeBroker, Record

NOON = datetime(2026, 5, 1, 12, tzinfo=timezone.utc)


def hit(name: str = "image-1", **fields: object) -> Hit:
    """A hit with everything that a hit must have."""
    given = {"score": 0.75, "cosine": 0.5, "source": f"{name}.jpg", "width": 640, "height": 480, "uploaded_at": NOON}
    return Hit.model_validate({"image_id": name, **given, **fields})


class AgentDouble:
    """Answers what is asked at a broker; `answer` says how, None: not at all."""

    def __init__(self, broker: FakeBroker, answer: Callable[[SearchRequest], SearchReply | None]) -> None:
        self.broker, self.answer = broker, answer
        self.asked: list[SearchRequest] = []
        self.addresses: list[ReplyAddress] = []
        broker.on["search.requests"] = self._hear

    def _hear(self, record: Record) -> None:
        request = SearchRequest.from_kafka(record.value())
        address = ReplyAddress.from_headers(record.headers() or [])
        self.asked.append(request)
        self.addresses.append(address)
        if (reply := self.answer(request)) is not None:
            headers = [(CORRELATION_ID, address.correlation_id)]
            self.broker.write(address.topic, reply.to_kafka(), headers=headers, partition=address.partition or 0)


def pages_of(total: int) -> Callable[[SearchRequest], SearchReply]:
    """Answers with hits 0 to total, k at a time; the cursor is `place/k`."""

    def answer(request: SearchRequest) -> SearchReply:
        first, k = map(int, request.cursor.split("/")) if request.cursor else (0, request.k)
        last = min(first + k, total)
        on = f"{last}/{k}" if last < total and (request.pages or request.cursor) else None
        return SearchReply(hits=tuple(hit(str(number)) for number in range(first, last)), cursor=on)

    return answer


def refuses(code: str) -> Callable[[SearchRequest], SearchReply]:
    """Answers with an error."""
    return lambda _request: SearchReply(error=SearchError(code=code, message="because"))
