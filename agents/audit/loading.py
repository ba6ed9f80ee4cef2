"""Loads the log into the ledger: events, what came back, what is in flight, dead letters; pictures are not decoded."""

from __future__ import annotations

import base64
import contextlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import orjson

from agents.audit.ledger import Busy, EventRow, Kind, Ledger, LetterRow
from agents.audit.log import LogReader, LogRecord, Snapshot, Span
from sightlog.documents import log_version
from sightlog.errors import ContractError
from sightlog.events import (
    IMAGE_DELETED,
    IMAGE_UPDATED,
    IMAGE_UPLOADED,
    MAX_IMAGE_ID_BYTES,
    STRUCTURED_CONTENT_TYPE,
    consumed_headers,
    parse_event,
)
from sightlog.history import HISTORY_HEADER, History
from sightlog.settings import Topics

_KINDS = {IMAGE_UPLOADED: Kind.UPLOADED, IMAGE_UPDATED: Kind.UPDATED, IMAGE_DELETED: Kind.DELETED}
_UPLOADED = IMAGE_UPLOADED.encode()


@dataclass
class _Pending:
    """Rows on their way into the ledger."""

    events: list[EventRow] = field(default_factory=list)
    returns: list[EventRow] = field(default_factory=list)


class LogLoader:
    """Turns records into rows of the ledger."""

    def __init__(self, ledger: Ledger, reader: LogReader, topics: Topics) -> None:
        self._ledger, self._reader, self._topics = ledger, reader, topics

    def load(self, snapshot: Snapshot, told: Callable[[int], None]) -> int:
        """Load everything up to the snapshot; `told` hears how many records were read.

        Returns the version before which events may have left the log.
        """
        known_from = self._load_images(snapshot.of(self._topics.images), told)
        for topic in self._topics.retry_delays:
            self._load_waiting(_uncommitted(snapshot, topic), told)
        self._load_carried(_uncommitted(snapshot, self._topics.embedded), told)
        self._load_letters({t: snapshot.of(t) for t in (self._topics.dead, self._topics.closed)}, told)
        return known_from

    def load_later(self, tail: Mapping[int, Span]) -> None:
        """Load what was published after the snapshot, of which the indices may know already."""
        for messages in self._reader.records({self._topics.images: tail}):
            self._add_events(messages, lambda _partition, _offset: Busy.LATER)

    def _load_images(self, spans: Mapping[int, Span], told: Callable[[int], None]) -> int:
        def busy(partition: int, offset: int) -> Busy:
            return Busy.SETTLED if offset < spans[partition].committed else Busy.IN_FLIGHT

        first: dict[int, int] = {}
        newest, read = 0, 0
        for messages in self._reader.records({self._topics.images: spans}):
            for message in messages:
                version = log_version(message.timestamp()[1], message.offset())
                first.setdefault(message.partition(), version)
                newest = max(newest, version)
            self._add_events(messages, busy)
            read += len(messages)
            told(len(messages))
        if read < sum(span.end - span.start for span in spans.values()):
            # Holes, of compaction or expiry while reading: any older event may have been in one.
            return newest
        cut = [first.get(number, newest) for number, span in spans.items() if span.start > 0]
        return max(cut, default=0)

    def _add_events(self, messages: Iterable[LogRecord], busy: Callable[[int, int], Busy]) -> None:
        pending = _Pending()
        for message in messages:
            headers = message.headers() or []
            row = _event(message, headers, busy(message.partition(), message.offset()))
            history = _history(message, headers, row.version, self._topics.images)
            if history is None:
                pending.events.append(row)
            else:
                origin = history.origin
                version = log_version(origin.timestamp_ms, origin.offset)
                pending.returns.append(row._replace(partition=origin.partition, offset=origin.offset, version=version))
        self._ledger.events(pending.events)
        self._ledger.returns(pending.returns)

    def _load_waiting(self, spans: Mapping[str, Mapping[int, Span]], told: Callable[[int], None]) -> None:
        for messages in self._reader.records(spans):
            histories = (History.from_headers(consumed_headers(message.headers())) for message in messages)
            self._ledger.waiting((found.origin.partition, found.origin.offset) for found in histories if found)
            told(len(messages))

    def _load_carried(self, spans: Mapping[str, Mapping[int, Span]], told: Callable[[int], None]) -> None:
        for messages in self._reader.records(spans):
            found = (_change(message.value()) for message in messages)
            self._ledger.carried(change for change in found if change is not None)
            told(len(messages))

    def _load_letters(self, spans: Mapping[str, Mapping[int, Span]], told: Callable[[int], None]) -> None:
        for messages in self._reader.records(spans):
            dead = [message for message in messages if message.topic() == self._topics.dead]
            self._ledger.letters(row for row in map(self._letter, dead) if row is not None)
            closed = (_resolution(message) for message in messages if message.topic() == self._topics.closed)
            self._ledger.closed(row for row in closed if row is not None)
            told(len(messages))

    def _letter(self, message: LogRecord) -> LetterRow | None:
        with contextlib.suppress(orjson.JSONDecodeError, KeyError, TypeError, ValueError):
            body = orjson.loads(message.value() or b"")
            topic, partition, offset = (body["origin"][name] for name in ("topic", "partition", "offset"))
            image_id, version = body.get("image_id"), None
            if topic == self._topics.embedded:
                # The indexer gave up a document: its version says which event that was.
                value = body.get("value")
                carried = base64.b64decode(value) if value is not None else self._value(topic, partition, offset)
                image_id, version = _change(carried) or (image_id, None)
            return LetterRow(
                f"{topic}/{partition}/{offset}",
                message.partition(),
                message.offset(),
                topic,
                partition,
                offset,
                image_id,
                version,
                body["code"],
            )
        return None

    def _value(self, topic: str, partition: int, offset: int) -> bytes | None:
        record = next(self._reader.pick(topic, [(partition, offset)]), None)
        return None if record is None else record.value()


