"""The state file is always whole, and its lock tells whether a supervisor lives."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from sightlog.atomic_write import write_atomically
from stack.local import OWNED, LocalStack
from stack.ports import Endpoints
from stack.settings import StackSettings
from stack.state import ComponentState, StackState, StateFile
from tests.unit.stack_fence import raise_fence

ROOT = Path(__file__).parents[2]
HOLD_LOCK = """
import sys, time
from pathlib import Path
from stack.state import StateFile
with StateFile(Path(sys.argv[1])).owned() as mine:
    print(mine, flush=True)
    time.sleep(60)
"""


@pytest.fixture(autouse=True)
def only_dummies_can_be_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    raise_fence(monkeypatch)


def state(**changes: object) -> StackState:
    return StackState.model_validate({"stack_id": "abc", "status": "ready", **changes})


def test_what_was_written_is_read_back(tmp_path: Path) -> None:
    file = StateFile(tmp_path)
    written = state(components={"kafka": ComponentState(status="ready", pid=7, started=1.5, restarts=2)})
    file.write(written)
    assert file.read() == written


@pytest.mark.parametrize("content", ["", "{", '{"stack_id": 1}', '{"status": "dancing", "stack_id": "x"}'])
def test_an_unreadable_state_is_no_state(tmp_path: Path, content: str) -> None:
    file = StateFile(tmp_path)
    file.path.write_text(content)
    assert file.read() is None


def test_a_write_that_fails_leaves_the_old_text(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    write_atomically(path, "old")
    with pytest.raises(UnicodeEncodeError):
        write_atomically(path, "half \ud800")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_the_lock_is_free_again_when_its_holder_is_killed(tmp_path: Path) -> None:
    file = StateFile(tmp_path)
    assert not file.supervised()
    command = [sys.executable, "-c", HOLD_LOCK, str(tmp_path)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"True\n"
        assert file.supervised()
        with file.owned() as mine:
            assert not mine
        holder.kill()
    assert not file.supervised()


def test_a_state_without_a_supervisor_is_reported_as_stopped(tmp_path: Path) -> None:
    ready = state(port_offset=40, pid=os.getpid(), components={"kafka": ComponentState(status="ready", pid=7)})
    StateFile(tmp_path).write(ready)
    seen = LocalStack(tmp_path).status()
    assert (seen.status, seen.pid, seen.components["kafka"].status) == ("stopped", None, "stopped")
    assert seen.components["kafka"].pid is None
    assert "sightlog up" in seen.detail


def test_wipe_removes_only_what_the_stack_wrote(tmp_path: Path) -> None:
    for name in OWNED:
        if "." in name:
            (tmp_path / name).touch()
        else:
            (tmp_path / name).mkdir()
            (tmp_path / name / "content").touch()
    (tmp_path / "notes.txt").touch()
    LocalStack(tmp_path).down(wipe=True)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_wipe_does_not_follow_a_link_out_of_the_folder(tmp_path: Path) -> None:
    elsewhere, data = tmp_path / "elsewhere", tmp_path / "data"
    elsewhere.mkdir()
    (elsewhere / "precious").touch()
    data.mkdir()
    (data / "kafka").symlink_to(elsewhere)
    LocalStack(data).down(wipe=True)
    assert (elsewhere / "precious").exists()
    assert not data.exists()


def test_down_of_a_folder_that_is_not_there_makes_none(tmp_path: Path) -> None:
    assert LocalStack(tmp_path / "absent").down() is False
    assert not (tmp_path / "absent").exists()


def test_the_offset_moves_every_endpoint() -> None:
    here = Endpoints.of(StackSettings(port_offset=0)).model_dump()
    there = Endpoints.of(StackSettings(port_offset=7)).model_dump()
    ports = [[int(address.rpartition(":")[2]) for address in where.values()] for where in (here, there)]
    assert ports[0] == [19092, 18001, 18000, 18002, 19200]
    assert ports[1] == [port + 7 for port in ports[0]]


def test_a_stack_is_known_by_its_folder(tmp_path: Path) -> None:
    one = LocalStack(tmp_path / "one").settings.stack_id
    assert one == LocalStack(tmp_path / "two" / ".." / "one").settings.stack_id
    assert one != LocalStack(tmp_path / "two").settings.stack_id
