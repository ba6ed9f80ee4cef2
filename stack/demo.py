"""`sightlog demo`: the whole way once, from an image event to a search reply, on real components."""

from __future__ import annotations

import sys
import time

import click
from rich.console import Console

from sightlog.client import Client
from sightlog.filters import SearchFilters
from sightlog.find import show
from sightlog.ingest import Upload, publish, scene_uploads
from sightlog.search import SearchReply, SearchRequest
from sightlog.settings import ClientSettings
from stack.cli import load_settings
from stack.console import ConsoleProgress
from stack.local import LocalStack

_TAG = "demo"
_SEED = 7
#: A search must show what it was asked for among its first hits.
_WITHIN = 3


@click.command()
@click.option("--once", is_flag=True, help="Unattended: stop everything at the end, exit 1 if a search was wrong.")
@click.option(
    "--images", default=60, show_default=True, type=click.IntRange(min=10), help="Generated scenes to ingest."
)
def demo(once: bool, images: int) -> None:
    """Start the stack, publish generated scenes, and find objects in them with words, over Kafka topics.

    \b
    Examples:
      sightlog demo             leaves everything running, to go on with
      sightlog demo --once      stops what it started; the exit code says whether every search was right
    """
    console = Console()
    local = LocalStack(settings=load_settings())
    started = time.monotonic()
    with ConsoleProgress(console) as progress:
        outcome = local.up(progress)
    console.print(f"[bold]1[/] Kafka, Triton, OpenSearch and three workers are up ({time.monotonic() - started:.0f} s)")
    try:
        wrong = _ingest_and_search(console, images)
    finally:
        if once and outcome == "started":
            local.down()
    if once:
        console.print(f"[bold]4[/] done in {time.monotonic() - started:.0f} s, {wrong} searches were wrong")
        sys.exit(1 if wrong else 0)
    _how_to_go_on(console)


def _ingest_and_search(console: Console, images: int) -> int:
    """Returns how many searches did not find what they must."""
    settings = ClientSettings.load()
    console.print(f"[bold]2[/] publishing {images} generated scenes to topic {settings.topics.images}")
    uploads = list(scene_uploads(images, _SEED, (_TAG,)))
    summary = publish(settings, uploads, images, console=console, wait=True)
    wrong = len(summary.failed)
    console.print(f"[bold]3[/] asking topic {settings.topics.requests}")
    with Client(settings) as client:
        for upload in uploads[:: max(1, images // 6)][:6]:
            caption = str(upload.event.metadata["shows"]).split(", ")[0]
            request = SearchRequest(
                text=f"a photo of a {caption}", target="objects", k=_WITHIN, filters=SearchFilters(tags=(_TAG,))
            )
            reply = client.search(request, timeout=30)
            right = _shows(reply, uploads, caption)
            wrong += not right
            console.print(f"\n[bold]{request.text}[/]  {'[green]found[/]' if right else '[red]NOT FOUND[/]'}")
            show(reply, objects=True, console=console)
    return wrong


def _shows(reply: SearchReply, uploads: list[Upload], caption: str) -> bool:
    truth = {upload.image_id: str(upload.event.metadata["shows"]).split(", ") for upload in uploads}
    return any(caption in truth.get(hit.image_id, ()) for hit in reply.hits)


def _how_to_go_on(console: Console) -> None:
    command = ".venv/bin/sightlog"
    console.print("\n[bold]4[/] everything goes on running; now try")
    for line in (
        f'{command} search "a dotted green star" --objects',
        f"{command} ingest ~/Pictures --wait",
        f"{command} status",
        f"{command} down",
    ):
        console.print(f"    {line}", highlight=False)
