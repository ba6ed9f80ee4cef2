"""The root of the command line. Each room of the house owns its commands; they are imported when called."""

from __future__ import annotations

import sys

import click

from sightlog.errors import SightlogError
from sightlog.lazy_group import Lazy, LazyGroup

_COMMANDS = {
    "up": Lazy("stack.cli:up", "Start Kafka, Triton, OpenSearch and the workers on this machine.", "stack"),
    "down": Lazy("stack.cli:down", "Stop what `up` started.", "stack"),
    "status": Lazy("stack.cli:status", "Show what runs, since when, and where.", "stack"),
    "logs": Lazy("stack.cli:logs", "Show the log of a component.", "stack"),
    "demo": Lazy("stack.demo:demo", "Start everything, ingest pictures, find them again.", "stack"),
    "ingest": Lazy("sightlog.ingest:ingest", "Publish images and follow them until they can be found.", "scenes"),
    "search": Lazy("sightlog.find:search", "Find images or objects with words, pictures and filters.", ""),
    "dlq": Lazy("sightlog.dlq:dlq", "List, show, replay and drop dead letters.", ""),
    "models": Lazy("models.cli:models", "Export, import, look at and choose models.", "stack"),
    "worker": Lazy("agents.cli:worker", "Run one worker in the foreground.", "agents"),
    "config": Lazy("agents.cli:config", "Print every setting and the variable that sets it.", "agents"),
    "audit": Lazy("agents.audit.cli:audit", "Account for every event, name what is wrong, repair it.", "agents"),
    "chaos": Lazy("load_tests.chaos_cli:chaos", "Break a stack under load, then audit it.", "stack"),
    "bench": Lazy("load_tests.cli:bench", "Measure quality, streaming, search, models, parity, the GPU.", "stack"),
    "tune": Lazy("load_tests.tune:tune", "Find the settings that serve most on this machine.", "stack"),
}


@click.group(cls=LazyGroup, table=_COMMANDS, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="sightlog")
def cli() -> None:
    """Visual search over event streams: images in through Kafka, found again with words seconds later.

    \b
    Examples:
      sightlog up                                      start everything on this machine
      sightlog ingest --demo 100 --wait                publish generated scenes
      sightlog search "a striped red circle" --objects
      sightlog down
    """


def main() -> None:
    """Entry point; errors of ours are one clear line, not a traceback."""
    try:
        cli()
    except SightlogError as error:
        click.echo(f"sightlog: {error}", err=True)
        sys.exit(1)
