"""The comparison of log and indices: each kind of fault by example, and random histories against plain Python."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agents.audit.ledger import Busy, EventRow, ImageRow, Kind, Ledger, LetterRow, ObjectRow

TOPIC = "images"


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    with Ledger(tmp_path) as made:
        yield made
    assert list(tmp_path.iterdir()) == []


def event(
    version: int, image_id: str | None = "a", kind: Kind = Kind.UPLOADED, gives: str = "tm", busy: Busy = Busy.SETTLED
) -> EventRow:
    """At partition 0, with its version as offset."""
    return EventRow(0, version, image_id, version, kind, "t" in gives, "m" in gives, busy)


def image(image_id: str = "a", content: int = 1, objects: int = 0, **changes: object) -> ImageRow:
    row = ImageRow(image_id, 0, image_id, content, content, content, 0, objects, True, 7, 1)
    return row._replace(**changes)  # type: ignore[arg-type]


def thing(ordinal: int, image_id: str = "a", content: int = 1, **changes: object) -> ObjectRow:
    row = ObjectRow(f"{image_id}#{ordinal}", 0, image_id, ordinal, content, 3 * content, 7, 1)
    return row._replace(**changes)  # type: ignore[arg-type]


def letter(at: int, /, **changes: object) -> LetterRow:
    row = LetterRow(f"{TOPIC}/0/{at}", 0, 10, TOPIC, 0, at, None, None, "undecodable")
    return row._replace(**changes)  # type: ignore[arg-type]


def found(ledger: Ledger) -> set[tuple[str, str | None]]:
    return {(one.kind, one.document) for one in ledger.findings()}


def test_an_upload_with_its_document_and_all_objects_is_indexed(ledger: Ledger) -> None:
    ledger.events([event(1)])
    ledger.images([image(objects=2)])
    ledger.objects([thing(0), thing(1)])
    ledger.judge(TOPIC, 0)
    assert ledger.outcomes() == {"indexed": 1}
    assert found(ledger) == set()


def test_an_upload_without_a_document_is_missing_and_its_event_is_named_for_repair(ledger: Ledger) -> None:
    ledger.events([event(1), event(2, "b")])
    ledger.images([image("b", 2)])
    ledger.judge(TOPIC, 0)
    assert ledger.outcomes() == {"missing": 1, "indexed": 1}
    assert found(ledger) == {("missing", "a")}
    assert list(ledger.lost_events()) == [(0, 1)]


def test_an_event_that_nobody_can_read_is_missing_until_it_has_a_dead_letter(tmp_path: Path) -> None:
    for letters, outcome in (([], "missing"), ([letter(1)], "dead")):
        with Ledger(tmp_path) as ledger:
            ledger.events([event(1, None, Kind.UNREADABLE)])
            ledger.letters(letters)
            ledger.judge(TOPIC, 0)
            assert ledger.outcomes() == {outcome: 1}


def test_a_document_older_than_the_newest_upload_is_stale(ledger: Ledger) -> None:
    ledger.events([event(1), event(2)])
    ledger.images([image(content=1)])
    ledger.judge(TOPIC, 0)
    assert ledger.outcomes() == {"superseded": 1, "stale": 1}
    assert found(ledger) == {("stale", "a")}
    assert list(ledger.lost_events()) == [(0, 2)]


@pytest.mark.parametrize(("gives", "register"), [("t", "tags"), ("m", "metadata")])
def test_an_update_that_is_not_in_its_document_makes_it_stale(ledger: Ledger, gives: str, register: str) -> None:
    ledger.events([event(1), event(2, kind=Kind.UPDATED, gives=gives), event(3, "b"), event(4, "b", Kind.UPDATED)])
    ledger.images([image(), image("b", 3, tags=4, metadata=4)])
    ledger.judge(TOPIC, 0)
    assert [one.why for one in ledger.findings()] == [f"{register} of 1, not of 2"]
    assert ledger.outcomes() == {"stale": 2, "indexed": 2}


def test_an_update_whose_fields_were_all_replaced_is_superseded(ledger: Ledger) -> None:
    rows = [event(1), event(2, kind=Kind.UPDATED, gives="t"), event(3, kind=Kind.UPDATED, gives="t")]
    ledger.events([*rows, event(4, kind=Kind.UPDATED, gives="m"), event(5, kind=Kind.UPDATED, gives="m")])
    ledger.images([image(tags=3, metadata=5)])
    ledger.judge(TOPIC, 0)
    assert ledger.outcomes() == {"indexed": 3, "superseded": 2}


def test_objects_above_the_count_of_deleted_images_and_without_an_image_are_orphans(ledger: Ledger) -> None:
    ledger.events([event(1), event(2, "b"), event(3, "b", Kind.DELETED)])
    ledger.images([image(objects=1), image("b", 2, deleted=3, visible=False)])
    ledger.objects([thing(0), thing(1), thing(0, "b", 2), thing(0, "c", 9)])
    ledger.judge(TOPIC, 0)
    assert found(ledger) == {("orphans", "a#1"), ("orphans", "b#0"), ("orphans", "c#0")}
    assert {row[0] for row in ledger.surplus_objects()} == {"a#1", "b#0", "c#0"}
    assert ledger.outcomes() == {"indexed": 1, "deleted": 2}


def test_objects_of_a_missing_image_are_not_orphans(ledger: Ledger) -> None:
    ledger.events([event(1)])
    ledger.objects([thing(0)])
    ledger.judge(TOPIC, 0)
    assert found(ledger) == {("missing", "a")}


def test_an_image_of_no_event_is_an_orphan_with_its_objects(ledger: Ledger) -> None:
    ledger.events([event(1)])
    ledger.images([image(), image("b", 5, objects=1)])
    ledger.objects([thing(0, "b", 5)])
    ledger.judge(TOPIC, 0)
    assert found(ledger) == {("orphans", "b"), ("orphans", "b#0")}
    assert [row[0] for row in ledger.surplus_images()] == ["b"]


def test_a_state_that_no_event_of_the_image_made_is_an_orphan_and_its_events_come_again(ledger: Ledger) -> None:
    ledger.events([event(1)])
    ledger.images([image(content=4)])
    ledger.judge(TOPIC, 0)
    assert found(ledger) == {("orphans", "a")}
    assert ledger.outcomes() == {"stale": 1}


def test_the_same_image_or_object_under_a_second_id_and_a_second_copy_are_duplicates(ledger: Ledger) -> None:
    ledger.events([event(1)])
    ledger.images([image(objects=1), image(id="other"), image(objects=1, place=1)])
    ledger.objects([thing(0), thing(0, id="a#00"), thing(0, place=1)])
    ledger.judge(TOPIC, 0)
    assert Counter((one.kind, one.document) for one in ledger.findings()) == {
        ("duplicates", "other"): 1,
        ("duplicates", "a"): 1,
        ("duplicates", "a#00"): 1,
        ("duplicates", "a#0"): 1,
    }
    # The copies in the index that is written to stay.
    assert {row[:2] for row in ledger.surplus_images()} == {("other", 0), ("a", 1)}
    assert {row[:2] for row in ledger.surplus_objects()} == {("a#00", 0), ("a#0", 1)}


def test_an_object_that_is_not_there_or_of_another_state_makes_its_upload_come_again(ledger: Ledger) -> None:
    ledger.events([event(1), event(2, "b"), event(3, "b", Kind.UPDATED, "t")])
    ledger.images([image(objects=3), image("b", 2, objects=1, tags=3)])
    ledger.objects([thing(1), thing(0, "b", 2)])
    ledger.judge(TOPIC, 0)
    assert found(ledger) == {("missing", "a#0"), ("missing", "a#2"), ("stale", "b#0")}
    assert ledger.outcomes() == {"missing": 1, "stale": 2}


def test_an_image_that_can_be_found_although_it_was_deleted_is_stale(ledger: Ledger) -> None:
    ledger.events([event(1), event(2, kind=Kind.DELETED)])
    ledger.images([image()])
    ledger.judge(TOPIC, 0)
    assert [one.why for one in ledger.findings("stale")] == ["can be found although it was deleted by 2"]
    assert list(ledger.lost_events()) == [(0, 2)]


@pytest.mark.parametrize("visible", [True, False])
def test_a_document_whose_visibility_belies_its_registers_is_stale(ledger: Ledger, visible: bool) -> None:
    ledger.events([event(1), event(2, kind=Kind.DELETED)] if visible else [event(1)])
    ledger.images([image(deleted=2 if visible else 0, visible=visible)])
    ledger.judge(TOPIC, 0)
    assert found(ledger) == {("stale", "a")}


def test_a_deletion_leaves_a_document_that_remembers_it(ledger: Ledger) -> None:
    ledger.events([event(1), event(2, kind=Kind.DELETED)])
    ledger.judge(TOPIC, 0)
    assert found(ledger) == {("missing", "a")}
    assert list(ledger.lost_events()) == [(0, 2)]


def test_what_is_under_way_is_in_flight_wherever_it_is(ledger: Ledger) -> None:
    ledger.events([event(1, busy=Busy.IN_FLIGHT), event(2, "b"), event(3, "c"), event(4, "d"), event(5, "e")])
    ledger.returns([event(2, "b", busy=Busy.IN_FLIGHT)])
    ledger.waiting([(0, 3)])
    ledger.carried([("d", 4)])
    ledger.judge(TOPIC, 0)
    assert ledger.outcomes() == {"in_flight": 4, "missing": 1}
    assert found(ledger) == {("missing", "e")}


def test_events_after_the_end_are_not_judged_and_explain_what_the_indices_know_of_them(ledger: Ledger) -> None:
    ledger.events([event(1), event(2, busy=Busy.LATER), event(3, "b", busy=Busy.LATER)])
    ledger.images([image(content=2, objects=1)])
    ledger.judge(TOPIC, 0)
    assert found(ledger) == set()
    assert ledger.outcomes() == {"indexed": 1}


def test_a_dead_letter_explains_its_event_until_it_is_replayed_and_again_when_it_is_dropped(tmp_path: Path) -> None:
    identity = letter(1).id
    for closed, outcome in (
        ([], "dead"),
        ([(identity, 0, 10, "replayed")], "missing"),
        ([(identity, 0, 9, "replayed")], "dead"),
        ([(identity, 0, 10, "dropped")], "dead"),
    ):
        with Ledger(tmp_path) as ledger:
            ledger.events([event(1)])
            ledger.letters([letter(1)])
            ledger.closed(closed)
            ledger.judge(TOPIC, 0)
            assert ledger.outcomes() == {outcome: 1}, closed


def test_a_dead_letter_whose_event_came_through_after_all_counts_as_indexed(ledger: Ledger) -> None:
    ledger.events([event(1)])
    ledger.letters([letter(1)])
    ledger.images([image()])
    ledger.judge(TOPIC, 0)
    assert ledger.outcomes() == {"indexed": 1}
    assert found(ledger) == set()


def test_a_letter_of_the_indexer_buries_the_event_whose_document_it_was(ledger: Ledger) -> None:
    ledger.events([event(1)])
    ledger.letters([letter(77, origin_topic="images.embedded", image_id="a", version=1)])
    ledger.judge(TOPIC, 0)
    assert ledger.outcomes() == {"dead": 1}


def test_a_broken_upload_again_leaves_the_image_as_it_was(ledger: Ledger) -> None:
    ledger.events([event(1), event(2)])
    ledger.letters([letter(2)])
    ledger.images([image(content=1)])
    ledger.judge(TOPIC, 0)
    assert ledger.outcomes() == {"indexed": 1, "dead": 1}
    assert found(ledger) == set()


def test_an_event_that_came_back_after_its_origin_left_the_log_is_judged_by_its_origin(ledger: Ledger) -> None:
    ledger.events([event(5)])
    ledger.returns([event(2, "b")])
    ledger.images([image(content=5)])
    ledger.judge(TOPIC, 4)
    assert ledger.outcomes() == {"indexed": 1, "missing": 1}


def test_documents_from_before_the_log_are_counted_and_not_blamed(ledger: Ledger) -> None:
    ledger.events([event(5)])
    ledger.images([image(content=5), image("b", 3), image("c", 6)])
    ledger.judge(TOPIC, 5)
    assert ledger.counts()["beyond_log"] == 1
    assert found(ledger) == {("orphans", "c")}


@dataclass
class Case:
    """A random history and what the indices hold."""

    events: list[EventRow] = field(default_factory=list)
    buried: set[int] = field(default_factory=set)
    images: dict[str, ImageRow] = field(default_factory=dict)
    objects: dict[str, ObjectRow] = field(default_factory=dict)


def registers(case: Case, image_id: str) -> tuple[int, int, int, int]:
    """What settled, living events of an image add up to."""
    content = tags = metadata = deleted = 0
    for one in case.events:
        if one.image_id != image_id or one.busy or one.version in case.buried:
            continue
        if one.kind == Kind.UPLOADED:
            content, tags, metadata = (max(was, one.version) for was in (content, tags, metadata))
        if one.kind == Kind.UPDATED:
            tags = max(tags, one.version if one.tags else 0)
            metadata = max(metadata, one.version if one.metadata else 0)
        if one.kind == Kind.DELETED:
            deleted = max(deleted, one.version)
    return content, tags, metadata, deleted


@st.composite
def cases(draw: st.DrawFn) -> Case:
    case = Case()
    for version in range(1, draw(st.integers(1, 9)) + 1):
        kind = draw(st.sampled_from([Kind.UPLOADED, Kind.UPLOADED, Kind.UPDATED, Kind.DELETED]))
        gives = draw(st.sampled_from(["t", "m", "tm"])) if kind == Kind.UPDATED else "tm"
        busy = draw(st.sampled_from([Busy.SETTLED] * 6 + [Busy.IN_FLIGHT, Busy.LATER]))
        case.events.append(event(version, draw(st.sampled_from("ab")), kind, gives, busy))
        if draw(st.integers(0, 7)) == 0:
            case.buried.add(version)
    for image_id in "ab":
        content, tags, metadata, deleted = registers(case, image_id)
        if not any((content, tags, metadata, deleted)):
            continue
        shown = content > deleted
        count = draw(st.integers(0, 3)) if shown else 0
        row = image(image_id, content, count, tags=tags, metadata=metadata, deleted=deleted, visible=shown)
        case.images[row.id] = row
        for ordinal in range(count):
            one = thing(ordinal, image_id, content, revision=content + tags + metadata + deleted)
            case.objects[one.id] = one
    return case


@given(cases())
def test_an_index_that_follows_the_log_has_no_findings(case: Case) -> None:
    assert judged(case) == (set(), oracle_outcomes(case, set()))


@given(cases(), st.data())
def test_every_document_that_is_taken_away_or_set_back_is_named(case: Case, data: st.DataObject) -> None:
    """A visible settled image loses its document, an object, or its newest content; nothing else is blamed."""
    busy = {one.image_id for one in case.events if one.busy}
    whole = [row for row in case.images.values() if row.visible and row.image_id not in busy]
    if not whole:
        return
    victim = data.draw(st.sampled_from(whole))
    name = str(victim.image_id)
    fault = data.draw(st.sampled_from(["image", "object", "older", "count"]))
    own = [one.id for one in case.objects.values() if one.image_id == name]
    if fault == "image":
        del case.images[name]
        expected = {("missing", name)}
    elif fault == "object" and own:
        lost = data.draw(st.sampled_from(own))
        del case.objects[lost]
        expected = {("missing", lost)}
    elif fault == "count" and own:
        case.images[name] = victim._replace(objects=victim.objects - 1)
        expected = {("orphans", f"{name}#{victim.objects - 1}")}
    else:
        case.images[name] = victim._replace(content=0, tags=0, metadata=0, objects=0, visible=False)
        expected = {("stale", name)} | {("orphans", one) for one in own}
    wrong = {name} if any(kind != "orphans" for kind, _ in expected) else set()
    findings, outcomes = judged(case)
    assert findings - {("orphans", name)} == expected
    assert outcomes == oracle_outcomes(case, wrong)


def judged(case: Case) -> tuple[set[tuple[str, str | None]], dict[int, str]]:
    """The findings, and the events by version with "wrong" for one that is to come again."""
    with Ledger() as ledger:
        ledger.events(case.events)
        ledger.letters([letter(version) for version in case.buried])
        ledger.images(case.images.values())
        ledger.objects(case.objects.values())
        ledger.judge(TOPIC, 0)
        rows = ledger.rows("SELECT offset, outcome FROM judged")
        return found(ledger), {offset: "wrong" if how in ("missing", "stale") else how for offset, how in rows}


def oracle_outcomes(case: Case, wrong: set[str]) -> dict[int, str]:
    """What became of each event, told without SQL."""
    outcomes: dict[int, str] = {}
    for one in case.events:
        name = str(one.image_id)
        content, tags, metadata, deleted = registers(case, name)
        if one.busy == Busy.LATER:
            continue
        if one.busy == Busy.IN_FLIGHT:
            outcome = "in_flight"
        elif one.version in case.buried:
            outcome = "dead"
        elif one.kind == Kind.DELETED:
            outcome = "deleted" if one.version == deleted else "superseded"
        elif one.version < deleted:
            outcome = "deleted"
        elif one.kind == Kind.UPLOADED:
            outcome = "indexed" if one.version == content else "superseded"
        else:
            shows = (one.tags and one.version == tags) or (one.metadata and one.version == metadata)
            outcome = "indexed" if shows else "superseded"
        in_force = outcome == "indexed" or (one.kind == Kind.DELETED and outcome == "deleted")
        outcomes[one.version] = "wrong" if in_force and name in wrong else outcome
    return outcomes
