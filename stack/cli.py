"""`sightlog up`, `down`, `status` and `logs`."""

from __future__ import annotations

import contextlib
import re
import time
from collections import deque
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import click
import orjson
from pydantic import ValidationError
from pydantic_settings import SettingsError
from rich.console import Console
from rich.table import Table

from sightlog.errors import ConfigurationError
from sightlog.say import say
from stack.console import ConsoleProgress
from stack.errors import NotRunningError
from stack.local import LocalStack
from stack.ports import Endpoints
from stack.settings import StackSettings
from stack.state import StackState

#: Pause between two looks at a log that is followed.
FOLLOW_S = 0.2

_data_dir = click.option(
    "--data-dir",
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder of the stack's state. [default: $SIGHTLOG_DATA_DIR, else ./.sightlog]",
)


def load_settings(**given: Any) -> StackSettings:
    """Settings from the environment and the command line. Raises ConfigurationError with the setting's name."""
    try:
        return StackSettings(**{name: value for name, value in given.items() if value is not None})
    except ValidationError as error:
        first = error.errors()[0]
        name = "_".join(map(str, first["loc"][:1])).upper()
        raise ConfigurationError(f"SIGHTLOG_{name}={first.get('input')!r}: {first['msg']}") from None
    except SettingsError as error:
        # A list that is not JSON; the error tells the field only in its text.
        field = re.search(r'field "(\w+)"', str(error))
        variable = f"SIGHTLOG_{field[1].upper()}" if field else str(error)
        raise ConfigurationError(f'{variable} must be JSON, e.g. ["kafka", "opensearch"]') from None


def _local(**given: Any) -> LocalStack:
    return LocalStack(settings=load_settings(**given))


@click.command()
@_data_dir
@click.option("--port-offset", type=click.IntRange(0, 40000), help="Added to every port.")
@click.option("--no-workers", is_flag=True, help="Only Kafka, Triton and OpenSearch.")
def up(data_dir: Path | None, port_offset: int | None, no_workers: bool) -> None:
    """Start Kafka, Triton, OpenSearch and the workers on this machine.

    Returns when all of them are ready; they go on running until `sightlog down`. What is missing is downloaded once
    and kept in the cache folder.

    \b
    Examples:
      sightlog up
      sightlog up --no-workers
      sightlog up --data-dir /tmp/second --port-offset 100
    """
    local = _local(data_dir=data_dir, port_offset=port_offset, workers=False if no_workers else None)
    console = Console()
    begun = time.monotonic()
    with ConsoleProgress(console) as progress:
        outcome = local.up(progress)
    state = local.status()
    if outcome == "already running":
        say(console, f"the stack in {local.data_dir} is already running ({state.status}, pid {state.pid})")
        if port_offset is not None and port_offset != state.port_offset:
            say(console, f"it keeps its port offset {state.port_offset}: `sightlog down` first to change it")
    else:
        say(console, f"the stack is ready after {time.monotonic() - begun:.1f} s")
    _print_endpoints(console, local.endpoints())
    say(console, "next: `sightlog status`, `sightlog logs kafka`, `sightlog down`")


@click.command()
@_data_dir
@click.option("--wipe", is_flag=True, help="Also delete what the stack stored: topics, indices, logs.")
def down(data_dir: Path | None, wipe: bool) -> None:
    """Stop what `up` started: workers, Triton, OpenSearch, Kafka, in this order.

    Also ends what a killed stack left behind. Downloads stay in the cache folder.

    \b
    Examples:
      sightlog down
      sightlog down --wipe
    """
    local = _local(data_dir=data_dir)
    console = Console()
    with console.status("stopping") if console.is_terminal else contextlib.nullcontext():
        ran = local.down(wipe=wipe)
    say(console, f"the stack in {local.data_dir} {'is stopped' if ran else 'was not running'}")
    if wipe:
        say(console, "its topics, indices and logs are deleted")


@click.command()
@_data_dir
@click.option("--json", "as_json", is_flag=True, help="Print the state as one JSON document.")
def status(data_dir: Path | None, as_json: bool) -> None:
    """Show what runs, since when, and where.

    Exits 0 when everything is ready, 1 otherwise.

    \b
    Examples:
      sightlog status
      sightlog status --json
    """
    local = _local(data_dir=data_dir)
    state, endpoints = local.status(), local.endpoints()
    if as_json:
        document = {"data_dir": str(local.data_dir), "endpoints": endpoints.model_dump(), **state.model_dump()}
        click.echo(orjson.dumps(document, option=orjson.OPT_INDENT_2))
    else:
        _print_status(Console(), local, state)
        if state.pid is not None:
            _print_endpoints(Console(), endpoints)
    raise SystemExit(0 if state.status == "ready" else 1)


@click.command()
@click.argument("name")
@_data_dir
@click.option("-f", "--follow", is_flag=True, help="Go on printing what is added.")
@click.option("-n", "--lines", type=click.IntRange(0), default=50, show_default=True, help="Lines to begin with.")
def logs(name: str, data_dir: Path | None, follow: bool, lines: int) -> None:
    """Show the log of a component: kafka, opensearch, triton, worker-vision, ..., supervisor.

    \b
    Examples:
      sightlog logs triton
      sightlog logs worker-vision -f
      sightlog logs opensearch -n 200
    """
    local = _local(data_dir=data_dir)
    path = local.log_path(name)
    if not path.exists():
        known = ", ".join(sorted(log.stem for log in path.parent.glob("*.log"))) or "none yet"
        raise NotRunningError(f"no log of {name!r} in {path.parent}; there are: {known}")
    for line in _lines(path, lines, follow):
        click.echo(line, nl=False)


def _lines(path: Path, count: int, follow: bool) -> Iterator[str]:
    with path.open(encoding="utf-8", errors="replace") as log:
        yield from deque(log, maxlen=count)
        while follow:
            if line := log.readline():
                yield line
            else:
                time.sleep(FOLLOW_S)


def _print_status(console: Console, local: LocalStack, state: StackState) -> None:
    say(console, f"{state.status}: stack in {local.data_dir}" + (f" ({state.detail})" if state.detail else ""))
    if state.java:
        say(console, state.java)
    if not state.components:
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("component", "status", "pid", "since", "restarts", "ports", ""):
        table.add_column(column, no_wrap=column != "")
    for name, one in state.components.items():
        since = datetime.fromtimestamp(one.started).strftime("%d %b %H:%M:%S") if one.started else ""
        ports = " ".join(str(port) for port in one.ports.values())
        table.add_row(name, one.status, str(one.pid or ""), since, str(one.restarts), ports, one.detail)
    console.print(table)


def _print_endpoints(console: Console, endpoints: Endpoints) -> None:
    width = max(map(len, Endpoints.model_fields))
    for name, address in endpoints.model_dump().items():
        say(console, f"  {name:<{width}}  {address}")
