"""A client of the topics: publish images, search, follow what becomes searchable. Needs only a Kafka broker."""

from __future__ import annotations

import random
import threading
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from types import TracebackType

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, Producer, TopicPartition

from sightlog.errors import ContractError, FileTooLarge, NoReply, PublishFailed, SearchFailed, SightlogError
from sightlog.events import ImageEvent, ImageUploaded
from sightlog.reply_address import CORRELATION_ID, ReplyAddress
from sightlog.search import SearchReply, SearchRequest
from sightlog.settings import MAX_RECORD_BYTES, ClientSettings

#: A consumer polls in slices of this length, so that close() is never far away.
_POLL_SECONDS = 0.2


def consumer_at_end(bootstrap: str, *topics: str) -> Consumer:
    """A consumer assigned to the present end of topics: it sees everything written after this call returns.

    Assigned with explicit offsets, not subscribed: no group, no rebalance, and no race with the first message.
    Raises SightlogError when the broker does not answer or a topic is missing.
    """
    consumer = _new_consumer(bootstrap)
    _assign_end(
        consumer, bootstrap, [TopicPartition(t, p) for t in topics for p in _partitions(consumer, bootstrap, t)]
    )
    return consumer


def _new_consumer(bootstrap: str) -> Consumer:
    return Consumer(
        {
            "bootstrap.servers": bootstrap,
            "group.id": f"sightlog-client-{uuid.uuid4().hex}",
            "enable.auto.commit": False,
            "fetch.min.bytes": 1,
            "log_level": 0,
        }
    )


def _partitions(consumer: Consumer, bootstrap: str, topic: str) -> list[int]:
    try:
        found = list(consumer.list_topics(topic, timeout=10).topics[topic].partitions)
    except KafkaException as error:
        raise _unreachable(bootstrap, error) from None
    if not found:
        raise SightlogError(f"topic {topic} does not exist at {bootstrap}; sightlog up creates it")
    return found


def _assign_end(consumer: Consumer, bootstrap: str, partitions: list[TopicPartition]) -> None:
    try:
        for partition in partitions:
            partition.offset = consumer.get_watermark_offsets(partition, timeout=10)[1]
        consumer.assign(partitions)
    except KafkaException as error:
        raise _unreachable(bootstrap, error) from None


def _unreachable(bootstrap: str, error: KafkaException) -> SightlogError:
    return SightlogError(f"no answer from Kafka at {bootstrap}: {error.args[0].str()}; is the stack up (sightlog up)?")


