"""`sightlog search`: ask the search agent over topics and show what it found."""

from __future__ import annotations

import os
import sys
import tempfile
import webbrowser
from collections.abc import Generator
from contextlib import closing
from pathlib import Path
from typing import Any, cast

import click
from rich.console import Console

from sightlog import thumbnails
from sightlog.client import Client
from sightlog.contact_sheet import contact_sheet
from sightlog.find_question import question_options, request_from
from sightlog.find_table import show
from sightlog.hit_pictures import can_read
from sightlog.say import say
from sightlog.search import SearchReply, SearchRequest
from sightlog.settings import ClientSettings

__all__ = ["search", "show"]


@click.command()
@question_options
@click.option("--facets", is_flag=True, help="Count classes, tags and months over what was found.")
@click.option("--page", "one_by_one", is_flag=True, help="Go through page after page; stops when you do.")
@click.option("--all", "all_pages", is_flag=True, help="All pages, to 10,000 hits.")
@click.option("--timeout", type=click.FloatRange(min=0.05), help="Seconds to wait for each reply.")
@click.option("--json", "as_json", is_flag=True, help="Print each reply as a line of JSON.")
@click.option("--vectors", is_flag=True, help="With --json: the vectors too, as base64 of float32.")
@click.option("--open", "opens", is_flag=True, help="Show a contact sheet, with boxes, in the browser.")
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), help="Write the contact sheet to this file.")
@click.option(
    "--pictures",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Folder with the files whose place is not known, by their names.",
)
@click.option(
    "--thumbnails",
    "wanted",
    type=click.Choice(["auto", "kitty", "iterm2", "blocks", "off"]),
    default="auto",
    show_default=True,
    help="How the table shows pictures that are on this machine.",
)
def search(
    facets: bool,
    one_by_one: bool,
    all_pages: bool,
    timeout: float | None,
    as_json: bool,
    vectors: bool,
    opens: bool,
    out: Path | None,
    pictures: Path | None,
    wanted: str,
    **question: Any,
) -> None:
    """Find images, or objects in images, that match TEXT, look like a picture, or both.

    A weight may follow --plus, --minus, --like and --unlike: --minus "people^0.5". Conditions on metadata compare
    numbers as numbers and everything else as text.

    \b
    Examples:
      sightlog search "a striped red circle"
      sightlog search "something dotted" --objects --class star --min-confidence 0.8
      sightlog search "a beach" --minus people --after 2026-01-01 --meta site=north --meta 'temperature>=20'
      sightlog search --like holiday.jpg --plus "at night^0.5" -k 5
      sightlog search --like-object image-1#0 --objects --group --min-relevance 0.5
      sightlog search "a ring" --words garden --tag demo --not-tag draft --facets
      sightlog search "a red circle" --class circle --class star --all-classes --page
      sightlog search "a red circle" --objects --all --json
      sightlog search "a red circle" --objects --open --pictures ~/Pictures
    """
    paging = one_by_one or all_pages
    request = request_from(question, pages=paging, facets=facets, vectors=vectors)
    console = Console()
    way = _way(wanted, console)
    asks_on = one_by_one and not all_pages
    shown: list[SearchReply] = []
    with Client(ClientSettings.load()) as client, closing(_replies(client, request, timeout, paging)) as replies:
        for reply in replies:
            shown.append(reply)
            if as_json:
                click.echo(reply.model_dump_json(by_alias=True, exclude_none=True))
            else:
                show(reply, objects=request.target == "objects", console=console, way=way, folder=pictures)
            if asks_on and (reply.cursor is None or not _goes_on()):
                break
    if opens or out is not None:
        _write_sheet(shown, _title(request), pictures, out, opens)


def _replies(
    client: Client, request: SearchRequest, timeout: float | None, paging: bool
) -> Generator[SearchReply, None, None]:
    if paging:
        yield from client.pages(request, timeout=timeout)
    else:
        yield client.search(request, timeout=timeout)


def _goes_on() -> bool:
    """Whether a person wants the next page; nobody there: no."""
    try:
        return click.confirm("next page?", default=True, err=True)
    except click.Abort:
        return False


def _way(wanted: str, console: Console) -> thumbnails.Way | None:
    if wanted == "off" or not can_read():
        return None
    return thumbnails.way(console, os.environ) if wanted == "auto" else cast(thumbnails.Way, wanted)


def _title(request: SearchRequest) -> str:
    """What was asked, in a line."""
    parts: list[str] = []
    for part in request.parts:
        asked = part.text or part.image_id or part.object_id or "a picture"
        weight = "" if abs(part.weight) == 1 else f"^{abs(part.weight):g}"
        parts.append(f"{'- ' if part.weight < 0 else '+ ' if parts else ''}{asked}{weight}")
    if request.lexical is not None:
        parts.append(f"words: {request.lexical}")
    return " ".join(parts)


def _write_sheet(replies: list[SearchReply], title: str, folder: Path | None, out: Path | None, opens: bool) -> None:
    page = contact_sheet(replies, title, folder).encode()
    if out is None:
        descriptor, name = tempfile.mkstemp(prefix="sightlog-", suffix=".html")
        with os.fdopen(descriptor, "wb") as file:
            file.write(page)
        out = Path(name)
    else:
        out.write_bytes(page)
    say(Console(file=sys.stderr), f"contact sheet: {out}")
    if opens and not webbrowser.open(out.absolute().as_uri()):
        say(Console(file=sys.stderr), "there is no browser here; open that file with one")
