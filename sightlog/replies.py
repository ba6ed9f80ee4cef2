"""Reads one partition of the reply topic on a thread and completes what waits for a reply."""

from __future__ import annotations

import random
import threading
import time
import uuid
from concurrent.futures import Future

from confluent_kafka import Consumer, TopicPartition

from sightlog.consuming import assign_end, messages, new_consumer, partitions
from sightlog.errors import NoReply
from sightlog.reply_address import CORRELATION_ID, ReplyAddress
from sightlog.settings import ClientSettings


class ReplyReader:
    """Clients share the reply topic; each takes one partition, and passes over replies to others on it.

    `ready` is done with the number of that partition once replies are seen, or fails with SightlogError.
    """

    def __init__(self, settings: ClientSettings, caller: str | None) -> None:
        self._settings, self._caller = settings, caller
        self._waiting: dict[bytes, Future[bytes | None]] = {}
        self._stopped = threading.Event()
        self._consumer: Consumer | None = None
        self.ready: Future[int] = Future()
        self.ready.set_running_or_notify_cancel()  # shared by all who wait, so that none of them can cancel it
        self._thread = threading.Thread(target=self._run, name="sightlog-replies", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """How many requests wait for their reply now."""
        return len(self._waiting)

    def expect(self, timeout: float) -> tuple[ReplyAddress, Future[bytes | None]]:
        """The address that a new request carries, and the future of its reply's record value; once `ready` is done.

        A future that is cancelled, by whoever has waited long enough, is forgotten.
        """
        correlation_id = uuid.uuid4().bytes
        reply: Future[bytes | None] = Future()
        self._waiting[correlation_id] = reply
        reply.add_done_callback(lambda _done: self._waiting.pop(correlation_id, None))
        address = ReplyAddress(
            topic=self._settings.topics.replies,
            partition=self.ready.result(0),
            correlation_id=correlation_id,
            deadline_ms=int((time.time() + timeout) * 1000),
            caller=self._caller,
        )
        return address, reply

    def stop(self) -> None:
        """End the thread; what still waits fails with NoReply."""
        self._stopped.set()
        self._thread.join()
        for reply in list(self._waiting.values()):
            if reply.set_running_or_notify_cancel():
                reply.set_exception(NoReply("the client was closed before the reply came"))

    def of_the_parent(self) -> tuple[object, ...]:
        """What a forked child must never touch or free."""
        return (self._consumer,)

    def _run(self) -> None:
        try:
            consumer = self._consumer = new_consumer(self._settings.kafka)
            try:
                self.ready.set_result(self._assign(consumer))
                self._read(consumer)
            finally:
                consumer.close()
        except BaseException as error:
            if self.ready.done():
                raise
            self.ready.set_exception(error)

    def _assign(self, consumer: Consumer) -> int:
        topic, kafka = self._settings.topics.replies, self._settings.kafka
        partition = random.choice(partitions(consumer, kafka, topic))
        assign_end(consumer, kafka, [TopicPartition(topic, partition)])
        return partition

    def _read(self, consumer: Consumer) -> None:
        for message in messages(consumer, self._stopped):
            correlation_id = dict(message.headers() or ()).get(CORRELATION_ID)
            reply = self._waiting.get(correlation_id) if isinstance(correlation_id, bytes) else None
            if reply is not None and reply.set_running_or_notify_cancel():
                reply.set_result(message.value())
