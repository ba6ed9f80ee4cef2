"""`sightlog dlq`: look at dead letters, send their events through the stream again, or close them for good."""

from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Literal

import click
import orjson
from pydantic import TypeAdapter, ValidationError
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from sightlog.causes import CAUSES
from sightlog.dead_letters import DeadLetter
from sightlog.fields import UtcTime, now
from sightlog.letter_box import Entry, LetterBox, NotReplayable, Told
from sightlog.say import say
from sightlog.settings import ClientSettings

_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}
_MOMENT: TypeAdapter[datetime] = TypeAdapter(UtcTime)
_SHOWN_FAILURES = 10


class _Since(click.ParamType):
    """A time, or how long ago."""

    name = "TIME"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> datetime:
        if isinstance(value, datetime):
            return value
        ago = re.fullmatch(r"(\d{1,6})([smhd])", value)
        if ago:
            return now() - timedelta(**{_UNITS[ago[2]]: int(ago[1])})
        try:
            return _MOMENT.validate_strings(value)
        except ValidationError:
            self.fail(f"{value}: neither a time as 2026-01-31T12:00:00Z nor how long ago as 30m, 2h, 7d", param, ctx)


def _selection(command: Callable[..., None]) -> Callable[..., None]:
    """The options that choose letters; those given must all hold."""
    for option in (
        click.option("--json", "as_json", is_flag=True, help="JSON instead of text."),
        click.option("--since", type=_Since(), help="Failed since then: 30m, 2h, 7d ago, or a time in ISO 8601."),
        click.option("--cause", "causes", multiple=True, metavar="CODE", help="With this code; may be repeated."),
        click.option("--id", "ids", multiple=True, metavar="ID", help="This letter; may be repeated."),
    ):
        command = option(command)
    return command


def _closing(command: Callable[..., None]) -> Callable[..., None]:
    """The options of what closes letters."""
    command = click.option("--dry-run", is_flag=True, help="Only tell which.")(command)
    return _selection(click.option("--all", "everything", is_flag=True, help="All open letters.")(command))


def _chosen(entries: list[Entry], ids: tuple[str, ...], causes: tuple[str, ...], since: datetime | None) -> list[Entry]:
    return [
        one
        for one in entries
        if (not ids or one.id in ids)
        and (not causes or one.code in causes)
        and (since is None or one.failed_at >= since)
    ]


@click.group()
def dlq() -> None:
    """Dead letters: events that could not be processed, why, and a way back.

    An id is the place of the event in the log: topic/partition/offset. docs/failures.md tells what each cause means.

    \b
    Examples:
      sightlog dlq ls --since 2h
      sightlog dlq show images/3/41
      sightlog dlq replay --cause source_missing --dry-run
      sightlog dlq replay --all
      sightlog dlq drop --cause undecodable --since 7d
    """


@dlq.command()
@_selection
def ls(ids: tuple[str, ...], causes: tuple[str, ...], since: datetime | None, as_json: bool) -> None:
    """List the open letters.

    \b
    Examples:
      sightlog dlq ls
      sightlog dlq ls --cause undecodable --cause unsupported_format --json
    """
    console = Console()
    with _box() as (box, progress):
        entries = _chosen(box.open_letters(progress("reading")), ids, causes, since)
        unreadable = box.unreadable
    if as_json:
        for one in entries:
            click.echo(orjson.dumps({**one.__dict__, "place": str(one.place)}).decode())
        return
    if unreadable:
        say(console, f"{unreadable} records of the topic are no letters that this version can read")
    if not entries:
        say(console, "no open dead letters")
        return
    table = Table("id", "cause", "by", "image", "attempts", "last failed", "bytes")
    for one in entries:
        failed = one.failed_at.strftime("%Y-%m-%d %H:%M:%S")
        image = _plain(one.image_id or "")[:40]
        table.add_row(one.id, one.code, one.stage, image, str(one.attempts), failed, f"{one.value_bytes:,}")
    console.print(table, markup=False)
    counts = Counter(one.code for one in entries).most_common()
    say(console, f"{len(entries)} open: " + ", ".join(f"{count} {code}" for code, count in counts))


@dlq.command()
@click.argument("letter_id", metavar="ID")
@click.option("--json", "as_json", is_flag=True, help="The letter as it is in the topic.")
@click.option("--save", type=click.Path(dir_okay=False, path_type=Path), help="Write the event's value to this file.")
def show(letter_id: str, as_json: bool, save: Path | None) -> None:
    """Show a letter: cause, attempts, where the event is, and its headers.

    \b
    Examples:
      sightlog dlq show images/3/41
      sightlog dlq show images/3/41 --save broken.jpg
    """
    with _box() as (box, progress):
        found = box.letter(letter_id, progress("reading"))
        if found is None:
            raise click.ClickException(f"no letter {letter_id}; sightlog dlq ls shows those that are open")
        letter = found[1]
        is_open = any(one.id == letter_id for one in box.open_letters()) if not as_json else True
        if save is not None:
            save.write_bytes(box.original(letter).value or b"")
    if as_json:
        click.echo(letter.to_kafka().decode())
        return
    _print_letter(Console(), letter, is_open)


