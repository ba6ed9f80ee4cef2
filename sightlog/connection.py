"""What clients share: one producer, one reader of replies, one of outcomes; made when first needed, anew after a fork.

Everything here returns at once. What is waited for is a `concurrent.futures.Future` that a reader's thread completes;
a future that is cancelled is forgotten.
"""

from __future__ import annotations

import ctypes
import os
import threading
import weakref
from concurrent.futures import Future
from dataclasses import dataclass
from datetime import datetime, timezone

from confluent_kafka import KafkaError, KafkaException, Message, Producer

from sightlog.errors import BadRequest, ContractError, FileTooLarge, NoReply, PublishFailed, SightlogError
from sightlog.events import ImageEvent, ImageUploaded, OutgoingHeaders
from sightlog.outcomes import OutcomeReader, Wait
from sightlog.published import Published
from sightlog.replies import ReplyReader
from sightlog.search import SearchRequest
from sightlog.settings import MAX_RECORD_BYTES, ClientSettings

_POLL_SECONDS = 0.1


@dataclass(frozen=True)
class Outgoing:
    """An event as a record, ready for the producer."""

    image_id: str
    key: str | None
    value: bytes
    headers: OutgoingHeaders


class Connection:
    """Safe to use from several threads."""

    def __init__(self, settings: ClientSettings, caller: str | None) -> None:
        self.settings, self._caller = settings, caller
        self._closed = False
        self._begin()
        _CONNECTIONS.add(self)

    def _begin(self) -> None:
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        self._producer: Producer | None = None
        self._reports: threading.Thread | None = None
        self._replies: ReplyReader | None = None
        self._outcomes: OutcomeReader | None = None

    @property
    def waiting(self) -> int:
        """How many replies and outcomes are waited for now."""
        return sum(reader.waiting for reader in (self._replies, self._outcomes) if reader is not None)

    def ready(self) -> Future[int]:
        """Done once replies are seen; fails with SightlogError when the broker does not answer."""
        replies = self._replies
        if replies is None or (replies.ready.done() and replies.ready.exception() is not None):
            with self._lock:
                self._check_open()
                if self._replies is replies:
                    self._replies = ReplyReader(self.settings, self._caller)
                replies = self._replies
        assert replies is not None
        return replies.ready

    def ask(self, request: SearchRequest, timeout: float) -> Future[bytes | None]:
        """Send a request; the future has the record value of its reply. Only when `ready` is done.

        Raises BadRequest `too_large` when the request is larger than a record, PublishFailed when the producer does not
        take it.
        """
        self._check_open()
        assert self._replies is not None
        address, reply = self._replies.expect(timeout)
        producer = self._live_producer()
        try:
            producer.produce(self.settings.topics.requests, request.to_kafka(), headers=address.to_headers())
        except (BufferError, KafkaException) as error:
            reply.cancel()
            if isinstance(error, KafkaException) and error.args[0].code() == KafkaError.MSG_SIZE_TOO_LARGE:
                raise BadRequest("too_large", f"the request does not fit into {MAX_RECORD_BYTES} bytes") from None
            raise PublishFailed(f"the request cannot be sent: {_reason(error)}") from None
        producer.poll(0)
        return reply

    def no_reply(self, timeout: float) -> NoReply:
        """What to raise when nobody answered, with what can be known about why."""
        producer = self._live_producer()
        producer.poll(0)
        if len(producer):
            return NoReply(f"Kafka at {self.settings.kafka} did not take the request within {timeout:g} s; is it up?")
        return NoReply(f"no reply within {timeout:g} s; is a search worker running (sightlog status)?")

    def outgoing(self, event: ImageEvent, key: str | None, *, structured: bool = False) -> Outgoing:
        """The record of an event. Raises FileTooLarge when its file is above the inline limit."""
        if isinstance(event, ImageUploaded) and len(event.data or b"") > self.settings.inline_limit:
            raise FileTooLarge.named(key or event.subject or event.id, self.settings.inline_limit)
        try:
            # Without a key, events of one image would not keep their order.
            image_id = key = event.image_id(None if key is None else key.encode())
        except ContractError:  # its dead letter will tell
            image_id = key or event.subject or event.id
        value, headers = event.to_kafka(structured=structured)
        return Outgoing(image_id, key, value, headers)

    def publish(self, record: Outgoing) -> Future[Published] | None:
        """Hand a record to the producer; the future is done, or failed with PublishFailed, when the broker answered.

        None: the buffer is full, try again a moment later.
        """
        outcome: Future[Published] = Future()
        outcome.set_running_or_notify_cancel()  # what is with the producer cannot be taken back

        def delivered(error: KafkaError | None, message: Message) -> None:
            if error is None:
                outcome.set_result(_published(record.image_id, message))
            else:
                outcome.set_exception(PublishFailed(f"{record.image_id}: {error.str()}"))

        producer = self._live_producer(reports=True)
        try:
            producer.produce(
                self.settings.topics.images, record.value, record.key, headers=record.headers, on_delivery=delivered
            )
        except BufferError:
            return None
        except KafkaException as error:
            outcome.set_exception(PublishFailed(f"{record.image_id}: {_reason(error)}"))
        return outcome

    def flush(self, timeout: float) -> int:
        """Wait until the broker answered for everything that was sent; returns how many records it has not."""
        return 0 if self._producer is None else self._producer.flush(timeout)

    def expect(self, waits: list[Wait]) -> None:
        """Complete the outcome of each wait when it is known."""
        with self._lock:
            self._check_open()
            if self._outcomes is None:
                self._outcomes = OutcomeReader(self.settings)
            self._outcomes.expect(waits)

    def close(self, timeout: float = 5.0) -> None:
        """Send what is still buffered and end all threads; what still waits fails."""
        with self._lock:
            self._closed = True
        self.flush(timeout)
        self._stopped.set()
        for part in (self._replies, self._outcomes):
            if part is not None:
                part.stop()
        if self._reports is not None:
            self._reports.join()

    def start_anew(self) -> None:
        """In a forked child: leave what belongs to the parent as it is, and open connections of its own when needed.

        The threads of librdkafka are not in the child: freeing what they worked on would wait for threads that are
        gone, or for locks that they held.
        """
        parts = (part for part in (self._replies, self._outcomes) if part is not None)
        for kept in (self._producer, *(kept for part in parts for kept in part.of_the_parent())):
            if kept is not None:
                ctypes.pythonapi.Py_IncRef(ctypes.py_object(kept))
        self._begin()

    def _check_open(self) -> None:
        if self._closed:
            raise SightlogError("the client is closed; make a new one")

    def _live_producer(self, *, reports: bool = False) -> Producer:
        """The producer; with `reports`, its delivery reports are called for on a thread."""
        if self._producer is None or (reports and self._reports is None):
            with self._lock:
                self._check_open()
                if self._producer is None:
                    self._producer = _new_producer(self.settings.kafka)
                if reports and self._reports is None:
                    self._reports = threading.Thread(
                        target=_serve_reports,
                        args=(self._producer, self._stopped),
                        name="sightlog-delivery-reports",
                        daemon=True,
                    )
                    self._reports.start()
        return self._producer


