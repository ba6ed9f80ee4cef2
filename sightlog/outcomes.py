"""Waits for what becomes of images: reads receipts and dead letters on one thread, for as long as somebody waits."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from concurrent.futures import Future
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import partial
from typing import TypeVar

from confluent_kafka import Consumer, Message, TopicPartition

from sightlog.consuming import assign_since, at_end, new_consumer, partitions
from sightlog.dead_letters import DeadLetter
from sightlog.documents import IndexReceipt
from sightlog.errors import BecameDeadLetter, ContractError, NotSearchableYet, SightlogError
from sightlog.fields import as_utc, now
from sightlog.published import Outcome, Published
from sightlog.settings import ClientSettings

_Said = TypeVar("_Said", IndexReceipt, DeadLetter)

#: Receipts have the time of the indexer's clock, events that of the broker.
_CLOCKS_APART_MS = 60_000
_POLL_SECONDS = 0.1
#: Who knows an image by its id alone does not know when it was published.
_LOOK_BACK = timedelta(minutes=10)


@dataclass(eq=False)
class Wait:
    """One image that somebody waits for: the outcome of one event, or any outcome since a time."""

    image_id: str
    since_ms: int
    event: Published | None = None
    outcome: Future[Outcome] = field(default_factory=Future)

    def is_over_with(self, outcome: Outcome) -> bool:
        """Whether this is what is waited for."""
        if self.event is not None:
            return self.event.is_settled_by(outcome)
        return isinstance(outcome, DeadLetter) or outcome.kind != "deleted"


class OutcomeReader:
    """Goes back in the topics to where the oldest wait began, so that it does not matter who comes first."""

    def __init__(self, settings: ClientSettings) -> None:
        self._settings = settings
        self._lock = threading.Lock()
        self._waits: dict[str, set[Wait]] = {}
        self._thread: threading.Thread | None = None
        self._consumer: Consumer | None = None
        self._rewind_ms: int | None = None
        self._stopped = False
        #: Partitions that were not read to their end since the last rewind, and the dead letters met on the way: a
        #: receipt that was written after a replay outweighs them.
        self._behind: set[tuple[str, int]] = set()
        self._letters: list[tuple[str, DeadLetter]] = []

    @property
    def waiting(self) -> int:
        """How many images are waited for now."""
        return sum(map(len, self._waits.values()))

    def expect(self, waits: list[Wait]) -> None:
        """Complete the outcome of each wait when it is known; one that is cancelled is forgotten."""
        if not waits:
            return
        oldest = min(wait.since_ms for wait in waits)
        with self._lock:
            for wait in waits:
                self._waits.setdefault(wait.image_id, set()).add(wait)
            self._rewind_ms = oldest if self._rewind_ms is None else min(oldest, self._rewind_ms)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="sightlog-outcomes", daemon=True)
                self._thread.start()
        for wait in waits:
            wait.outcome.add_done_callback(partial(self._forget, wait))

    def stop(self) -> None:
        """End the thread; what still waits fails with SightlogError."""
        self._stopped = True
        if (thread := self._thread) is not None:
            thread.join()

    def of_the_parent(self) -> tuple[object, ...]:
        """What a forked child must never touch or free."""
        return (self._consumer,)

    def _forget(self, wait: Wait, _done: Future[Outcome]) -> None:
        with self._lock:
            others = self._waits.get(wait.image_id, set())
            others.discard(wait)
            if not others:
                self._waits.pop(wait.image_id, None)

    def _run(self) -> None:
        try:
            consumer = self._consumer = new_consumer(self._settings.kafka, **{"enable.partition.eof": True})
            try:
                while self._goes_on():
                    self._rewind(consumer)
                    if (message := consumer.poll(_POLL_SECONDS)) is not None:
                        self._hear(message)
            finally:
                consumer.close()
        except Exception as error:
            self._fail(error)
        else:
            if self._stopped:
                self._fail(SightlogError("the client was closed before the images were indexed"))

    def _goes_on(self) -> bool:
        with self._lock:
            if self._waits and not self._stopped:
                return True
            if not self._waits:
                self._thread = self._rewind_ms = None
            return False

    def _fail(self, error: Exception) -> None:
        with self._lock:
            waits = [wait for waits in self._waits.values() for wait in waits]
            self._thread = self._rewind_ms = None
        for wait in waits:
            if wait.outcome.set_running_or_notify_cancel():
                wait.outcome.set_exception(error)

    def _rewind(self, consumer: Consumer) -> None:
        with self._lock:
            since_ms, self._rewind_ms = self._rewind_ms, None
        if since_ms is None:
            return
        kafka, topics = self._settings.kafka, (self._settings.topics.indexed, self._settings.topics.dead)
        places = [TopicPartition(topic, number) for topic in topics for number in partitions(consumer, kafka, topic)]
        self._behind = {(place.topic, place.partition) for place in places}
        self._letters.clear()
        assign_since(consumer, kafka, places, since_ms - _CLOCKS_APART_MS)

    def _hear(self, message: Message) -> None:
        if message.error() is not None:
            if at_end(message):
                self._behind.discard((str(message.topic()), message.partition() or 0))
                self._settle_letters()
            return
        key = (message.key() or b"").decode("utf-8", "replace")
        if message.topic() == self._settings.topics.indexed:
            if key in self._waits:
                self._settle(key, _read(IndexReceipt, message))
        elif (not key or key in self._waits) and (letter := _read(DeadLetter, message)) is not None:
            self._letters.append((key or letter.image_id or "", letter))
            self._settle_letters()

    def _settle_letters(self) -> None:
        if not self._behind:
            for key, letter in self._letters:
                self._settle(key, letter)
            self._letters.clear()

    def _settle(self, image_id: str, outcome: Outcome | None) -> None:
        with self._lock:
            over = [w for w in self._waits.get(image_id, ()) if outcome is not None and w.is_over_with(outcome)]
        for wait in over:
            if outcome is not None and wait.outcome.set_running_or_notify_cancel():
                wait.outcome.set_result(outcome)


def waits_for(images: str | Published | Iterable[str | Published], since: datetime | None) -> list[Wait]:
    """What to wait for: of an image id, any outcome since a time, ten minutes ago if not given."""
    several = [images] if isinstance(images, (str, Published)) else list(images)
    since_ms = round((now() - _LOOK_BACK if since is None else as_utc(since)).timestamp() * 1000)
    return [
        Wait(image, since_ms)
        if isinstance(image, str)
        else Wait(image.image_id, round(image.published_at.timestamp() * 1000), image)
        for image in several
    ]


def settled(waits: list[Wait], timeout: float) -> dict[str, IndexReceipt]:
    """The receipts by image id, once `timeout` is over or all outcomes are there; ends what is still waited for.

    Raises BecameDeadLetter, NotSearchableYet, or what kept the topics from being read.
    """
    receipts: dict[str, IndexReceipt] = {}
    letters: dict[str, DeadLetter] = {}
    missing: list[str] = []
    for wait in waits:
        if wait.outcome.cancel() or wait.outcome.cancelled():
            missing.append(wait.image_id)
        elif isinstance(outcome := wait.outcome.result(), DeadLetter):
            letters[wait.image_id] = outcome
        else:
            receipts[wait.image_id] = outcome
    if letters:
        image_id, letter = next(iter(letters.items()))
        others = f" (and {len(letters) - 1} more became dead letters)" if len(letters) > 1 else ""
        raise BecameDeadLetter(
            f"{image_id} became a dead letter: {letter.code}: {letter.message}{others}; sightlog dlq show {letter.id}",
            receipts=receipts,
            letters=letters,
            missing=missing,
        )
    if missing:
        raise NotSearchableYet(
            f"nothing was heard of {len(missing)} of {len(waits)} images within {timeout:g} s, first of {missing[0]};"
            " sightlog status shows what is down",
            receipts=receipts,
            letters=letters,
            missing=missing,
        )
    return receipts


def _read(contract: type[_Said], message: Message) -> _Said | None:
    """What the record says; None of a record that is none of ours: the image that is waited for is still to come."""
    try:
        return contract.from_kafka(message.value())
    except ContractError:
        return None
