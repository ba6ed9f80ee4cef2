"""How records of the log become rows: events, what came back, what waits, and dead letters."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from typing import Any

import orjson
import pytest

from agents.audit.ledger import Ledger
from agents.audit.loading import LogLoader
from agents.audit.log import LogReader, LogRecord, Snapshot, Span
from sightlog.dead_letters import DeadLetter, Resolution
from sightlog.documents import log_version
from sightlog.events import new_deletion, new_update, new_upload
from sightlog.history import History, Origin
from sightlog.settings import Topics

BEGAN = datetime(2026, 5, 1, tzinfo=timezone.utc)
TOPICS = Topics()


@dataclass
class Message:
    """One record; its time is `offset` seconds after the beginning."""

    at: tuple[str, int, int]
    body: bytes | None = b""
    name: bytes | None = None
    heads: tuple[tuple[str, Any], ...] = ()

    def topic(self) -> str:
        return self.at[0]

    def partition(self) -> int:
        return self.at[1]

    def offset(self) -> int:
        return self.at[2]

    def timestamp(self) -> tuple[int, int]:
        return 2, milliseconds(self.at[2])

    def key(self) -> bytes | None:
        return self.name

    def value(self) -> bytes | None:
        return self.body

    def headers(self) -> list[tuple[str, bytes | None]] | None:
        return list(self.heads) or None


def milliseconds(offset: int) -> int:
    return round((BEGAN + timedelta(seconds=offset)).timestamp() * 1000)


def version(offset: int) -> int:
    return log_version(milliseconds(offset), offset)


class Log(LogReader):
    """A log in memory; hands out batches of two."""

    def __init__(self, messages: list[Message]) -> None:
        self.messages = messages

    def records(self, spans: Mapping[str, Mapping[int, Span]]) -> Iterator[list[LogRecord]]:
        wanted: list[LogRecord] = [
            one
            for one in self.messages
            if one.partition() in spans.get(one.topic(), {})
            and spans[one.topic()][one.partition()].start <= one.offset() < spans[one.topic()][one.partition()].end
        ]
        for start in range(0, len(wanted), 2):
            yield wanted[start : start + 2]


def upload(offset: int, name: str | None = "a", **changes: Any) -> Message:
    value, headers = new_upload(b"picture", source="/t").to_kafka(**changes)
    return Message((TOPICS.images, 0, offset), value, name.encode() if name else None, tuple(headers))


def history(offset: int, topic: str = TOPICS.images) -> tuple[str, bytes]:
    origin = Origin(topic=topic, partition=0, offset=offset, timestamp=BEGAN + timedelta(seconds=offset))
    return History(origin=origin, attempts=1, first_failed_at=BEGAN).to_header()


def load(messages: list[Message], **spans: Span) -> tuple[int, list[tuple[Any, ...]], dict[str, int]]:
    """Version from which the log is known, the events (offset, image, version, kind, tags, metadata), outcomes."""
    by_name = {"images": TOPICS.images, "embedded": TOPICS.embedded, "dead": TOPICS.dead, "closed": TOPICS.closed}
    by_name["tier"] = "images.retry.10s"
    snapshot = Snapshot({by_name[name]: {0: span} for name, span in spans.items()})
    with Ledger() as ledger:
        known_from = LogLoader(ledger, Log(messages), TOPICS).load(snapshot, lambda _count: None)
        ledger.judge(TOPICS.images, known_from)
        rows = ledger.rows("SELECT offset, image_id, version, kind, tags, metadata FROM events ORDER BY offset")
        return known_from, rows, ledger.outcomes()


def test_uploads_updates_deletions_and_what_cannot_be_read_are_told_apart() -> None:
    update, deletion = (
        Message((TOPICS.images, 0, offset), value, b"a", tuple(headers))
        for offset, (value, headers) in enumerate(
            [new_update(source="/t", tags=()).to_kafka(), new_deletion(source="/t").to_kafka()], start=1
        )
    )
    broken = Message((TOPICS.images, 0, 3), b"{", b"a")
    no_name = Message((TOPICS.images, 0, 4), b"x", b"\xff", upload(4).heads)
    _, rows, _ = load([upload(0), update, deletion, broken, no_name], images=Span(0, 5, 5))
    assert rows == [
        (0, "a", version(0), 1, 1, 1),
        (1, "a", version(1), 2, 1, 0),
        (2, "a", version(2), 3, 0, 0),
        (3, None, version(3), 0, 0, 0),
        (4, None, version(4), 0, 0, 0),
    ]


@pytest.mark.parametrize("structured", [False, True])
def test_an_image_without_a_key_is_named_as_the_agents_name_it(structured: bool) -> None:
    _, rows, _ = load([upload(0, None, structured=structured)], images=Span(0, 1, 1))
    event = new_upload(b"picture", source="/t")
    assert rows[0][1] == event.image_id(None)


def test_a_record_that_came_back_is_its_origin_and_no_event_of_its_own() -> None:
    back = upload(7)
    back.heads += (history(2),)
    _, rows, outcomes = load([upload(2), back], images=Span(0, 8, 8))
    assert [row[0] for row in rows] == [2]
    assert outcomes == {"missing": 1}
    _, _, outcomes = load([upload(2), back], images=Span(0, 7, 8))
    assert outcomes == {"in_flight": 1}


@pytest.mark.parametrize("forged", [history(9), history(0, "other"), ("sightlog_history", b"{")])
def test_a_forged_history_says_nothing(forged: tuple[str, bytes]) -> None:
    record = upload(5)
    record.heads += (forged,)
    _, rows, _ = load([record], images=Span(0, 6, 6))
    assert [row[0] for row in rows] == [5]


def test_only_what_a_group_has_not_committed_is_in_flight() -> None:
    waiting = Message(("images.retry.10s", 0, 4), b"", b"a", (history(1),))
    moved = Message(("images.retry.10s", 0, 3), b"", b"a", (history(0),))
    document = orjson.dumps({"image_id": "c", "version": version(2)})
    carried = Message((TOPICS.embedded, 0, 8), document)
    messages = [upload(0), upload(1, "b"), upload(2, "c"), upload(3, "d"), waiting, moved, carried]
    spans = {"images": Span(0, 3, 4), "tier": Span(0, 4, 5), "embedded": Span(0, 8, 9)}
    _, _, outcomes = load(messages, **spans)
    assert outcomes == {"missing": 1, "in_flight": 3}


def dead(offset: int, topic: str = TOPICS.images, value: bytes | None = None) -> Message:
    origin = Origin(topic=topic, partition=0, offset=offset, timestamp=BEGAN)
    letter = DeadLetter(
        code="undecodable", message="", stage="vision", origin=origin, failed_at=BEGAN, value=value, value_bytes=0
    )
    return Message((TOPICS.dead, 0, 0), letter.to_kafka())


def test_dead_letters_bury_events_also_those_of_the_indexer_and_a_replay_digs_them_out() -> None:
    assert load([upload(0), dead(0)], images=Span(0, 1, 1), dead=Span(0, 1, 1))[2] == {"dead": 1}
    document = orjson.dumps({"image_id": "a", "version": version(0)})
    letter = dead(33, TOPICS.embedded, document)
    assert load([upload(0), letter], images=Span(0, 1, 1), dead=Span(0, 1, 1))[2] == {"dead": 1}
    place = Origin(topic=TOPICS.dead, partition=0, offset=0, timestamp=BEGAN)
    identity = DeadLetter.from_kafka(dead(0).body).id
    closed = Resolution(id=identity, action="replayed", letter=place, at=BEGAN).to_kafka()
    messages = [upload(0), dead(0), Message((TOPICS.closed, 0, 0), closed)]
    spans = {"images": Span(0, 1, 1), "dead": Span(0, 1, 1), "closed": Span(0, 1, 1)}
    assert load(messages, **spans)[2] == {"missing": 1}


def test_letters_that_nobody_of_ours_wrote_are_passed_over() -> None:
    strange = [Message((TOPICS.dead, 0, n), body) for n, body in enumerate([b"{", b"[]", b'{"origin":1}', None])]
    assert load([upload(0), *strange], images=Span(0, 1, 1), dead=Span(0, 4, 4))[2] == {"missing": 1}


def test_a_log_that_begins_later_or_has_holes_says_from_where_it_is_known() -> None:
    assert load([upload(0), upload(1)], images=Span(0, 2, 2))[0] == 0
    assert load([upload(5), upload(6)], images=Span(5, 7, 7))[0] == version(5)
    assert load([upload(0), upload(6)], images=Span(0, 7, 7))[0] == version(6)