def _uncommitted(snapshot: Snapshot, topic: str) -> dict[str, dict[int, Span]]:
    """Only what its group has not committed: the rest has its effect elsewhere by now."""
    return {topic: {p: Span(span.committed, span.committed, span.end) for p, span in snapshot.of(topic).items()}}


def _event(message: LogRecord, headers: list[tuple[str, bytes | None]], busy: Busy) -> EventRow:
    partition, offset = message.partition(), message.offset()
    version = log_version(message.timestamp()[1], offset)
    key = message.key()
    if key and len(key) <= MAX_IMAGE_ID_BYTES and _plain_upload(headers):
        # By far the most: what identifies it needs no look at the bytes. Should it be unfit, a dead letter says so.
        with contextlib.suppress(UnicodeDecodeError):
            return EventRow(partition, offset, key.decode(), version, Kind.UPLOADED, True, True, busy)
    try:
        event: Any = parse_event(message.value(), consumed_headers(headers))
        image_id = event.image_id(key)
    except ContractError:
        return EventRow(partition, offset, None, version, Kind.UNREADABLE, False, False, busy)
    tags, metadata = (getattr(event, name, None) is not None for name in ("tags", "metadata"))
    return EventRow(partition, offset, image_id, version, _KINDS[event.type], tags, metadata, busy)


def _plain_upload(headers: list[tuple[str, bytes | None]]) -> bool:
    uploaded = False
    for name, content in headers:
        lower = name.lower()
        if lower == "ce_type":
            uploaded = content == _UPLOADED
        elif lower == "content-type" and content and content.lower().startswith(STRUCTURED_CONTENT_TYPE.encode()):
            return False
    return uploaded


def _history(message: LogRecord, headers: list[tuple[str, bytes | None]], version: int, topic: str) -> History | None:
    """As the agents read it: only of this topic, and never of later than the record itself."""
    if not any(name == HISTORY_HEADER for name, _ in headers):
        return None
    found = History.from_headers(consumed_headers(headers))
    if found is None or found.origin.topic != topic:
        return None
    return found if log_version(found.origin.timestamp_ms, found.origin.offset) <= version else None


def _change(value: bytes | None) -> tuple[str, int] | None:
    """Image id and version of a record of `images.embedded`."""
    with contextlib.suppress(orjson.JSONDecodeError, KeyError, TypeError):
        body = orjson.loads(value or b"")
        return str(body["image_id"]), int(body["version"])
    return None


def _resolution(message: LogRecord) -> tuple[str, int, int, str] | None:
    with contextlib.suppress(orjson.JSONDecodeError, KeyError, TypeError):
        body = orjson.loads(message.value() or b"")
        return body["id"], body["letter"]["partition"], body["letter"]["offset"], body["action"]
    return None
