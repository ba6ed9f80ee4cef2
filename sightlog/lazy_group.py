"""A group of commands that are imported when they are called, since each room of the house brings its own libraries."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import click


class Lazy(NamedTuple):
    """Where a command is, one line of help, and the extra that brings its libraries (empty: none needed)."""

    target: str  #: module:attribute
    text: str
    extra: str


class LazyGroup(click.Group):
    """`table`: the commands by name."""

    def __init__(self, *args: Any, table: Mapping[str, Lazy], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._table = table

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except ModuleNotFoundError as error:
            raise self._missing(ctx, ctx.invoked_subcommand or "", error) from None

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self._table)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self._table:
            return None
        module, attribute = self._table[cmd_name].target.split(":")
        try:
            command = getattr(importlib.import_module(module), attribute)
        except ModuleNotFoundError as error:
            raise self._missing(ctx, cmd_name, error) from None
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, command.text) for name, command in self._table.items()])

    def _missing(self, ctx: click.Context, name: str, error: ModuleNotFoundError) -> click.ClickException:
        extra = self._table[name].extra if name in self._table else ""
        wanted = f"sightlog[{extra}]" if extra else "sightlog"
        groups: list[str] = []
        within: click.Context | None = ctx
        while within is not None and within.parent is not None:
            groups.insert(0, within.info_name or "")
            within = within.parent
        path = " ".join(["sightlog", *groups, name])
        return click.ClickException(f"`{path}` needs {error.name}: pip install '{wanted}'")