def _new_producer(bootstrap: str) -> Producer:
    return Producer(
        {
            "bootstrap.servers": bootstrap,
            "enable.idempotence": True,
            # Every request is waited for: nothing is won by holding it back.
            "linger.ms": 0,
            "socket.nagle.disable": True,
            "message.max.bytes": MAX_RECORD_BYTES,
            # Files wait here for the broker: bounded, so that a large folder does not end up in memory.
            "queue.buffering.max.kbytes": 64 * 1024,
            "log_level": 0,
        }
    )


def _serve_reports(producer: Producer, stopped: threading.Event) -> None:
    while not stopped.is_set():
        producer.poll(_POLL_SECONDS)


def _published(image_id: str, message: Message) -> Published:
    _kind, milliseconds = message.timestamp()
    offset = message.offset()
    return Published(
        image_id=image_id,
        topic=str(message.topic()),
        partition=message.partition() or 0,
        offset=offset if offset is not None and offset >= 0 else None,
        published_at=datetime.fromtimestamp(milliseconds / 1000, timezone.utc),
    )


def _reason(error: BufferError | KafkaException) -> str:
    return str(error) if isinstance(error, BufferError) else error.args[0].str()


_CONNECTIONS: weakref.WeakSet[Connection] = weakref.WeakSet()


def _start_all_anew() -> None:
    for connection in list(_CONNECTIONS):
        connection.start_anew()


os.register_at_fork(after_in_child=_start_all_anew)
