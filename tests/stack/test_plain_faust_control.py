"""The same faults lose events of a plain Faust agent and none of ours: a test that finds no loss can see one."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from load_tests.running import free_port_offset
from stack.kafka import group_lag
from stack.local import LocalStack
from stack.settings import StackSettings
from tests.stack.faulty_runs import Run, publish

EVENTS = 3000
#: SIGKILL when so many events are finished.
KILLS = (800, 1800)
#: Seconds without anything new that mean the end: more than a broker needs to notice a killed process. What is not
#: lost is there before, so only a failing test waits as long for the window.
PATIENCE = {"plain": 14.0, "window": 60.0}


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a Kafka of its own."""
    settings = StackSettings(components=("kafka",), workers=False)
    local = LocalStack(tmp_path_factory.mktemp("control"), port_offset=free_port_offset(), settings=settings)
    local.up()
    yield local.endpoints().kafka
    local.down(wipe=True)


def test_faults_lose_events_of_a_plain_agent_and_none_of_the_window(broker: str, tmp_path: Path) -> None:
    topic = f"control-{uuid.uuid4().hex[:8]}"
    events = publish(broker, topic, EVENTS)
    runs = {mode: Run(mode, broker, topic, tmp_path) for mode in ("plain", "window")}
    for run in runs.values():
        run.start()
    for kill_at in KILLS:
        for mode, run in runs.items():
            # A plain agent may stand still, too; a fresh process helps it on.
            reached = run.await_finished(kill_at, patience=PATIENCE[mode])
            assert reached or mode == "plain", run.log
            run.kill()
            run.start()
    complete = {mode: run.await_finished(EVENTS, patience=PATIENCE[mode]) for mode, run in runs.items()}
    for run in runs.values():
        run.end()
    missing = {mode: len(events - set(run.finished)) for mode, run in runs.items()}
    assert complete == {"plain": False, "window": True}, missing
    assert missing["window"] == 0
    # Acknowledged and never done: nobody will see these again.
    lost = missing["plain"] - group_lag(broker, f"{topic}-plain", topic)
    print(f"a plain agent lost {lost} of {EVENTS} events")
    assert lost > 0
