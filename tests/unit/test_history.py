"""A record that comes back is still the event it was: same origin, same version, and it tells what happened to it."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agents.delivery.records import Record
from sightlog.documents import log_version
from sightlog.fields import now
from sightlog.history import (
    HISTORY_HEADER,
    MAX_HOPS,
    History,
    Origin,
    failed_hop,
    without_history,
)
from tests.unit.deliveries import record

#: A moment that versions can tell from others.
MS = 1_760_000_000_123


def published(**facts: Any) -> Record:
    return record(b"value", [("ce_id", b"1")], timestamp_ms=MS, **facts)


def returned(of: Record, history: History, later_ms: int = 10_000) -> Record:
    """The record as it comes back to its topic."""
    headers = [*without_history(of.headers), history.to_header()]
    return replace(of, offset=of.offset + 100, timestamp_ms=of.timestamp_ms + later_ms, headers=headers)


def history_of(of: Record, **changes: Any) -> History:
    made = History(origin=of.place, attempts=1, waits=1, first_failed_at=of.time)
    return made.model_copy(update=changes)


def test_record_that_was_never_here_is_its_own_origin() -> None:
    first = published()
    assert first.history is None
    assert first.origin == Origin(topic="images", partition=3, offset=41, timestamp=first.time)
    assert first.version == log_version(MS, 41)


def test_record_that_comes_back_has_the_version_of_its_origin() -> None:
    first = published()
    again = returned(first, history_of(first))
    assert again.origin == first.origin
    assert again.version == first.version
    third = returned(again, history_of(again, attempts=2, origin=again.origin))
    assert third.version == first.version
    assert third.history is not None
    assert third.history.attempts == 2


@given(st.integers(MS, 2**42), st.integers(0, 2**40))
def test_a_version_survives_the_journey_whatever_it_is(timestamp_ms: int, offset: int) -> None:
    first = replace(published(), timestamp_ms=timestamp_ms, offset=offset)
    read = History.from_headers([history_of(first).to_header()])
    assert read is not None
    assert read.origin.timestamp_ms == timestamp_ms
    assert returned(first, read).version == first.version


@pytest.mark.parametrize(
    "forged",
    [
        b"",
        b"{",
        b"\xff\xfe",
        b"[]",
        b'{"origin":{"topic":"images","partition":0,"offset":1e999,"timestamp":"2026-01-01"},"attempts":1}',
        b'{"origin":{"topic":"images","partition":0,"offset":1,"timestamp":"99999-01-01"},"attempts":1}',
    ],
)
def test_header_that_nobody_of_ours_wrote_says_nothing(forged: bytes) -> None:
    strange = record(b"", [(HISTORY_HEADER, forged)], timestamp_ms=MS)
    assert strange.history is None
    assert strange.origin == strange.place


def test_history_that_claims_the_future_says_nothing() -> None:
    """It would let an old event overwrite newer ones for ever."""
    first = published()
    for ahead in (
        Origin(topic="images", partition=3, offset=0, timestamp=first.time + timedelta(days=1)),
        Origin(topic="images", partition=3, offset=10**9, timestamp=first.time),
    ):
        forged = replace(first, headers=[history_of(first, origin=ahead).to_header()])
        assert forged.history is None
        assert forged.version == log_version(MS, 41)


def test_history_of_another_topic_says_nothing() -> None:
    first = published()
    elsewhere = replace(first, topic="images.embedded", headers=[history_of(first).to_header()])
    assert elsewhere.history is None


def test_history_of_the_smallest_time_there_is_does_not_break_a_record() -> None:
    header = b'{"origin":{"topic":"images","partition":0,"offset":0,"timestamp":"0001-01-01"},"attempts":1,"first_failed_at":"0001-01-01"}'  # noqa: E501
    old = record(b"", [(HISTORY_HEADER, header)], timestamp_ms=MS)
    assert old.version <= log_version(MS, 41)


def test_history_keeps_the_newest_hops_and_counts_all() -> None:
    first = published()
    history = history_of(first, attempts=0, waits=0)
    for number in range(MAX_HOPS + 5):
        history = history.after(failed_hop("vision", "source_missing", f"{number}" + "x" * 1000, first.place, now()))
    assert (history.attempts, history.waits, len(history.hops)) == (MAX_HOPS + 5, MAX_HOPS + 5, MAX_HOPS)
    assert history.hops[-1].message.startswith(f"{MAX_HOPS + 4}x")
    assert len(history.to_header()[1]) < 16 * 1024


def test_replay_starts_the_tiers_again_and_forgets_nothing() -> None:
    first = published()
    failed = history_of(first, attempts=3, waits=3)
    replayed = failed.replayed(now())
    assert (replayed.attempts, replayed.waits, replayed.origin) == (3, 0, first.place)
    assert [hop.code for hop in replayed.hops] == ["replayed"]
