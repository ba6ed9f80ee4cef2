"""Publishes photos for a benchmark and collects what became of them."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from rich.console import Console
from rich.progress import Progress

from models.photos import Photo
from sightlog.client import Client
from sightlog.dead_letters import DeadLetter
from sightlog.documents import IndexReceipt
from sightlog.errors import SightlogError
from sightlog.events import ImageUploaded, new_upload
from sightlog.follow import Follower
from sightlog.settings import ClientSettings


@dataclass
class Published:
    """Receipts in the order of publishing, and the seconds from the first event to the last receipt."""

    receipts: dict[str, IndexReceipt] = field(default_factory=dict)
    seconds: float = 0.0


def distinct(jpeg: bytes) -> bytes:
    """The same picture in a file that nobody has seen: of bytes that were seen before, no inference is made again."""
    comment = uuid.uuid4().bytes
    return jpeg[:2] + b"\xff\xfe" + (len(comment) + 2).to_bytes(2, "big") + comment + jpeg[2:]


def inline(photo: Photo, tag: str) -> ImageUploaded:
    """The event that carries a photo's bytes."""
    return new_upload(distinct(photo.jpeg), source="/sightlog/bench", tags=(tag,))


def publish_and_wait(
    console: Console,
    settings: ClientSettings,
    photos: Sequence[Photo],
    tag: str,
    rate: float | None = None,
    *,
    upload: Callable[[Photo, str], ImageUploaded] = inline,
) -> Published:
    """Publish the photos, at `rate` images/s or as fast as the broker takes them, and wait until all are searchable.

    `upload`: from a photo and the tag to its event. Raises SightlogError when one of them becomes a dead letter.
    """
    image_ids = [f"{tag}-{number}" for number in range(len(photos))]
    published = Published(dict.fromkeys(image_ids))  # type: ignore[arg-type]  # each gets its receipt below
    with Client(settings) as client, Follower(settings) as follower, Progress(console=console) as progress:
        started = time.monotonic()
        for number, (image_id, photo) in enumerate(zip(image_ids, photos, strict=True)):
            if rate is not None:
                time.sleep(max(0.0, started + number / rate - time.monotonic()))
            client.publish_async(upload(photo, tag), key=image_id)
        client.flush()
        task = progress.add_task("searchable", total=len(image_ids))
        for image_id, outcome in follower.outcomes(image_ids):
            if isinstance(outcome, DeadLetter):
                raise SightlogError(f"{image_id} became a dead letter: {outcome.code}: {outcome.message}")
            published.receipts[image_id] = outcome
            progress.advance(task)
        published.seconds = time.monotonic() - started
    return published
