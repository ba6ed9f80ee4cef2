"""Search results on a terminal: a table, with thumbnails where pictures are at hand, and what to think of it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

from sightlog import hit_pictures, thumbnails
from sightlog.limits import as_name
from sightlog.search import GOOD, Hit, SearchReply

if TYPE_CHECKING:
    from PIL.Image import Image

#: Pixels that a thumbnail is made of at most.
_SIDE = 256
_OF_OBJECTS = ("class", "conf.", "box (pixels)")
#: Characters of a name or a place that are shown however narrow the terminal is.
_LEAST_NAME = 8


def show(
    reply: SearchReply,
    *,
    objects: bool,
    console: Console,
    way: thumbnails.Way | None = None,
    folder: Path | None = None,
) -> None:
    """Print hits as a table, and say where they are not good, not calibrated or not complete.

    `way`: how pictures are shown; `folder`: where they are, if references do not say so.
    """
    if reply.hits:
        pictures = [_picture(hit, folder) for hit in reply.hits] if way is not None else []
        if not any(pictures):
            way = None
        _print(_table(reply, objects, way, pictures), way, pictures, console)
    else:
        console.print("nothing found; fewer filters, or sightlog status to see what is indexed")
    for line, style in _remarks(reply):
        console.print(line, style=style, highlight=False)
    for name, counts in reply.facets.items():
        line = "  ".join(f"{as_name(one.value)} {one.count}" for one in counts)
        console.print(Text.assemble((f"{name}  ", "bold"), line))


def _picture(hit: Hit, folder: Path | None) -> Image | None:
    path = hit_pictures.path_of(hit, folder)
    return None if path is None else hit_pictures.picture(path, hit, _SIDE, crop=True)


def _remarks(reply: SearchReply) -> list[tuple[str, str]]:
    remarks = []
    if reply.no_good_match:
        remarks.append((f"nothing better than this: no hit reaches a relevance of {GOOD}", "yellow"))
    if reply.partial:
        remarks.append(("a part of the index did not answer in time: there may be better hits", "yellow"))
    if reply.hits:
        known = "" if _has(reply, "relevance") or not _has(reply, "cosine") else "; not calibrated, scores only order"
        remarks.append((f"{len(reply.hits)} hits in {reply.took_ms:.1f} ms{known}", "dim"))
    return remarks


def _has(reply: SearchReply, field: str) -> bool:
    return any(getattr(hit, field) is not None for hit in reply.hits)


def _table(reply: SearchReply, objects: bool, way: thumbnails.Way | None, pictures: list[Image | None]) -> Table:
    # Rules between rows would make them of different heights for pictures that are drawn over them.
    table = Table(box=None, header_style="bold", pad_edge=False)
    if way is not None:
        table.add_column("", no_wrap=True, min_width=thumbnails.COLUMNS)
    numbers = _numbers(reply)
    names = [*numbers, "object" if objects else "image", *(_OF_OBJECTS if objects else ()), "source", "shows"]
    rows = [[as_name(cell) for cell in _cells(hit, objects, numbers)] for hit in reply.hits]
    for place, name in enumerate(names):
        right = name in numbers or name == "conf."
        longest = max(len(name), *(len(row[place]) for row in rows))
        # On a narrow terminal the names give way, not the numbers.
        least = _LEAST_NAME if name in ("image", "object", "source", "shows") else longest
        table.add_column(name, justify="right" if right else "left", no_wrap=True, min_width=min(least, longest))
    for number, (hit, row) in enumerate(zip(reply.hits, rows, strict=True)):
        weak = hit.relevance is not None and hit.relevance < GOOD
        thumbnail = [] if way is None else [_thumbnail(pictures[number], way)]
        table.add_row(*thumbnail, *map(Text, row), style="dim" if weak else None)
    return table


def _thumbnail(picture: Image | None, way: thumbnails.Way) -> Text:
    return thumbnails.as_blocks(picture) if picture is not None and way == "blocks" else thumbnails.blank()


def _numbers(reply: SearchReply) -> dict[str, str]:
    """Column -> field of what hits are ordered by, as far as there is any of it; a relevance says more than a score."""
    fused = _has(reply, "lexical_score")
    wanted = {"relevance": "relevance", "score": "score", "cosine": "cosine", "words": "lexical_score"}
    shown = {name: field for name, field in wanted.items() if _has(reply, field)}
    if "relevance" in shown and not fused:
        del shown["score"]
    return shown


def _cells(hit: Hit, objects: bool, numbers: dict[str, str]) -> list[str]:
    cells = []
    for name, field in numbers.items():
        value = getattr(hit, field)
        cells.append("" if value is None else f"{value:+.3f}" if name == "cosine" else f"{value:.3f}")
    cells.append(hit.object_id if objects and hit.object_id else hit.image_id)
    if objects:
        box = "" if hit.box is None else " ".join(f"{edge:.0f}" for edge in hit.box)
        cells += [hit.class_name or "", "" if hit.confidence is None else f"{hit.confidence:.2f}", box]
    return [*cells, hit.source, str(hit.metadata.get("shows", ""))]


def _print(table: Table, way: thumbnails.Way | None, pictures: list[Image | None], console: Console) -> None:
    if way is None or way == "blocks":
        console.print(table)
        return
    with console.capture() as captured:
        console.print(table)
    lines = captured.get().splitlines(keepends=True)
    rows = iter(lines[1:])
    console.file.write(lines[0])
    for picture in pictures:
        console.file.writelines(line for _, line in zip(range(thumbnails.ROWS), rows, strict=False))
        if picture is not None:
            console.file.write(thumbnails.drawn(picture, way))
    console.file.flush()
