"""`sightlog ingest`: publish files or generated scenes, and follow them until they can be found."""

from __future__ import annotations

import hashlib
import itertools
import os
import sys
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path

import click
import orjson
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from sightlog.client import Client
from sightlog.dead_letters import DeadLetter
from sightlog.events import ImageUploaded, new_upload
from sightlog.follow import Follower
from sightlog.pictures import CONTENT_TYPES, as_file_name
from sightlog.published import Published
from sightlog.settings import ClientSettings

_SHOWN_FAILURES = 10


@dataclass(frozen=True)
class Upload:
    """An event that is ready to be published, and the image id it goes under."""

    image_id: str
    event: ImageUploaded


@dataclass
class Summary:
    """What became of a run."""

    published: int = 0
    indexed: int = 0
    objects: int = 0
    #: image id -> why
    failed: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0

    def to_json(self) -> str:
        rate = self.published / self.seconds if self.seconds else 0.0
        return orjson.dumps({**self.__dict__, "images_per_s": round(rate, 1)}).decode()


@click.command()
@click.argument("paths", nargs=-1, type=click.Path(exists=True, path_type=Path))
@click.option("--demo", type=click.IntRange(min=1), metavar="N", help="Publish N generated scenes.")
@click.option("--seed", default=0, show_default=True, help="Of the generated scenes; the same seed, the same scenes.")
@click.option("--tag", "tags", multiple=True, help="Put this tag on every image; may be repeated.")
@click.option("--wait", is_flag=True, help="Return when the last image can be found.")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON summary as the last line.")
def ingest(
    paths: tuple[Path, ...], demo: int | None, seed: int, tags: tuple[str, ...], wait: bool, as_json: bool
) -> None:
    """Publish images: files, folders with everything in them, or generated scenes.

    A file's image id is the SHA-256 of its bytes, so ingesting it again changes nothing. Files above the inline limit
    (SIGHTLOG_INLINE_LIMIT) are put into the uploads folder of the data folder, and the event says where.

    \b
    Examples:
      sightlog ingest ~/Pictures --tag holiday --wait
      sightlog ingest --demo 200 --wait
    """
    if not paths and demo is None:
        raise click.UsageError("name files or folders, or use --demo N")
    settings = ClientSettings.load()
    files = [file for path in paths for file in _image_files(path)]
    if paths and not files:
        raise click.UsageError(f"no {', '.join(sorted(CONTENT_TYPES))} files in {', '.join(map(str, paths))}")
    console = Console(stderr=True)
    unreadable: dict[str, str] = {}
    uploads = itertools.chain(_readable(files, settings, tags, unreadable), scene_uploads(demo or 0, seed, tags))
    summary = publish(settings, uploads, len(files) + (demo or 0), console=console, wait=wait, failed=unreadable)
    if as_json:
        click.echo(summary.to_json())
    if summary.failed:
        sys.exit(1)


def publish(
    settings: ClientSettings,
    uploads: Iterable[Upload],
    total: int,
    *,
    console: Console,
    wait: bool,
    failed: dict[str, str] | None = None,
) -> Summary:
    """Publish uploads with a progress bar; with `wait`, return when the last one can be found.

    `failed` collects what could not be read while `uploads` is gone through.
    """
    summary = Summary(failed={} if failed is None else failed)
    started = time.monotonic()
    with _progress(console) as progress, Client(settings) as client, Follower(settings) as follower:
        image_ids = _publish(client, uploads, summary, progress, progress.add_task("published", total=total, rate=""))
        if wait:
            _follow(follower, image_ids, summary, progress)
    summary.seconds = round(time.monotonic() - started, 3)
    _report(console, summary, wait)
    return summary


def _progress(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description:>10}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
        console=console,
    )


