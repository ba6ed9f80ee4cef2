"""One audit from beginning to end: the log, the indices, the comparison."""

from __future__ import annotations

import time
from dataclasses import dataclass, fields
from pathlib import Path

import orjson
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from agents.audit.indices import IndexReader
from agents.audit.ledger import Ledger
from agents.audit.loading import LogLoader
from agents.audit.log import LogReader, Snapshot
from agents.audit.repair import Repair, Repaired
from agents.index.connection import connect
from agents.settings import AgentSettings
from sightlog.errors import SightlogError

_POLL_S = 0.5


@dataclass(frozen=True)
class Wishes:
    """What an audit is asked for. Times in seconds, `since_ms` since the epoch."""

    since_ms: int | None = None
    wait_s: float = 0.0
    repair: bool = False
    names: Path | None = None
    """A file that every finding is written to, one JSON object a line."""
    listed: int = 0
    """How many findings of each kind the report names."""


@dataclass(frozen=True)
class Named:
    """One finding of the report."""

    document: str | None
    image_id: str | None
    why: str


@dataclass(frozen=True)
class Report:
    """What became of the events, and what is wrong in the indices.

    `events` = `indexed` + `superseded` + `deleted` + `dead` + `in_flight` + `unaccounted`. `missing`, `stale`,
    `orphans` and `duplicates` count documents (and, in `missing`, events that cannot be read and have no dead letter).
    """

    events: int
    indexed: int
    superseded: int
    deleted: int
    dead: int
    in_flight: int
    unaccounted: int
    missing: int
    stale: int
    orphans: int
    duplicates: int
    beyond_log: int
    dead_letters: int
    image_documents: int
    object_documents: int
    seconds: float
    names: dict[str, list[Named]]
    repaired: Repaired | None

    @property
    def clean(self) -> bool:
        """Whether every event is accounted for and no document is wrong."""
        return not (self.unaccounted or self.missing or self.stale or self.orphans or self.duplicates)


KINDS = ("missing", "stale", "orphans", "duplicates")


async def audit(console: Console, settings: AgentSettings, wishes: Wishes | None = None) -> Report:
    """Compare log and indices, and repair if that is wished; progress goes to the console.

    Raises SightlogError when Kafka or OpenSearch do not answer.
    """
    wishes = wishes or Wishes()
    started = time.monotonic()
    reader = LogReader(settings.kafka, settings.topics)
    with Ledger() as ledger, _progress(console) as progress:
        if wishes.wait_s:
            _await_quiet(reader, wishes.wait_s, progress)
        snapshot = reader.snapshot(wishes.since_ms)
        loader = LogLoader(ledger, reader, settings.topics)
        expected = _records(snapshot, settings)
        log = progress.add_task("log", total=expected)
        known_from = loader.load(snapshot, lambda count: progress.advance(log, count))
        progress.update(log, completed=expected)
        async with connect(settings.opensearch) as client:
            indices = IndexReader(client, settings.index)
            read = progress.add_task("indices", total=await indices.count())
            await indices.load(ledger, lambda count: progress.advance(read, count))
            loader.load_later(reader.tail(snapshot))
            compared = progress.add_task("compared", total=1)
            ledger.judge(settings.topics.images, known_from)
            progress.advance(compared)
            if wishes.names is not None:
                _write(ledger, wishes.names)
            repaired = await Repair(settings, ledger, reader, indices).run() if wishes.repair else None
        return _report(ledger, wishes, repaired, time.monotonic() - started)


def _await_quiet(reader: LogReader, patience: float, progress: Progress) -> None:
    """Return when nothing is in flight, or after `patience` seconds."""
    task = progress.add_task("in flight", total=None)
    deadline = time.monotonic() + patience
    quiet = 0
    # Twice: an event may have moved from a retry tier to the front while the first look passed between the two.
    while quiet < 2 and time.monotonic() < deadline:
        lag = reader.snapshot().lag
        quiet = 0 if lag else quiet + 1
        progress.update(task, description=f"in flight: {lag}")
        if quiet < 2:
            time.sleep(_POLL_S)
    progress.remove_task(task)


def _records(snapshot: Snapshot, settings: AgentSettings) -> int:
    topics = settings.topics
    whole = (topics.images, topics.dead, topics.closed)
    return sum(
        span.end - (span.start if topic in whole else span.committed)
        for topic, spans in snapshot.spans.items()
        for span in spans.values()
    )


def _write(ledger: Ledger, path: Path) -> None:
    try:
        with path.open("wb") as file:
            for found in ledger.findings():
                file.write(orjson.dumps({f.name: getattr(found, f.name) for f in fields(found)}) + b"\n")
    except OSError as error:
        raise SightlogError(f"cannot write {path}: {error.strerror}") from None


def _report(ledger: Ledger, wishes: Wishes, repaired: Repaired | None, seconds: float) -> Report:
    outcomes, counts = ledger.outcomes(), ledger.counts()
    events = sum(outcomes.values())
    unaccounted = outcomes.get("missing", 0) + outcomes.get("stale", 0)
    accounted = {name: outcomes.get(name, 0) for name in ("indexed", "superseded", "deleted", "dead", "in_flight")}
    names = {
        kind: [Named(one.document, one.image_id, one.why) for one in ledger.findings(kind, wishes.listed)]
        for kind in KINDS
        if wishes.listed
    }
    wrong = {kind: counts.pop(kind, 0) for kind in KINDS}
    return Report(
        events=events,
        **accounted,
        unaccounted=unaccounted,
        **wrong,
        **counts,
        seconds=round(seconds, 2),
        names=names,
        repaired=repaired,
    )


def _progress(console: Console) -> Progress:
    columns = (TextColumn("{task.description:>12}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    return Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
