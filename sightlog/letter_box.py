"""The open dead letters: which there are, what they were about, and how to close them by a replay or for good.

A letter is open when it is the newest of its id and no resolution of it, or of a later one, is on `images.dead.closed`.
Letters are streamed: what stays in memory of each is a line, not its bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator
from dataclasses import dataclass
from datetime import datetime, timezone
from types import TracebackType
from typing import Any, Literal, NamedTuple

from confluent_kafka import KafkaError, KafkaException, Message, Producer

from sightlog.dead_letters import DeadLetter, Resolution
from sightlog.errors import ContractError, SightlogError
from sightlog.events import OutgoingHeaders, consumed_headers
from sightlog.fields import now
from sightlog.history import Origin, without_history
from sightlog.log_reader import LogReader
from sightlog.settings import MAX_RECORD_BYTES, ClientSettings

Told = Callable[[int, int], object]


def _silent(_done: int, _total: int) -> None:
    pass


@dataclass(frozen=True)
class Entry:
    """What is kept in memory of a letter."""

    id: str
    code: str
    stage: str
    image_id: str | None
    failed_at: datetime
    attempts: int
    value_bytes: int
    place: Origin


class Original(NamedTuple):
    """A record as it was first published."""

    key: bytes | None
    value: bytes | None
    headers: list[tuple[str, bytes]]


class NotReplayable(SightlogError):
    """A letter that cannot be sent through the stream again; the message says why."""


class LetterBox:
    """Reads and closes dead letters."""

    def __init__(self, settings: ClientSettings) -> None:
        self._topics = settings.topics
        self._letters, self._log = LogReader(settings.kafka), LogReader(settings.kafka)
        self._producer = Producer(
            {
                "bootstrap.servers": settings.kafka,
                "enable.idempotence": True,
                "acks": "all",
                "linger.ms": 5,
                "message.max.bytes": MAX_RECORD_BYTES,
                # Originals wait here for the broker.
                "queue.buffering.max.kbytes": 64 * 1024,
                "log_level": 0,
            }
        )
        #: What is to be done for events that the broker has; a delivery report may not produce by itself.
        self._next: list[Callable[[], None]] = []
        #: Letters that nobody can read, since it was made.
        self.unreadable = 0

    def __enter__(self) -> LetterBox:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._letters.close()
        self._log.close()

    def open_letters(self, told: Told = _silent) -> list[Entry]:
        """The open letters, oldest failure first. Raises SightlogError when the broker does not answer."""
        closed: dict[str, Origin] = {}
        for message in self._letters.read(self._topics.closed):
            try:
                said = Resolution.from_kafka(message.value())
            except ContractError:
                continue
            if said.id not in closed or _later(said.letter, closed[said.id]):
                closed[said.id] = said.letter
        newest: dict[str, Entry] = {}
        for place, letter in self._read(told):
            known = newest.get(letter.id)
            if known is None or _later(place, known.place):
                newest[letter.id] = _entry(place, letter)
        still = (one for one in newest.values() if one.id not in closed or _later(one.place, closed[one.id]))
        return sorted(still, key=lambda one: one.failed_at)

    def letters(self, entries: Container[Origin], told: Told = _silent) -> Iterator[tuple[Origin, DeadLetter]]:
        """Read the letters at some places in full, one after the other."""
        return ((place, letter) for place, letter in self._read(told) if place in entries)

    def letter(self, letter_id: str, told: Told = _silent) -> tuple[Origin, DeadLetter] | None:
        """The newest letter of an id, open or closed."""
        found: tuple[Origin, DeadLetter] | None = None
        for place, letter in self._read(told):
            if letter.id == letter_id and (found is None or _later(place, found[0])):
                found = place, letter
        return found

    def original(self, letter: DeadLetter) -> Original:
        """The record that failed, from the letter or from the log. Raises NotReplayable."""
        if not letter.headers_dropped and letter.value is not None:
            return Original(letter.key, letter.value, list(letter.headers))
        origin = letter.origin
        message = self._log.record(origin.topic, origin.partition, origin.offset)
        if message is None:
            raise NotReplayable(
                f"the letter is too small for its {letter.value_bytes} bytes and {origin} is no longer in the log; "
                "publish the upload again"
            )
        if message.timestamp()[1] != origin.timestamp_ms:
            raise NotReplayable(f"{origin} is another record today: the topic was made anew")
        headers: Any = message.headers()
        return Original(message.key(), message.value(), consumed_headers(headers))

    def replay(self, place: Origin, letter: DeadLetter, told: Callable[[str | None], None]) -> None:
        """Send the event to the topic that it came from, and close the letter once the broker has it.

        `told` hears None then, or what went wrong. An event that is replayed twice makes the same documents: its
        version is that of its origin. Raises NotReplayable.
        """
        if letter.origin.topic not in (self._topics.images, self._topics.embedded):
            raise NotReplayable(f"nobody waits any more for an answer to a request of {letter.origin.topic}; drop it")
        letter_id, original = letter.id, self.original(letter)
        history = letter.history.replayed(now())
        headers: OutgoingHeaders = [*without_history(original.headers), history.to_header()]

        def sent(error: KafkaError | None, _message: Message) -> None:
            if error is None:
                self._next.append(lambda: self.close_letter(place, letter_id, "replayed", told))
            else:
                told(error.str())

        self._produce(letter.origin.topic, original.value, original.key, headers, sent)
        self._go_on()

    def close_letter(
        self, place: Origin, letter_id: str, action: Literal["replayed", "dropped"], told: Callable[[str | None], None]
    ) -> None:
        """Say that a letter is done; `told` hears None when the broker has it, or what went wrong."""

        def closed(error: KafkaError | None, _message: Message) -> None:
            told(None if error is None else error.str())

        resolution = Resolution(id=letter_id, action=action, letter=place, at=now())
        self._produce(self._topics.closed, resolution.to_kafka(), letter_id.encode(), [], closed)

    def flush(self, timeout: float = 60.0) -> None:
        """Wait until the broker answered for everything. Raises SightlogError."""
        while True:
            if self._producer.flush(timeout):
                raise SightlogError(
                    f"the broker did not confirm everything within {timeout:g} s; run the command again"
                )
            if not self._next:
                return
            self._go_on()

    def _go_on(self) -> None:
        while self._next:
            self._next.pop()()

    def _produce(self, topic: str, value: bytes | None, key: bytes | None, headers: Any, on_delivery: Any) -> None:
        while True:
            try:
                self._producer.produce(topic, value, key, headers=headers, on_delivery=on_delivery)
                break
            except BufferError:
                self._producer.poll(0.1)
            except KafkaException as error:
                raise NotReplayable(f"{topic}: {error.args[0].str()}") from None
        self._producer.poll(0)

    def _read(self, told: Told) -> Iterator[tuple[Origin, DeadLetter]]:
        for message in self._letters.read(self._topics.dead, told):
            try:
                yield _place(message), DeadLetter.from_kafka(message.value())
            except ContractError:
                self.unreadable += 1


def _place(message: Message) -> Origin:
    at: Any = message
    return Origin(
        topic=at.topic(),
        partition=at.partition(),
        offset=at.offset(),
        timestamp=datetime.fromtimestamp(at.timestamp()[1] / 1000, timezone.utc),
    )


def _later(one: Origin, other: Origin) -> bool:
    """The letters of an id are under one key, so in one partition; elsewhere only if partitions were added."""
    if one.partition == other.partition:
        return one.offset > other.offset
    return one.timestamp > other.timestamp


def _entry(place: Origin, letter: DeadLetter) -> Entry:
    return Entry(
        id=letter.id,
        code=letter.code,
        stage=letter.stage,
        image_id=letter.image_id,
        failed_at=letter.failed_at,
        attempts=letter.attempts,
        value_bytes=letter.value_bytes,
        place=place,
    )
