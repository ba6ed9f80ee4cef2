"""Publishes planned events while things break, and watches receipts and dead letters come out at the end."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

from confluent_kafka import KafkaError, Message, Producer

from load_tests.chaos_plan import Outgoing
from sightlog.consuming import consumer_at_end
from sightlog.documents import IndexReceipt
from sightlog.errors import ContractError
from sightlog.settings import MAX_RECORD_BYTES, ClientSettings

#: Events that are kept for each fault that is still to come: without load a fault proves nothing.
_KEPT = 4
#: Events/s at most while there are faults: well below what two cores carry, since a stack without room to spare
#: could never catch up with what came while a part of it was away.
_MOST = 10.0
#: Once the last fault is over nothing is won by going on slowly.
_FAST = 40.0


class Pace:
    """How fast to publish, so that the load lasts as long as the faults."""

    def __init__(self, faults: int, rate: float | None, expected_s: float) -> None:
        """`rate`: events/s, or None to adapt; `expected_s`: guessed length of one fault, corrected as they pass."""
        self._rate, self._expected_s = rate, expected_s
        self._faults, self._passed = faults, 0
        self._began = time.monotonic()

    def passed(self) -> None:
        """One fault is over."""
        self._passed += 1

    @property
    def over(self) -> bool:
        """Whether no fault is left."""
        return self._passed >= self._faults

    def gap_s(self, left: int) -> float | None:
        """Seconds until the next of `left` events; None: not before another fault is over."""
        if self._rate is not None:
            return 1 / self._rate
        if self.over:
            return 1 / _FAST
        to_come = self._faults - self._passed
        if left <= _KEPT * (to_come - 1):
            return None
        spent = time.monotonic() - self._began
        # The guess counts like one fault.
        each = (self._expected_s + spent) / (self._passed + 1 + (spent > 0))
        return max(each * to_come / max(left, 1), 1 / _MOST)


@dataclass
class Seen:
    """What came out so far. Times in seconds since the epoch."""

    receipts: Counter[tuple[str, int]] = field(default_factory=Counter)
    arrivals: list[float] = field(default_factory=list)
    dead: Counter[str] = field(default_factory=Counter)
    #: The latest time of an event of which a receipt came.
    newest_event: float = 0.0

    @property
    def redelivered(self) -> int:
        """Receipts that were there before."""
        return sum(self.receipts.values()) - len(self.receipts)


class Load:
    """A producer and a consumer, each on a thread of its own; both outlive a broker that is gone for a while."""

    def __init__(self, settings: ClientSettings, pace: Pace, total: int) -> None:
        self._settings, self._pace, self._total = settings, pace, total
        self._producer = Producer(
            {
                "bootstrap.servers": settings.kafka,
                "enable.idempotence": True,
                # For ever: what was handed over is published, however long the broker is away.
                "message.timeout.ms": 0,
                "message.max.bytes": MAX_RECORD_BYTES,
                "linger.ms": 0,
                "log_level": 0,
            }
        )
        self._consumer = consumer_at_end(settings.kafka, settings.topics.indexed, settings.topics.dead)
        self._stop = threading.Event()
        self._threads: list[threading.Thread] = []
        self.seen = Seen()
        self.published = 0
        self.confirmed = 0
        self.failed: list[str] = []

    def start(self, records: Iterator[Outgoing]) -> None:
        """Begin to publish, each record made when its turn comes, and to read."""
        for work in (lambda: self._publish(records), self._read):
            thread = threading.Thread(target=work, daemon=True)
            thread.start()
            self._threads.append(thread)

    @property
    def done(self) -> bool:
        """Whether all events were handed over."""
        return self.published >= self._total

    def flush(self, timeout: float) -> int:
        """Wait until the broker has everything; returns how many events it has not."""
        return self._producer.flush(timeout)

    def close(self) -> None:
        """Stop both threads."""
        self._stop.set()
        for thread in self._threads:
            thread.join()
        self._consumer.close()

    def _publish(self, records: Iterator[Outgoing]) -> None:
        for record in records:
            waited_since = time.monotonic()
            while not self._stop.is_set():
                gap = self._pace.gap_s(self._total - self.published)
                if gap is not None and time.monotonic() - waited_since >= gap:
                    break
                self._producer.poll(0.05 if gap is None else min(0.05, gap))
            if self._stop.is_set():
                return
            self._producer.produce(
                self._settings.topics.images,
                record.value,
                record.key,
                headers=record.headers,
                on_delivery=self._delivered,
            )
            self.published += 1
        while not self._stop.is_set():
            self._producer.poll(0.1)

    def _delivered(self, error: KafkaError | None, message: Message) -> None:
        if error is None:
            self.confirmed += 1
        else:
            self.failed.append(f"{message.key()!r}: {error.str()}")

    def _read(self) -> None:
        while not self._stop.is_set():
            for message in self._consumer.consume(500, timeout=0.2):
                if message.error() is not None:
                    continue
                if message.topic() == self._settings.topics.dead:
                    self.seen.dead[(message.key() or b"").decode("utf-8", "replace")] += 1
                else:
                    self._receipt(message.value())

    def _receipt(self, value: bytes | None) -> None:
        try:
            receipt = IndexReceipt.from_kafka(value)
        except ContractError as error:
            self.failed.append(f"a receipt that cannot be read: {error}")
            return
        seen = self.seen
        seen.receipts[receipt.image_id, receipt.version] += 1
        seen.arrivals.append(time.time())
        seen.newest_event = max(seen.newest_event, receipt.uploaded_at.timestamp())
