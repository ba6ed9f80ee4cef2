"""What every JVM child of the stack gets, so that it stays small and tells when it runs out of memory."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

#: One line an event on standard output, which the supervisor keeps in the component's log.
LOG4J2_CONSOLE = """\
status = error
appender.console.type = Console
appender.console.name = console
appender.console.layout.type = PatternLayout
appender.console.layout.pattern = {pattern}
rootLogger.level = info
rootLogger.appenderRef.console.ref = console
"""


def jvm_environment(home: Path) -> Mapping[str, str]:
    """A complete environment: JVM options of the caller's shell must not reach the children."""
    return {"PATH": "/usr/local/bin:/usr/bin:/bin", "HOME": str(home), "LANG": "C.UTF-8"}


def heap_options(minimum_mb: int, maximum_mb: int) -> tuple[str, ...]:
    """Heap limits; a JVM out of memory ends, so that it is restarted instead of limping on."""
    return f"-Xms{minimum_mb}m", f"-Xmx{maximum_mb}m", "-XX:+ExitOnOutOfMemoryError"
