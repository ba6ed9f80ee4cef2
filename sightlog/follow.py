"""Follows what becomes of published images: found by a search from now on, or dead."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from types import TracebackType

from sightlog.consuming import consumer_at_end
from sightlog.dead_letters import DeadLetter
from sightlog.documents import IndexReceipt
from sightlog.errors import NoReply
from sightlog.published import Outcome
from sightlog.settings import ClientSettings


class Follower:
    """Sees every receipt and dead letter that is written after it was made: make it before publishing."""

    def __init__(self, settings: ClientSettings) -> None:
        self._topics = settings.topics
        self._consumer = consumer_at_end(settings.kafka, settings.topics.indexed, settings.topics.dead)

    def outcomes(self, image_ids: Iterable[str], *, patience: float = 120.0) -> Iterator[tuple[str, Outcome]]:
        """Yield each image's first outcome until all are there.

        Raises NoReply when nothing at all happened for `patience` seconds.
        """
        missing = set(image_ids)
        heard = time.monotonic()
        while missing:
            for image_id, outcome in self._read(0.2):
                heard = time.monotonic()
                if image_id in missing:
                    missing.discard(image_id)
                    yield image_id, outcome
            if time.monotonic() - heard > patience:
                raise NoReply(
                    f"{len(missing)} images without an outcome and nothing new for {patience:g} s; "
                    "sightlog status shows what is down"
                )

    def outcomes_at_hand(self) -> Iterator[tuple[str, Outcome]]:
        """Yield what else was said about any image up to now."""
        while said := list(self._read(1.0)):
            yield from said

    def close(self) -> None:
        self._consumer.close()

    def __enter__(self) -> Follower:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _read(self, seconds: float) -> Iterator[tuple[str, Outcome]]:
        for message in self._consumer.consume(500, timeout=seconds):
            if message.error() is None:
                key = (message.key() or b"").decode("utf-8", "replace")
                is_dead = message.topic() == self._topics.dead
                contract = DeadLetter if is_dead else IndexReceipt
                yield key, contract.from_kafka(message.value())
