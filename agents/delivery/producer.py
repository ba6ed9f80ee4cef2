"""Produces with confluent-kafka and awaits the delivery report: what is returned from `send` is in the log.

Faust's own `topic.send` is slower and logs failures instead of raising them.
"""

from __future__ import annotations

import asyncio
import threading
from types import TracebackType

from confluent_kafka import KafkaError, KafkaException, Message, Producer

from agents.delivery.failures import DependencyDown, ItemBroken, NoSuchPlace
from sightlog.events import OutgoingHeaders

#: Longer than a broker restart takes, short enough that the caller's own back-off stays in charge.
_DELIVERY_TIMEOUT_MS = 30_000


#: Seconds after which a topic that the broker does not know is believed not to exist; a broker that has just created
#: one knows it sooner.
_UNKNOWN_TOPIC_MS = 1000
_NO_SUCH_PLACE = (
    KafkaError._UNKNOWN_TOPIC,
    KafkaError._UNKNOWN_PARTITION,
    KafkaError.UNKNOWN_TOPIC_OR_PART,
    KafkaError.TOPIC_EXCEPTION,
    KafkaError.TOPIC_AUTHORIZATION_FAILED,
)

#: Whom to tell, and what went wrong.
_Report = tuple["asyncio.Future[None]", "KafkaError | None"]


class ConfirmedProducer:
    """One librdkafka producer for an event loop; idempotent, acknowledged by all in-sync replicas.

    `linger_ms` is 0 where somebody waits for each record (replies), a few milliseconds where throughput counts.
    """

    def __init__(self, bootstrap: str, *, linger_ms: float, max_record_bytes: int) -> None:
        self._producer = Producer(
            {
                "bootstrap.servers": bootstrap,
                "enable.idempotence": True,
                "acks": "all",
                "linger.ms": linger_ms,
                "socket.nagle.disable": True,
                "delivery.timeout.ms": _DELIVERY_TIMEOUT_MS,
                "topic.metadata.propagation.max.ms": _UNKNOWN_TOPIC_MS,
                "message.max.bytes": max_record_bytes,
            }
        )
        #: Of the thread below alone: callbacks run in it.
        self._reported: list[_Report] = []
        self._stopped = threading.Event()
        self._reports = threading.Thread(target=self._serve_reports, name="delivery-reports", daemon=True)

    async def __aenter__(self) -> ConfirmedProducer:
        self._loop = asyncio.get_running_loop()
        self._reports.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopped.set()
        await asyncio.to_thread(self._reports.join)

    async def send(
        self,
        topic: str,
        value: bytes | None,
        *,
        key: bytes | None = None,
        headers: OutgoingHeaders | None = None,
        partition: int | None = None,
    ) -> None:
        """Return when the broker has the record.

        Raises ItemBroken `record_too_large` when it never will, DependencyDown when it does not answer now, NoSuchPlace
        when the topic or the partition is not there.
        """
        confirmed: asyncio.Future[None] = self._loop.create_future()

        def delivered(error: KafkaError | None, _message: Message) -> None:
            self._reported.append((confirmed, error))

        try:
            self._producer.produce(
                topic,
                value,
                key,
                partition=-1 if partition is None else partition,
                headers=headers or [],
                on_delivery=delivered,
            )
        except BufferError:
            raise DependencyDown(f"{topic}: the producer's buffer is full") from None
        except KafkaException as error:
            raise _failure(topic, error.args[0]) from None
        try:
            await confirmed
        except KafkaException as error:
            raise _failure(topic, error.args[0]) from None

    def _serve_reports(self) -> None:
        while not self._stopped.is_set():
            self._producer.poll(0.1)
            if self._reported:
                # Those of a batch come together; waking the loop for each would cost more than the rest of it.
                reported, self._reported = self._reported, []
                self._loop.call_soon_threadsafe(_settle, reported)


def _settle(reported: list[_Report]) -> None:
    for confirmed, error in reported:
        if confirmed.done():
            continue
        if error is None:
            confirmed.set_result(None)
        else:
            confirmed.set_exception(KafkaException(error))


def _failure(topic: str, error: KafkaError) -> ItemBroken | DependencyDown:
    if error.code() in (KafkaError.MSG_SIZE_TOO_LARGE, KafkaError.INVALID_RECORD):
        return ItemBroken("record_too_large", f"{topic} does not take the record: {error.str()}")
    if error.code() in _NO_SUCH_PLACE:
        return NoSuchPlace(f"{topic}: {error.str()}")
    return DependencyDown(f"{topic}: {error.str()}")
