"""Fetches the bytes of an image event, from the event itself or from where it points."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import unquote, urlsplit

from agents.delivery.failures import ItemBroken
from sightlog.events import ImageUploaded


class SourceReader:
    """Reads inline bytes and `file:` references into allowed folders."""

    def __init__(self, allowed_folders: Sequence[Path], max_bytes: int) -> None:
        self._folders = tuple(folder.resolve() for folder in allowed_folders)
        self._max_bytes = max_bytes

    async def read(self, event: ImageUploaded) -> bytes:
        """The file of the event.

        Raises ItemBroken: `too_large`, `unsupported_source`, `source_not_allowed`, `source_missing`,
        `sha256_mismatch`.
        """
        if event.dataref is not None:
            data = await asyncio.to_thread(self._read_file, event.dataref)
        else:
            data = event.data or b""
            self._check_size(len(data))
        if event.sha256 is not None and hashlib.sha256(data).hexdigest() != event.sha256:
            raise ItemBroken("sha256_mismatch", f"the bytes do not have the announced sha256 {event.sha256}")
        return data

    def _read_file(self, uri: str) -> bytes:
        try:
            parts = urlsplit(uri)
        except ValueError as error:
            raise ItemBroken("unsupported_source", f"{uri}: not a URI: {error}") from None
        if parts.scheme != "file" or parts.netloc not in ("", "localhost"):
            raise ItemBroken("unsupported_source", f"{uri}: only file: references on this machine can be read")
        try:
            # Links and .. are resolved before the check, so that neither leads out of an allowed folder.
            path = Path(unquote(parts.path)).resolve()
            if not any(path.is_relative_to(folder) for folder in self._folders):
                allowed = ", ".join(map(str, self._folders)) or "none"
                raise ItemBroken("source_not_allowed", f"{uri} is outside the allowed folders ({allowed})")
            if path.exists() and not path.is_file():
                raise ItemBroken("source_missing", f"{uri} is not a file")
            with path.open("rb") as file:
                data = file.read(self._max_bytes + 1)
        except (OSError, ValueError, RuntimeError) as error:  # RuntimeError: a loop of links, before Python 3.13
            reason = error.strerror if isinstance(error, OSError) else error
            raise ItemBroken("source_missing", f"{uri} cannot be read: {reason}") from None
        self._check_size(len(data))
        return data

    def _check_size(self, size: int) -> None:
        if size > self._max_bytes:
            raise ItemBroken("too_large", f"the file has more than {self._max_bytes} bytes")
