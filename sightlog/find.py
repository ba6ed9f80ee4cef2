"""`sightlog search`: ask the search agent over topics and show what it found."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

from sightlog.client import Client
from sightlog.filters import SearchFilters
from sightlog.search import MAX_IMAGE, MAX_TEXT, Hit, SearchReply, SearchRequest
from sightlog.settings import ClientSettings

_DAY = click.DateTime(["%Y-%m-%d", "%Y-%m-%dT%H:%M:%S"])


@click.command()
@click.argument("text", required=False)
@click.option(
    "--image", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="Find what looks like this picture."
)
@click.option("--objects", is_flag=True, help="Find objects in images rather than images.")
@click.option("-k", default=10, show_default=True, type=click.IntRange(1, 1000), help="How many hits at most.")
@click.option("--class", "classes", multiple=True, help="Only with a detected object of this class; may be repeated.")
@click.option("--min-confidence", type=click.FloatRange(0, 1), help="Of that object's detection.")
@click.option("--tag", "tags", multiple=True, help="Only with this tag; may be repeated, all must be there.")
@click.option("--captured-after", type=_DAY, help="Taken at or after this time, UTC.")
@click.option("--captured-before", type=_DAY, help="Taken before this time, UTC.")
@click.option("--uploaded-after", type=_DAY, help="Uploaded at or after this time, UTC.")
@click.option("--uploaded-before", type=_DAY, help="Uploaded before this time, UTC.")
@click.option("--timeout", type=click.FloatRange(min=0.05), help="Seconds to wait for the reply.")
@click.option("--json", "as_json", is_flag=True, help="Print the reply as JSON.")
def search(
    text: str | None,
    image: Path | None,
    objects: bool,
    k: int,
    classes: tuple[str, ...],
    min_confidence: float | None,
    tags: tuple[str, ...],
    captured_after: datetime | None,
    captured_before: datetime | None,
    uploaded_after: datetime | None,
    uploaded_before: datetime | None,
    timeout: float | None,
    as_json: bool,
) -> None:
    """Find images, or objects in images, that match TEXT or look like a picture.

    \b
    Examples:
      sightlog search "a striped red circle"
      sightlog search "something dotted" --objects --class star --min-confidence 0.8
      sightlog search "a blue ring above a green cross" --tag demo --json
      sightlog search --image holiday.jpg -k 5
    """
    request = SearchRequest(
        text=text if image is None else None,
        image=_picture(image, text),
        target="objects" if objects else "images",
        k=k,
        filters=SearchFilters(
            classes=classes,
            min_confidence=min_confidence,
            tags=tags,
            captured_from=captured_after,
            captured_to=captured_before,
            uploaded_from=uploaded_after,
            uploaded_to=uploaded_before,
        ),
    )
    with Client(ClientSettings.load()) as client:
        reply = client.search(request, timeout=timeout)
    if as_json:
        click.echo(reply.model_dump_json(by_alias=True, exclude_none=True))
    else:
        show(reply, objects=objects, console=Console())


def _picture(image: Path | None, text: str | None) -> bytes | None:
    """The bytes of the query picture; complains unless there is exactly one question, of a size that can be asked."""
    if (image is None) == (text is None):
        raise click.UsageError("give TEXT or --image FILE, one of them")
    if image is None:
        if not (text or "").strip() or len(text or "") > MAX_TEXT:
            raise click.BadParameter(f"give 1 to {MAX_TEXT} characters, not only blanks", param_hint="TEXT")
        return None
    size = image.stat().st_size
    if not 0 < size <= MAX_IMAGE:
        limit = f"{MAX_IMAGE // 1024**2} MiB"
        raise click.BadParameter(f"{size} bytes; a query picture has 1 byte to {limit}", param_hint="--image")
    return image.read_bytes()


def show(reply: SearchReply, *, objects: bool, console: Console) -> None:
    """Print hits as a table."""
    if not reply.hits:
        console.print("nothing found; fewer filters, or sightlog status to see what is indexed")
        return
    table = Table(box=None, header_style="bold")
    table.add_column("score", justify="right")
    table.add_column("cosine", justify="right")
    table.add_column("object" if objects else "image", no_wrap=True)
    if objects:
        table.add_column("class")
        table.add_column("conf.", justify="right")
        table.add_column("box (pixels)", no_wrap=True)
    table.add_column("source", no_wrap=True)
    table.add_column("shows", no_wrap=True)
    for hit in reply.hits:
        table.add_row(*_cells(hit, objects))
    console.print(table)
    console.print(f"{len(reply.hits)} hits in {reply.took_ms:.1f} ms", style="dim")


def _cells(hit: Hit, objects: bool) -> list[str]:
    cells = [f"{hit.score:.3f}", f"{hit.cosine:+.3f}", hit.object_id if objects and hit.object_id else hit.image_id]
    if objects and hit.box is not None:
        cells += [hit.class_name or "", f"{hit.confidence or 0:.2f}", " ".join(f"{edge:.0f}" for edge in hit.box)]
    return [*cells, hit.source, str(hit.metadata.get("shows", ""))]