class Client:
    """Publishes image events and asks the search agent, over Kafka topics. Safe to use from several threads.

    >>> with Client() as client:                                     # doctest: +SKIP
    ...     client.publish(new_upload(jpeg, source="/example"), key="photo-1")
    ...     reply = client.search(SearchRequest(text="a striped red circle"))
    """

    def __init__(self, settings: ClientSettings | None = None) -> None:
        self.settings = settings or ClientSettings.load()
        self._producer = Producer(
            {
                "bootstrap.servers": self.settings.kafka,
                "enable.idempotence": True,
                # Every request is waited for: nothing is won by holding it back.
                "linger.ms": 0,
                "message.max.bytes": MAX_RECORD_BYTES,
                # Files wait here for the broker: bounded, so that a large folder does not end up in memory.
                "queue.buffering.max.kbytes": 64 * 1024,
                "log_level": 0,
            }
        )
        self._waiting: dict[bytes, Future[SearchReply]] = {}
        self._replies: _ReplyReader | None = None
        self._start = threading.Lock()

    def publish(self, event: ImageEvent, *, key: str | None = None, timeout: float = 30.0) -> None:
        """Publish one event and wait until the broker has it. Raises PublishFailed, FileTooLarge."""
        outcome = self.publish_async(event, key=key)
        self._producer.flush(timeout)
        try:
            outcome.result(timeout=0)
        except FutureTimeout:
            raise PublishFailed(f"{self.settings.kafka} did not confirm within {timeout} s") from None

    def publish_async(self, event: ImageEvent, *, key: str | None = None, structured: bool = False) -> Future[None]:
        """Hand one event to the producer; the future is done, or failed with PublishFailed, when the broker answered.

        It fails at once with FileTooLarge when the file is above the inline limit.
        Blocks while the producer's buffer is full.
        """
        outcome: Future[None] = Future()
        if isinstance(event, ImageUploaded) and len(event.data or b"") > self.settings.inline_limit:
            outcome.set_exception(
                FileTooLarge(
                    f"{key or event.subject or event.id}: the file has more than the {self.settings.inline_limit} bytes"
                    " of an event; put it where the vision workers may read it and give its URI as dataref"
                )
            )
            return outcome
        value, headers = event.to_kafka(structured=structured)

        def delivered(error: KafkaError | None, _message: Message) -> None:
            if error is None:
                outcome.set_result(None)
            else:
                outcome.set_exception(PublishFailed(f"{key or event.subject or event.id}: {error.str()}"))

        while True:
            try:
                self._producer.produce(self.settings.topics.images, value, key, headers=headers, on_delivery=delivered)
                break
            except BufferError:
                self._producer.poll(0.1)
            except KafkaException as error:
                outcome.set_exception(PublishFailed(f"{key or event.id}: {error.args[0].str()}"))
                break
        self._producer.poll(0)
        return outcome

    def flush(self, timeout: float = 30.0) -> None:
        """Wait until the broker answered for everything published so far. Raises PublishFailed."""
        left = self._producer.flush(timeout)
        if left:
            raise PublishFailed(f"{left} events were not confirmed by {self.settings.kafka} within {timeout} s")

    def search(self, request: SearchRequest, *, timeout: float | None = None) -> SearchReply:
        """Ask the search agent. Raises NoReply after `timeout` seconds, SearchFailed when the reply is an error."""
        timeout = self.settings.search_timeout if timeout is None else timeout
        replies = self._reply_reader()
        correlation_id = uuid.uuid4().bytes
        address = ReplyAddress(
            topic=self.settings.topics.replies,
            partition=replies.partition,
            correlation_id=correlation_id,
            deadline_ms=int((time.time() + timeout) * 1000),
        )
        outcome: Future[SearchReply] = Future()
        self._waiting[correlation_id] = outcome
        try:
            self._producer.produce(self.settings.topics.requests, request.to_kafka(), headers=address.to_headers())
            self._producer.poll(0)
            reply = outcome.result(timeout)
        except FutureTimeout:
            raise NoReply(f"no reply within {timeout:g} s; is a search worker running (sightlog status)?") from None
        finally:
            del self._waiting[correlation_id]
        if reply.error is not None:
            raise SearchFailed(reply.error.code, reply.error.message)
        return reply

    def close(self) -> None:
        """Stop reading replies and send what is still buffered."""
        if self._replies is not None:
            self._replies.stop()
        self._producer.flush(5)

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _reply_reader(self) -> _ReplyReader:
        with self._start:
            if self._replies is None:
                self._replies = _ReplyReader(self.settings, self._waiting)
            return self._replies


class _ReplyReader:
    """Reads one partition of the reply topic on a thread and completes the futures that wait for it.

    Clients share the topic; each takes one partition, and replies to others on the same partition are passed over.
    """

    def __init__(self, settings: ClientSettings, waiting: dict[bytes, Future[SearchReply]]) -> None:
        topic = settings.topics.replies
        self._waiting = waiting
        self._stopped = threading.Event()
        self._consumer = _new_consumer(settings.kafka)
        self.partition: int = random.choice(_partitions(self._consumer, settings.kafka, topic))
        _assign_end(self._consumer, settings.kafka, [TopicPartition(topic, self.partition)])
        self._thread = threading.Thread(target=self._read, name="sightlog-replies", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._stopped.set()
        self._thread.join()
        self._consumer.close()

    def _read(self) -> None:
        for message in messages(self._consumer, self._stopped):
            correlation_id = dict(message.headers() or []).get(CORRELATION_ID)
            outcome = self._waiting.get(correlation_id) if isinstance(correlation_id, bytes) else None
            if outcome is None or outcome.done():
                continue
            try:
                outcome.set_result(SearchReply.from_kafka(message.value()))
            except ContractError as error:
                outcome.set_exception(error)


def messages(consumer: Consumer, stopped: threading.Event) -> Iterator[Message]:
    """Messages of an assigned consumer until `stopped` is set; broker hiccups are waited out by librdkafka."""
    while not stopped.is_set():
        message = consumer.poll(_POLL_SECONDS)
        if message is not None and message.error() is None:
            yield message
