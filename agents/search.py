"""The search agent: requests in, replies to the topic, partition and correlation id that each request names."""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import Callable
from dataclasses import dataclass

from async_timeout import timeout

from agents.app import new_outbox
from agents.delivery.failures import ItemBroken
from agents.delivery.fair import Job, Turns, drain_in_turns
from agents.delivery.outbox import Outbox
from agents.delivery.prompt import PromptStream
from agents.delivery.records import Record
from agents.metrics import SearchMetrics
from agents.query.answers import Answers, open_answers, refusal
from agents.settings import AgentSettings
from agents.stopping import until_told_to_stop
from models.manifest import load_manifest
from sightlog.errors import ContractError
from sightlog.events import OutgoingHeaders
from sightlog.reply_address import CORRELATION_ID, ReplyAddress
from sightlog.search import SearchReply

log = logging.getLogger(__name__)

#: Part of a request's time kept for sending the reply.
_REPLY_SHARE = 0.1

#: Seconds that a request is held at most, whatever its deadline: it takes a place in the window, and deadlines come
#: in wrong units.
_LONGEST_WAIT = 60.0


async def run_search(settings: AgentSettings) -> None:
    """Run the search worker, a member of the consumer group `sightlog-search`, until it is told to stop."""
    manifest, turns = load_manifest(settings.model_folder), Turns(settings.search_waiting_limits)
    stream = PromptStream(settings, settings.topics.requests, "sightlog-search")
    outbox = new_outbox("search", settings, linger_ms=0)
    async with open_answers(settings, manifest) as answers, outbox, stream:
        metrics = SearchMetrics(turns, answers.vectors.texts)
        with metrics.served(settings.metrics_port):
            agent = Search(settings, answers, outbox, metrics)
            await until_told_to_stop(drain_in_turns(stream, agent.job, settings.search_window, turns))


class Search:
    """Answers requests before their deadlines, or not at all."""

    def __init__(self, settings: AgentSettings, answers: Answers, outbox: Outbox, metrics: SearchMetrics) -> None:
        self._settings = settings
        self._reply_topics = re.compile(settings.reply_topics)
        self.answers = answers
        self.outbox = outbox
        self.metrics = metrics

    def job(self, record: Record) -> Job:
        """What is to be done about a record."""
        now = time.time()
        try:
            address = ReplyAddress.from_headers(record.headers)
            if not self._reply_topics.fullmatch(address.topic):
                raise ContractError("reply_topic_refused", f"replies do not go to {address.topic}")
        except ContractError as cause:
            return _NobodyToTell(self, record, cause)
        return _Request(self, record, address, now, self._deadline(record, address, now))

    def _deadline(self, record: Record, address: ReplyAddress, now: float) -> float:
        """Until when the reply is wanted, in seconds since the epoch; never further than a request may wait."""
        wanted_ms = address.deadline_ms
        if wanted_ms is None:
            return record.timestamp_ms / 1000 + self._settings.search_deadline
        return min(wanted_ms, round((now + _LONGEST_WAIT) * 1000)) / 1000


@dataclass(frozen=True)
class _Request:
    """A request and where its reply goes. Every way ends with the reply confirmed, or too late for it."""

    agent: Search
    record: Record
    address: ReplyAddress
    received: float
    deadline: float

    @property
    def caller(self) -> str | None:
        return None if time.time() >= self.deadline else self.address.turn

    async def work(self, leave: Callable[[], None]) -> None:
        left = self.deadline - time.time()
        if left <= 0:
            return self._late()
        reply = await self.agent.answers.answer(self.record.value, left * (1 - _REPLY_SHARE))
        leave()
        await self._send(reply)

    async def refuse(self) -> None:
        await self._send(
            refusal("too_many_requests", f"{self.address.turn} has too many requests waiting; ask again later")
        )

    async def _send(self, reply: SearchReply) -> None:
        """Send the reply, else an error that says why not; a dead letter where the address takes neither."""
        try:
            try:
                await self._publish(reply)
            except ItemBroken as cause:
                reply = refusal(cause.code, cause.message)
                await self._publish(reply)
        except asyncio.TimeoutError:
            self._late()
        except ItemBroken as cause:
            await self.agent.outbox.bury(self.record, cause)
            self.agent.metrics.dead_letter(cause.code)
        else:
            self.agent.metrics.answered(reply, time.time() - self.received)

    async def _publish(self, reply: SearchReply) -> None:
        left = self.deadline - time.time()
        if left <= 0:
            raise asyncio.TimeoutError
        took_ms = (time.time() - self.received) * 1000
        headers: OutgoingHeaders = [(CORRELATION_ID, self.address.correlation_id)]
        value = reply.model_copy(update={"took_ms": took_ms}).to_kafka()
        async with timeout(left):
            await self.agent.outbox.reply(self.address.topic, value, headers, self.address.partition)

    def _late(self) -> None:
        self.agent.metrics.late()
        log.info("request at %s[%d]@%d is late", self.record.topic, self.record.partition, self.record.offset)


@dataclass(frozen=True)
class _NobodyToTell:
    """A request without an address, or with one that is not for replies."""

    agent: Search
    record: Record
    cause: ContractError

    @property
    def caller(self) -> None:
        return None

    async def work(self, leave: Callable[[], None]) -> None:
        await self.refuse()

    async def refuse(self) -> None:
        await self.agent.outbox.bury(self.record, self.cause)
        self.agent.metrics.dead_letter(self.cause.code)
