"""What the log of a process that did not start tells a person: the exceptions in it, and its end."""

from __future__ import annotations

import re
from pathlib import Path

TAIL_LINES = 15
#: A stack trace is often longer than the tail, and its message stands above it.
CAUSES = 6
#: `some.package.NameException: message` of Java or Python at the start of a line, or what Java puts before it.
_CAUSE = re.compile(r"^(?:Caused by: |Likely root cause: |Exception in thread \S+ )?([\w.$]+(?:Error|Exception)\b.*)")


def log_excerpt(path: Path) -> str:
    """The last distinct exceptions above the end of a log, then that end; an absent log is an empty one."""
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []
    tail = lines[-TAIL_LINES:]
    # Each start of a process that failed repeatedly tells the same: a message counts where it came last.
    found = [match[1] for line in reversed(lines[:-TAIL_LINES]) if (match := _CAUSE.match(line))]
    causes = list(reversed(list(dict.fromkeys(found))[:CAUSES]))
    told = f"The last exceptions in {path}:\n{_quoted(causes)}\nIts end:\n" if causes else f"The end of {path}:\n"
    return told + _quoted(tail)


def _quoted(lines: list[str]) -> str:
    return "\n".join(f"  | {line}" for line in lines)
