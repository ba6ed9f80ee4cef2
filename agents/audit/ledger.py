"""A temporary SQLite database of what the log says and what the indices hold, and the joins that compare the two.

On disk, so that memory stays the same whatever the size of the log; without journal, because nobody reads it after a
crash.
"""

from __future__ import annotations

import sqlite3
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

from agents.audit.statements import JUDGE, SCHEMA


class Kind(IntEnum):
    """What an event wants."""

    UNREADABLE = 0
    UPLOADED = 1
    UPDATED = 2
    DELETED = 3


class Busy(IntEnum):
    """How far an event is."""

    SETTLED = 0
    IN_FLIGHT = 1
    #: Published after the audit took the end of the log: not judged, but its effect may be in the indices already.
    LATER = 2


class EventRow(NamedTuple):
    """One event by its origin; `version` grows with the log."""

    partition: int
    offset: int
    image_id: str | None
    version: int
    kind: int
    tags: bool
    metadata: bool
    busy: int


class LetterRow(NamedTuple):
    """A dead letter at `partition` and `offset` of its topic; `version` where its origin is an embedded document."""

    id: str
    partition: int
    offset: int
    origin_topic: str
    origin_partition: int
    origin_offset: int
    image_id: str | None
    version: int | None
    code: str


class ImageRow(NamedTuple):
    """An image document; versions are those of its registers. `place`: 0 is the index that is written to."""

    id: str
    place: int
    image_id: str | None
    content: int
    tags: int
    metadata: int
    deleted: int
    objects: int
    visible: bool
    seq_no: int
    primary_term: int


class ObjectRow(NamedTuple):
    """An object document; `revision` is the sum of the registers that its image had when it was written."""

    id: str
    place: int
    image_id: str | None
    ordinal: int
    content: int
    revision: int
    seq_no: int
    primary_term: int


@dataclass(frozen=True)
class Finding:
    """Something that is not as the log says; `kind` is `missing`, `stale`, `orphans` or `duplicates`."""

    kind: str
    document: str | None
    image_id: str | None
    why: str


#: Rows of one insert: large enough to be fast, small enough to stay out of sight in memory.
_ROWS = 5_000
_CACHE_KIB = 65_536


class Ledger:
    """Load it from several sides, then `judge`, then ask.

    `folder`: where the temporary file lies; the system's folder for such files when None.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="sightlog-audit-", dir=folder)
        self._database = sqlite3.connect(Path(self._folder.name) / "ledger.sqlite", isolation_level=None)
        for pragma in ("journal_mode=OFF", "synchronous=OFF", "temp_store=FILE", f"cache_size=-{_CACHE_KIB}"):
            self._database.execute(f"PRAGMA {pragma}")
        self._database.executescript(SCHEMA)
        self._database.execute("BEGIN")

    def __enter__(self) -> Ledger:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._database.close()
        self._folder.cleanup()

    def add(self, table: str, rows: Iterable[Sequence[Any]], columns: int) -> None:
        """Insert rows of `columns` values; a row that is there already stays."""
        marks = ",".join("?" * columns)
        self._database.executemany(f"INSERT OR IGNORE INTO {table} VALUES ({marks})", rows)

    def events(self, rows: Iterable[EventRow]) -> None:
        """Records of the log that are there for the first time."""
        self.add("events", rows, len(EventRow._fields))

    def returns(self, rows: Iterable[EventRow]) -> None:
        """Records that came back: each row tells its origin, and how far this record is."""
        self.add("returns", rows, len(EventRow._fields))

    def waiting(self, origins: Iterable[tuple[int, int]]) -> None:
        """Events in a retry tier, by partition and offset of their origin."""
        self.add("waiting", origins, 2)

    def carried(self, documents: Iterable[tuple[str, int]]) -> None:
        """Image id and version of what is on its way to the indices."""
        self.add("carried", documents, 2)

    def letters(self, rows: Iterable[LetterRow]) -> None:
        """Dead letters."""
        self.add("letters", rows, len(LetterRow._fields))

    def closed(self, rows: Iterable[tuple[str, int, int, str]]) -> None:
        """Closed dead letters: id, partition and offset of the newest letter that is meant, action."""
        self.add("closed", rows, 4)

    def images(self, rows: Iterable[ImageRow]) -> None:
        """Image documents."""
        self.add("images", rows, len(ImageRow._fields))

    def objects(self, rows: Iterable[ObjectRow]) -> None:
        """Object documents."""
        self.add("objects", rows, len(ObjectRow._fields))

    def judge(self, images_topic: str, known_from: int) -> None:
        """Compare. Events of versions below `known_from` may have left the log."""
        self._database.execute("COMMIT")
        self._database.execute("INSERT INTO parameters VALUES (?, ?)", (images_topic, known_from))
        self._database.executescript(JUDGE)

    def outcomes(self) -> dict[str, int]:
        """How many events ended how; later ones are not among them."""
        return dict(self._database.execute("SELECT outcome, count(*) FROM judged GROUP BY outcome"))

    def rows(self, query: str) -> list[tuple[Any, ...]]:
        """Whatever else one wants to know of a judged ledger."""
        return self._database.execute(query).fetchall()

    def counts(self) -> dict[str, int]:
        """How many findings of each kind, documents, and documents from before the log."""
        counted = dict(self._database.execute("SELECT kind, count(*) FROM findings GROUP BY kind"))
        for name, query in {
            "image_documents": "SELECT count(*) FROM images",
            "object_documents": "SELECT count(*) FROM objects",
            "beyond_log": "SELECT count(*) FROM beyond_log",
            "dead_letters": "SELECT count(*) FROM letters",
        }.items():
            counted[name] = self._database.execute(query).fetchone()[0]
        return counted

    def findings(self, kind: str | None = None, limit: int = -1) -> Iterator[Finding]:
        """The findings, by kind and image."""
        query = (
            "SELECT kind, document, image_id, why FROM findings WHERE ? IN (kind, '') ORDER BY kind, image_id, document"
        )
        yield from (Finding(*row) for row in self._database.execute(f"{query} LIMIT ?", (kind or "", limit)))

    def lost_events(self) -> Iterator[tuple[int, int]]:
        """Partition and offset of the origins whose effect is not, or not whole, in the indices; in log order."""
        yield from self._database.execute(
            "SELECT partition, offset FROM judged WHERE outcome IN ('missing', 'stale') ORDER BY partition, offset"
        )

    def surplus_images(self) -> Iterator[tuple[str, int, int, int]]:
        """Id, place, sequence number and primary term of image documents that should not be there."""
        yield from self._database.execute("SELECT id, place, seq_no, primary_term FROM surplus_images")

    def surplus_objects(self) -> Iterator[tuple[str, int, int, int]]:
        """The same of object documents."""
        yield from self._database.execute("SELECT id, place, seq_no, primary_term FROM surplus_objects")


def batches(rows: Iterable[Any]) -> Iterator[list[Any]]:
    """Cut rows into lists for one insert each."""
    batch: list[Any] = []
    for row in rows:
        batch.append(row)
        if len(batch) == _ROWS:
            yield batch
            batch = []
    if batch:
        yield batch
