"""Shows on a terminal what `up` does: a bar for downloads, a live list of what is awaited; plain lines elsewhere."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from types import TracebackType

from rich.console import Console
from rich.live import Live
from rich.progress import BarColumn, DownloadColumn, Progress, TaskID, TextColumn, TransferSpeedColumn
from rich.table import Table
from typing_extensions import Self

READY = "ready"
#: Percent between two lines about a download where there is no terminal.
PLAIN_STEP = 25


class ConsoleProgress:
    """A `stack.component.Progress` for a person; use it as a context manager."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._lock = threading.Lock()
        self._begun = time.monotonic()
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        self._live: Live | None = None
        self._plain_percent = 0
        self._last: dict[str, str] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end_bar()
        if self._live is not None:
            self._live.stop()
            self._live = None

    def message(self, text: str) -> None:
        """Print a line."""
        self._console.print(text, highlight=False, markup=False)

    def downloaded(self, name: str, size: int, done: int, total: int) -> None:
        """Move the bar."""
        with self._lock:
            if not self._console.is_terminal:
                self._downloaded_plain(done, total)
                return
            if self._bar is None:
                columns = (TextColumn("downloading"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
                self._bar = Progress(*columns, TextColumn("{task.description}"), console=self._console)
                self._task = self._bar.add_task("", total=total)
                self._bar.start()
            assert self._task is not None
            self._bar.update(self._task, completed=done, description=name)

    def waiting(self, states: Mapping[str, str]) -> None:
        """Redraw the list."""
        self._end_bar()
        if self._console.is_terminal:
            if self._live is None:
                self._live = Live(console=self._console, refresh_per_second=8, transient=True)
                self._live.start()
            self._live.update(self._table(states))
        for name, text in states.items():
            if text == READY != self._last.get(name):
                self.message(f"{name} is ready ({time.monotonic() - self._begun:.1f} s)")
        newly = [name for name, text in states.items() if text != READY and name not in self._last]
        if newly and not self._console.is_terminal:
            self.message(f"waiting for {', '.join(newly)}")
        self._last = dict(states)

    def _downloaded_plain(self, done: int, total: int) -> None:
        percent = 100 * done // max(total, 1)
        if percent >= self._plain_percent:
            self.message(f"downloading: {done >> 20} of {total >> 20} MB")
            self._plain_percent = percent - percent % PLAIN_STEP + PLAIN_STEP

    def _table(self, states: Mapping[str, str]) -> Table:
        table = Table.grid(padding=(0, 2))
        for name, text in states.items():
            if text != READY:
                table.add_row("waiting for", name, text)
        return table

    def _end_bar(self) -> None:
        with self._lock:
            if self._bar is not None:
                self._bar.stop()
                self._bar = None
