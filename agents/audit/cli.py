"""`sightlog audit`."""

from __future__ import annotations

import asyncio
import sys
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path

import click
import orjson
from rich.console import Console

from agents.audit.run import KINDS, Report, Wishes
from agents.audit.run import audit as run_audit
from agents.settings import AgentSettings
from sightlog.errors import SightlogError
from sightlog.say import say

#: 1 says that something was found.
_COULD_NOT_RUN = 2
_TIME = click.DateTime(["%Y-%m-%d", "%Y-%m-%dT%H:%M:%S", "%Y-%m-%dT%H:%M:%S%z"])


@click.command()
@click.option("--json", "as_json", is_flag=True, help="One JSON object instead of lines.")
@click.option("--repair", is_flag=True, help="Publish lost events once more, delete what no event accounts for.")
@click.option("--since", type=_TIME, help="Judge only events published at or after this time, UTC.")
@click.option("--wait", type=click.FloatRange(min=0), default=0.0, help="Seconds to wait until nothing is in flight.")
@click.option("--list", "listed", type=click.IntRange(0), default=10, show_default=True, help="Name this many a kind.")
@click.option("--names", type=click.Path(dir_okay=False, path_type=Path), help="Write every finding into this file.")
def audit(as_json: bool, repair: bool, since: datetime | None, wait: float, listed: int, names: Path | None) -> None:
    """Account for every event: indexed, superseded, deleted, dead, or in flight.

    Reads the log and both indices, and names each document that is missing, older than the log says, of no event, or
    there twice. Events published while it runs are not judged. Ends with 0 when all is well, 1 when something was
    found, 2 when it could not run.

    \b
    Examples:
      sightlog audit
      sightlog audit --wait 60 --json
      sightlog audit --repair --names findings.jsonl
    """
    since_ms = None
    if since is not None:
        since_ms = round((since if since.tzinfo else since.replace(tzinfo=timezone.utc)).timestamp() * 1000)
    wishes = Wishes(since_ms=since_ms, wait_s=wait, repair=repair, names=names, listed=listed)
    try:
        report = asyncio.run(run_audit(Console(stderr=True), AgentSettings.load(), wishes))
    except SightlogError as error:
        click.echo(f"sightlog: {error}", err=True)
        sys.exit(_COULD_NOT_RUN)
    if as_json:
        click.echo(orjson.dumps({**asdict(report), "clean": report.clean}))
    else:
        _show(Console(), report)
    sys.exit(0 if report.clean else 1)


def _show(console: Console, report: Report) -> None:
    for name in ("events", "indexed", "superseded", "deleted", "dead", "in_flight", "unaccounted"):
        say(console, f"{getattr(report, name):>12}  {name.replace('_', ' ')}")
    say(console, "")
    for kind in KINDS:
        say(console, f"{getattr(report, kind):>12}  {kind}")
        for one in report.names.get(kind, []):
            say(console, f"{'':>14}{one.document or one.image_id or '-'}: {one.why}")
    if report.beyond_log:
        say(console, f"{report.beyond_log:>12}  documents of events that have left the log")
    if report.repaired is not None:
        done = report.repaired
        say(
            console,
            f"repaired: {done.requeued} events published once more, {done.removed} documents deleted, "
            f"{done.gone} events are gone, {done.changed_meanwhile} documents changed meanwhile",
        )