def _publish(
    client: Client, uploads: Iterable[Upload], summary: Summary, progress: Progress, task: TaskID
) -> list[str]:
    """Publish everything; the ids of the images that the broker has."""
    started = time.monotonic()
    pending: list[tuple[str, Future[Published]]] = []
    for upload in uploads:
        pending.append((upload.image_id, client.publish_async(upload.event, key=upload.image_id)))
        rate = len(pending) / max(time.monotonic() - started, 1e-3)
        progress.update(task, advance=1, rate=f"{rate:,.0f}/s")
    client.flush()
    image_ids = []
    for image_id, outcome in pending:
        if (error := outcome.exception()) is None:
            image_ids.append(image_id)
        else:
            summary.failed[image_id] = str(error)
    summary.published = len(image_ids)
    return image_ids


def _follow(follower: Follower, image_ids: list[str], summary: Summary, progress: Progress) -> None:
    distinct = set(image_ids)
    task = progress.add_task("searchable", total=len(distinct), rate="")
    started = time.monotonic()
    for done, (image_id, outcome) in enumerate(follower.outcomes(distinct), 1):
        if isinstance(outcome, DeadLetter):
            summary.failed[image_id] = f"{outcome.code}: {outcome.message}"
        else:
            summary.indexed += 1
            summary.objects += outcome.objects
        progress.update(task, advance=1, rate=f"{done / max(time.monotonic() - started, 1e-3):,.0f}/s")


def _report(console: Console, summary: Summary, waited: bool) -> None:
    if waited:
        console.print(
            f"{summary.indexed} images with {summary.objects} objects can be found, after {summary.seconds:.1f} s"
        )
    else:
        console.print(f"{summary.published} images published in {summary.seconds:.1f} s")
    for image_id, reason in list(summary.failed.items())[:_SHOWN_FAILURES]:
        console.print(f"  failed {image_id}: {reason}", markup=False, highlight=False)
    if len(summary.failed) > _SHOWN_FAILURES:
        console.print(f"  ... and {len(summary.failed) - _SHOWN_FAILURES} more")


def _readable(
    files: list[Path], settings: ClientSettings, tags: tuple[str, ...], unreadable: dict[str, str]
) -> Iterator[Upload]:
    for file in files:
        try:
            yield file_upload(file, settings, tags)
        except OSError as error:
            unreadable[str(file)] = f"cannot be read: {error.strerror}"


def _image_files(path: Path) -> Iterator[Path]:
    if path.is_file():
        yield path
        return
    for folder, folders, names in os.walk(path):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (Path(folder, name) for name in sorted(names) if Path(name).suffix.lower() in CONTENT_TYPES)


def file_upload(path: Path, settings: ClientSettings, tags: tuple[str, ...] = ()) -> Upload:
    """The event of a file: inline up to the limit, else stored in the uploads folder and referred to."""
    data = path.read_bytes()
    digest = hashlib.sha256(data).hexdigest()
    event = new_upload(
        data,
        source="/sightlog/ingest",
        filename=as_file_name(path.name),
        tags=tags,
        sha256=digest,
        datacontenttype=CONTENT_TYPES.get(path.suffix.lower()),
    )
    if len(data) > settings.inline_limit:
        stored = settings.uploads_dir / f"{digest}{path.suffix.lower()}"
        if not stored.exists():
            stored.parent.mkdir(parents=True, exist_ok=True)
            partial = stored.with_name(f"{stored.name}.{os.getpid()}.part")
            partial.write_bytes(data)
            partial.replace(stored)
        event = event.model_copy(update={"data": None, "dataref": stored.as_uri()})
    return Upload(digest, event)


def scene_uploads(count: int, seed: int, tags: tuple[str, ...] = ()) -> Iterator[Upload]:
    """Generated scenes as JPEG, with what is in them as metadata; the same seed gives the same scenes."""
    import numpy as np

    from models.photos import STREAM_SIZES, take_photo

    for number in range(count):
        photo = take_photo(np.random.default_rng([seed, number]), *STREAM_SIZES[number % len(STREAM_SIZES)])
        image_id = f"scene-{seed}-{number}"
        event = new_upload(
            photo.jpeg,
            source="/sightlog/demo",
            filename=f"{image_id}.jpg",
            tags=("demo", *tags),
            datacontenttype="image/jpeg",
            metadata={"shows": ", ".join(thing.caption for thing in photo.objects)},
        )
        yield Upload(image_id, event)
