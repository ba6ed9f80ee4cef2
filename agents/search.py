"""The search agent: requests in, replies to the topic, partition and correlation id that each request names."""

from __future__ import annotations

import asyncio
import logging
import re
import time

import faust
from faust.streams import Stream
from opensearchpy import AsyncOpenSearch

from agents.app import attach, model_identity, new_app, new_outbox
from agents.delivery.failures import ItemBroken
from agents.delivery.outbox import Outbox
from agents.delivery.records import Record
from agents.delivery.retry import until_up
from agents.delivery.window import drain
from agents.index.connection import connect
from agents.index.queries import IndexSearcher
from agents.inference.client import TritonClient
from agents.settings import AgentSettings
from models.manifest import ModelManifest, load_manifest
from models.tokenizer import ClipTokenizer
from sightlog.errors import ConfigurationError, ContractError
from sightlog.events import OutgoingHeaders
from sightlog.fields import FloatArray
from sightlog.reply_address import CORRELATION_ID, ReplyAddress
from sightlog.search import SearchError, SearchReply, SearchRequest

log = logging.getLogger(__name__)

#: Part of a request's time kept for sending the reply.
_REPLY_SHARE = 0.1

#: Seconds that a request is held at most, whatever its deadline: it takes a place in the window, and deadlines come
#: in wrong units.
_LONGEST_WAIT = 60.0


def search_app(settings: AgentSettings) -> faust.App:
    """The Faust app of the consumer group `sightlog-search`."""
    manifest = load_manifest(settings.model_folder)

    async def search(stream: Stream[bytes]) -> None:
        opensearch = connect(settings.opensearch, connections=settings.search_concurrency)
        triton = TritonClient(
            settings.triton, manifest.digest, concurrency=settings.search_concurrency, heal=settings.triton_heal
        )
        async with opensearch, triton, new_outbox("search", settings, linger_ms=0) as outbox:
            agent = Search(settings, manifest, triton, opensearch, outbox)
            await drain(stream.noack(), agent.reply, settings.search_window)

    return attach(new_app("search", settings), settings.topics.requests, search)


class Search:
    """Answers requests before their deadlines, or not at all."""

    def __init__(
        self,
        settings: AgentSettings,
        manifest: ModelManifest,
        triton: TritonClient,
        opensearch: AsyncOpenSearch,
        outbox: Outbox,
    ) -> None:
        self._settings = settings
        self._manifest = manifest
        self._model = model_identity(manifest)
        self._tokenizer = ClipTokenizer(manifest.clip.context_length)
        self._triton = triton
        self._searcher = IndexSearcher(opensearch, settings.index, self._model)
        self._outbox = outbox
        self._reply_topics = re.compile(settings.reply_topics)
        #: Requests whose deadline passed before a reply could be sent.
        self.late = 0

    async def reply(self, records: list[Record]) -> None:
        """Return when each request has its reply, its dead letter, or is past its deadline."""
        for record in records:
            try:
                address = ReplyAddress.from_headers(record.headers)
                if not self._reply_topics.fullmatch(address.topic):
                    raise ContractError("reply_topic_refused", f"replies do not go to {address.topic}")
            except ContractError as cause:
                await self._outbox.bury(record, cause)
                continue
            try:
                await self._reply_in_time(record, address)
            except asyncio.TimeoutError:
                self.late += 1
                log.warning("request at %s[%d]@%d is late", record.topic, record.partition, record.offset)

    async def _reply_in_time(self, record: Record, address: ReplyAddress) -> None:
        started = time.time()
        deadline = self._deadline(record, address, started)
        if started >= deadline:
            raise asyncio.TimeoutError
        reply = await self._answer(record, (deadline - started) * (1 - _REPLY_SHARE))
        reply = reply.model_copy(update={"took_ms": (time.time() - started) * 1000})
        try:
            await self._send(reply, address, deadline)
        except ItemBroken as cause:
            await self._send(_refusal(cause), address, deadline)

    def _deadline(self, record: Record, address: ReplyAddress, started: float) -> float:
        """Until when the reply is wanted, in seconds since the epoch; never further than a request may wait."""
        wanted_ms = address.deadline_ms
        if wanted_ms is None:
            return record.timestamp_ms / 1000 + self._settings.search_deadline
        return min(wanted_ms, round((started + _LONGEST_WAIT) * 1000)) / 1000

    async def _send(self, reply: SearchReply, address: ReplyAddress, deadline: float) -> None:
        headers: OutgoingHeaders = [(CORRELATION_ID, address.correlation_id)]
        await asyncio.wait_for(
            self._outbox.publish(address.topic, reply.to_kafka(), headers=headers, partition=address.partition),
            deadline - time.time(),
        )

    async def _answer(self, record: Record, seconds: float) -> SearchReply:
        try:
            request = SearchRequest.from_kafka(record.value)
            return await asyncio.wait_for(
                until_up("search", lambda: self._find(request, seconds), self._settings.backoff), seconds
            )
        except (ContractError, ItemBroken) as cause:
            return _refusal(cause)
        except ConfigurationError as cause:
            return SearchReply(error=SearchError(code="model_mismatch", message=str(cause)))
        except asyncio.TimeoutError:
            return SearchReply(
                error=SearchError(code="unavailable", message=f"no result within {seconds:.1f} s; try again later")
            )

    async def _find(self, request: SearchRequest, timeout: float) -> SearchReply:
        vector = await self._vector(request, timeout)
        hits = await self._searcher.search(request, vector, timeout)
        return SearchReply(hits=hits, model_digest=self._manifest.digest)

    async def _vector(self, request: SearchRequest, timeout: float) -> FloatArray:
        if request.image is not None:
            # The very pipeline that uploads pass: the same picture gives the same vector.
            return (await self._triton.infer_image(request.image, timeout=timeout)).embedding
        assert request.text is not None
        return await self._triton.embed_text(self._tokenizer.encode([request.text])[0], timeout=timeout)


def _refusal(cause: ContractError | ItemBroken) -> SearchReply:
    return SearchReply(error=SearchError(code=cause.code, message=cause.message))