def _print_letter(console: Console, letter: DeadLetter, is_open: bool) -> None:
    cause = CAUSES.get(letter.code)
    grid = Table.grid(padding=(0, 2))
    in_letter = "in the letter" if letter.value is not None else f"at {letter.origin}"
    rows = {
        "letter": f"{letter.id} ({'open' if is_open else 'closed'})",
        "cause": f"{letter.code}: {letter.message}",
        "meaning": cause.meaning if cause else "unknown to this version",
        "remedy": cause.remedy if cause else "",
        "given up by": letter.stage,
        "image": letter.image_id or "unknown",
        "published": letter.origin.timestamp.isoformat(),
        "attempts": f"{letter.attempts}, first {letter.first_failed_at or letter.failed_at}, last {letter.failed_at}",
        "value": f"{letter.value_bytes:,} bytes, {in_letter}",
        "file": letter.dataref or "inline",
        "key": repr(letter.key),
    }
    for name, text in rows.items():
        grid.add_row(name, _plain(text))
    console.print(grid, markup=False, highlight=False)
    hops = Table("when", "by", "what", "record", "message")
    for hop in letter.hops:
        record = f"{hop.topic}/{hop.partition}/{hop.offset}"
        hops.add_row(hop.at.strftime("%Y-%m-%d %H:%M:%S"), hop.stage, hop.code, record, _plain(hop.message))
    console.print(hops, markup=False)
    headers = Table("header", "value")
    for name, content in letter.headers:
        headers.add_row(_plain(name), _plain(content.decode("utf-8", "backslashreplace")[:200]))
    console.print(headers, markup=False)


def _plain(text: str) -> str:
    """Strangers wrote it: nothing in it may steer the terminal."""
    return "".join(sign if sign.isprintable() else repr(sign)[1:-1] for sign in text)


@dlq.command()
@_closing
def replay(**chosen: Any) -> None:
    """Send events through the front door again, and close their letters.

    An event keeps the version of its first publication: it never overwrites what is newer, and doing this twice changes
    nothing. One that fails again comes back as a letter with a longer history.

    \b
    Examples:
      sightlog dlq replay --cause source_missing --since 1d
      sightlog dlq replay --id images/3/41 --id images/0/7
      sightlog dlq replay --all --dry-run
    """
    _close("replayed", **chosen)


@dlq.command()
@_closing
def drop(**chosen: Any) -> None:
    """Close letters for good; they stay in the topic as long as it keeps them.

    \b
    Examples:
      sightlog dlq drop --cause undecodable
      sightlog dlq drop --id search.requests/1/90 --dry-run
    """
    _close("dropped", **chosen)


def _close(
    action: Literal["replayed", "dropped"],
    *,
    ids: tuple[str, ...],
    causes: tuple[str, ...],
    since: datetime | None,
    as_json: bool,
    everything: bool,
    dry_run: bool,
) -> None:
    if not (ids or causes or since or everything):
        raise click.UsageError("choose letters with --id, --cause or --since, or take --all")
    failed: dict[str, str] = {}
    done: list[str] = []
    with _box() as (box, progress):
        chosen = _chosen(box.open_letters(progress("reading")), ids, causes, since)
        unknown = sorted(set(ids) - {one.id for one in chosen})
        if dry_run:
            done = [one.id for one in chosen]
        elif action == "dropped":
            for one in chosen:
                box.close_letter(one.place, one.id, action, _outcome(one.id, done, failed))
            box.flush()
        else:
            for place, letter in box.letters({one.place for one in chosen}, progress("replaying")):
                try:
                    box.replay(place, letter, _outcome(letter.id, done, failed))
                except NotReplayable as error:
                    failed[letter.id] = str(error)
            box.flush()
    if as_json:
        click.echo(orjson.dumps({action: done, "failed": failed, "unknown": unknown, "dry_run": dry_run}).decode())
    else:
        _report(Console(), f"would be {action}" if dry_run else action, done, failed, unknown)
    if failed or unknown:
        sys.exit(1)


def _outcome(letter_id: str, done: list[str], failed: dict[str, str]) -> Callable[[str | None], None]:
    def told(error: str | None) -> None:
        if error is None:
            done.append(letter_id)
        else:
            failed[letter_id] = error

    return told


def _report(console: Console, what: str, done: list[str], failed: dict[str, str], unknown: list[str]) -> None:
    for one in unknown:
        say(console, f"  no open letter {one}")
    for one, why in list(failed.items())[:_SHOWN_FAILURES]:
        say(console, f"  failed {one}: {why}")
    if len(failed) > _SHOWN_FAILURES:
        say(console, f"  ... and {len(failed) - _SHOWN_FAILURES} more")
    say(console, f"{len(done)} {what}" + (f", {len(failed)} failed" if failed else ""))


@contextmanager
def _box() -> Iterator[tuple[LetterBox, Callable[[str], Told]]]:
    """The letters, and what makes a progress bar."""
    columns = (TextColumn("{task.description:>10}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with (
        Progress(*columns, console=Console(stderr=True), transient=True) as bars,
        LetterBox(ClientSettings.load()) as box,
    ):

        def bar(name: str) -> Told:
            task = bars.add_task(name, total=None)
            return lambda done, total: bars.update(task, completed=done, total=total)

        yield box, bar
