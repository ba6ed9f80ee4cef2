"""The root of the command line. Each room of the house owns its commands; they are imported when called."""

from __future__ import annotations

import importlib
import sys
from typing import Any

import click

from sightlog.errors import SightlogError

#: command -> (module:attribute, one line of help, extra that brings its libraries)
_COMMANDS = {
    "up": ("stack.cli:up", "Start Kafka, Triton, OpenSearch and the workers on this machine.", "stack"),
    "down": ("stack.cli:down", "Stop what `up` started.", "stack"),
    "status": ("stack.cli:status", "Show what runs, since when, and where.", "stack"),
    "logs": ("stack.cli:logs", "Show the log of a component.", "stack"),
    "demo": ("stack.demo:demo", "Start everything, ingest pictures, find them again.", "stack"),
    "ingest": ("sightlog.ingest:ingest", "Publish images and follow them until they can be found.", "scenes"),
    "search": ("sightlog.find:search", "Find images or objects with words.", ""),
    "worker": ("agents.cli:worker", "Run one worker in the foreground.", "agents"),
    "config": ("agents.cli:config", "Print every setting and the variable that sets it.", "agents"),
    "bench": ("load_tests.cli:bench", "Measure quality, streaming or search.", "stack"),
}


class _LazyCommands(click.Group):
    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except ModuleNotFoundError as error:
            raise _missing(ctx.invoked_subcommand or "", error) from None

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        target = _COMMANDS[cmd_name][0]
        module, attribute = target.split(":")
        try:
            command = getattr(importlib.import_module(module), attribute)
        except ModuleNotFoundError as error:
            raise _missing(cmd_name, error) from None
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_target, text, _extra) in _COMMANDS.items()])


def _missing(command: str, error: ModuleNotFoundError) -> click.ClickException:
    extra = _COMMANDS[command][2]
    wanted = f"sightlog[{extra}]" if extra else "sightlog"
    return click.ClickException(f"`sightlog {command}` needs {error.name}: pip install '{wanted}'")


@click.group(cls=_LazyCommands, context_settings={"help_option_names": ["-h", "--help"]})
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
