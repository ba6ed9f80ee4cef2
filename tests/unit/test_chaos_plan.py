"""What a chaos run does is drawn from its seed and reaches every component, under load all the time."""

from __future__ import annotations

import time
from collections import Counter
from typing import Any

import pytest

from load_tests.chaos_chart import timeline
from load_tests.chaos_faults import Recovery
from load_tests.chaos_load import Pace
from load_tests.chaos_plan import COMPONENTS, OTHERS, SIGNALS, Events, plan_events, plan_faults
from sightlog.errors import ContractError
from sightlog.events import ImageUploaded, parse_event


def test_thirty_faults_break_every_component_at_least_four_times_with_every_signal() -> None:
    for seed in range(20):
        faults = plan_faults(30, seed)
        assert len(faults) == 30
        counted = Counter(fault.component for fault in faults)
        assert all(counted[name] >= 4 for name in COMPONENTS)
        assert all(counted[name] >= 1 for name in OTHERS)
        for name in COMPONENTS:
            assert {fault.signal for fault in faults if fault.component == name} == set(SIGNALS)


def test_a_few_faults_are_to_different_components() -> None:
    faults = plan_faults(4, 7)
    assert len({fault.component for fault in faults}) == 4


def test_the_same_seed_makes_the_same_plan_and_another_seed_another() -> None:
    assert plan_faults(12, 3) == plan_faults(12, 3) != plan_faults(12, 4)
    assert plan_events(300, 3, 0.1) == plan_events(300, 3, 0.1) != plan_events(300, 4, 0.1)


def test_exactly_the_wanted_share_of_events_is_poison_and_the_rest_changes_images_that_were_uploaded() -> None:
    events = plan_events(1000, 5, 0.05)
    assert Counter(one.action for one in events)["poison"] == 50
    assert {one.action for one in events} == {"upload", "again", "update", "delete", "poison"}
    uploaded: set[int] = set()
    for one in events:
        if one.action == "upload":
            assert one.image not in uploaded
            uploaded.add(one.image)
        elif one.action != "poison":
            assert one.image in uploaded


def test_events_that_are_not_poison_can_be_read_and_repeated_uploads_have_few_objects() -> None:
    made = Events("t", 1)
    for planned in plan_events(200, 1, 0.2):
        record = made.record(planned)
        if planned.action == "poison":
            assert record.broken
            continue
        event = parse_event(record.value, [(name, _bytes(value)) for name, value in record.headers])
        assert event.image_id(record.key.encode()) == f"t-{planned.image}"


def test_every_kind_of_poison_is_refused_by_the_contract_or_is_no_picture() -> None:
    made = Events("t", 1)
    refused = 0
    for planned in plan_events(200, 1, 1.0):
        record = made.record(planned)
        try:
            event = parse_event(record.value, [(name, _bytes(value)) for name, value in record.headers])
        except ContractError:
            refused += 1
        else:
            assert isinstance(event, ImageUploaded)
            assert len(event.data or b"") < 100
    assert 0 < refused < 200


def test_the_load_lasts_until_the_last_fault_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    pace = Pace(5, None, expected_s=10.0)
    left = 200
    for _ in range(5):
        over = clock[0] + 400.0  # forty times as long as guessed
        while clock[0] < over:
            gap = pace.gap_s(left)
            if gap is None:
                clock[0] = over
                break
            clock[0] += gap
            left -= 1
            assert left > 0
        pace.passed()
    assert 0 < left < 100
    assert pace.over
    assert pace.gap_s(left) == pytest.approx(1 / 40)


def test_some_events_are_kept_for_every_fault_that_is_still_to_come() -> None:
    pace = Pace(5, None, expected_s=10.0)
    assert pace.gap_s(17) is not None
    assert pace.gap_s(16) is None
    pace.passed()
    assert pace.gap_s(16) is not None


def test_a_fixed_rate_is_kept() -> None:
    assert Pace(5, 20.0, expected_s=10.0).gap_s(1000) == pytest.approx(0.05)


def test_the_timeline_shows_each_fault_and_marks_one_that_was_not_recovered_from() -> None:
    faults: list[dict[str, Any]] = [
        {"component": "kafka", "signal": "SIGKILL", "at": 3.0, "recovery_s": 9.5, "recovered": True},
        {"component": "triton", "signal": "SIGSTOP", "at": 20.0, "recovery_s": 120.0, "recovered": False},
    ]
    drawn = timeline([1.0, 1.5, 30.0], [Recovery(process="1", after_cont_s=None, **one) for one in faults])
    assert drawn.startswith("<svg")
    assert "SIGKILL at 3 s, well again after 9.5 s" in drawn
    assert drawn.count("#d00") == 1


def _bytes(value: str | bytes | None) -> bytes:
    return value.encode() if isinstance(value, str) else value or b""
