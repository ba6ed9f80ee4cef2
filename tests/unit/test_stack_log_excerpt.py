"""What a person is shown of the log of a process that did not start."""

from __future__ import annotations

from pathlib import Path

from stack.log_excerpt import CAUSES, TAIL_LINES, log_excerpt

#: The shape of OpenSearch's log when a plugin refuses to start; the trace below the message is cut off at its end.
REFUSED = """\
[INFO ][o.o.n.Node] version[3.4.0]
[WARN ][o.o.m.o.OsProbe] exception retrieving total physical memory
java.lang.reflect.InvocationTargetException: null
\tat org.opensearch.monitor.os.OsProbe.getTotalPhysicalMemorySize(OsProbe.java:130)
Caused by: java.lang.SecurityException: Denied OPEN (read) access to file: /sys/fs/cgroup/own/memory.max
\tat org.opensearch.knn.index.KNNSettings.getClusterCbLimit(KNNSettings.java:800)
uncaught exception in thread [main]
java.lang.IllegalArgumentException: Failed to parse value [50%]
Likely root cause: java.lang.IllegalStateException: Physical memory size could not be determined
"""
TRACE = (
    "\n".join(f"\tat org.opensearch.node.Node.<init>(Node.java:{line})" for line in range(40)) + "\n\t<<<truncated>>>\n"
)


def _excerpt(folder: Path, text: str) -> list[str]:
    path = folder / "opensearch.log"
    path.write_text(text)
    return log_excerpt(path).splitlines()


def test_the_message_of_an_exception_is_shown_although_its_trace_fills_the_end(tmp_path: Path) -> None:
    said = _excerpt(tmp_path, REFUSED + TRACE)

    assert said[:6] == [
        f"The last exceptions in {tmp_path / 'opensearch.log'}:",
        "  | java.lang.reflect.InvocationTargetException: null",
        "  | java.lang.SecurityException: Denied OPEN (read) access to file: /sys/fs/cgroup/own/memory.max",
        "  | java.lang.IllegalArgumentException: Failed to parse value [50%]",
        "  | java.lang.IllegalStateException: Physical memory size could not be determined",
        "Its end:",
    ]
    assert len(said) == 6 + TAIL_LINES
    assert said[-1].endswith("<<<truncated>>>")


def test_a_process_that_failed_again_and_again_tells_each_exception_once(tmp_path: Path) -> None:
    assert _excerpt(tmp_path, (REFUSED + TRACE) * 3)[:6] == _excerpt(tmp_path, REFUSED + TRACE)[:6]


def test_of_many_exceptions_the_last_are_shown(tmp_path: Path) -> None:
    said = _excerpt(tmp_path, "".join(f"ValueError: {number}\n" for number in range(50)) + TRACE)

    assert said[1 : CAUSES + 1] == [f"  | ValueError: {number}" for number in range(50 - CAUSES, 50)]


def test_a_log_without_exceptions_shows_its_end_alone(tmp_path: Path) -> None:
    said = _excerpt(
        tmp_path, "".join(f"line {number} goes on after java.io.IOException: once\n" for number in range(50))
    )

    assert said[0] == f"The end of {tmp_path / 'opensearch.log'}:"
    assert said[1:] == [
        f"  | line {number} goes on after java.io.IOException: once" for number in range(50 - TAIL_LINES, 50)
    ]


def test_an_exception_in_the_end_itself_is_not_told_twice(tmp_path: Path) -> None:
    assert sum("ValueError" in line for line in _excerpt(tmp_path, "starting\nValueError: no port\n")) == 1


def test_a_process_that_wrote_no_log_is_told_without_one(tmp_path: Path) -> None:
    assert log_excerpt(tmp_path / "none.log") == f"The end of {tmp_path / 'none.log'}:\n"
