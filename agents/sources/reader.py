"""Fetches the bytes of an image event, from the event itself or from where it points."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from agents.delivery.failures import ItemBroken, NotYet
from agents.sources.buckets import BUCKET_SCHEMES, BucketSource
from agents.sources.folders import FolderSource
from agents.sources.limits import ReadLimits, shown
from agents.sources.settings import SourceSettings
from agents.sources.web import WebSource
from sightlog.events import ImageUploaded


@dataclass(frozen=True)
class ImageFile:
    """A file and its SHA-256 in hex."""

    data: bytes
    sha256: str


class SourceReader:
    """Reads inline bytes and references: `file:`, `s3:`, `gs:`, `az:`, `https:`; each only where it is allowed to.

    What fails, fails for one event: nothing here raises DependencyDown. Use it as a context, or `close` it.
    """

    def __init__(self, allowed_folders: Sequence[Path], max_bytes: int, settings: SourceSettings | None = None) -> None:
        settings = settings or SourceSettings()
        self._limits = ReadLimits(max_bytes, settings.stall, settings.min_progress)
        self._deadline = settings.deadline
        self._folders = FolderSource(allowed_folders, self._limits)
        self._buckets = BucketSource(settings, self._limits)
        self._web = WebSource(settings, self._limits)

    async def read(self, event: ImageUploaded) -> ImageFile:
        """The file of the event.

        Raises ItemBroken (`too_large`, `unsupported_source`, `source_not_allowed`, `source_forbidden`, `source_gone`,
        `source_refused`, `source_redirects`, `source_encoded`, `sha256_mismatch`) and NotYet (`source_missing`,
        `source_throttled`, `source_timeout`, `source_unreachable`, `source_incomplete`, `source_failed`).
        """
        if event.dataref is not None:
            data = await self.read_reference(event.dataref)
        else:
            data = event.data or b""
            self._limits.check_size(len(data))
        file = ImageFile(data, hashlib.sha256(data).hexdigest())
        if event.sha256 is not None and file.sha256 != event.sha256:
            raise ItemBroken("sha256_mismatch", f"the bytes do not have the announced sha256 {event.sha256}")
        return file

    async def read_reference(self, uri: str) -> bytes:
        """The bytes of the file behind a `dataref`; raises as `read` does."""
        scheme = uri.partition(":")[0]
        if scheme == "file":
            return await self._folders.read(uri)
        if scheme in BUCKET_SCHEMES:
            reading = self._buckets.read(uri)
        elif scheme in ("https", "http"):
            reading = self._web.read(uri)
        else:
            raise ItemBroken("unsupported_source", f"{shown(uri)} is no file:, s3:, gs:, az: or https: reference")
        try:
            return await asyncio.wait_for(reading, self._deadline)
        except asyncio.TimeoutError:
            raise NotYet("source_timeout", f"{shown(uri)} took longer than {self._deadline:g} s") from None

    async def close(self) -> None:
        """Close the connections."""
        await self._web.close()

    async def __aenter__(self) -> SourceReader:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()
