"""Fetches the bytes of an image event, from the event itself or from where it points."""

from __future__ import annotations

import asyncio
import hashlib
import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO
from urllib.parse import unquote, urlsplit

from agents.delivery.failures import ItemBroken
from sightlog.events import ImageUploaded


@dataclass(frozen=True)
class ImageFile:
    """A file and its SHA-256 in hex."""

    data: bytes
    sha256: str


class SourceReader:
    """Reads inline bytes and `file:` references into allowed folders."""

    def __init__(self, allowed_folders: Sequence[Path], max_bytes: int) -> None:
        self._folders = tuple(folder.resolve() for folder in allowed_folders)
        self._max_bytes = max_bytes

    async def read(self, event: ImageUploaded) -> ImageFile:
        """The file of the event.

        Raises ItemBroken: `too_large`, `unsupported_source`, `source_not_allowed`, `source_missing`,
        `sha256_mismatch`.
        """
        if event.dataref is not None:
            data = await self._read_file(event.dataref)
        else:
            data = event.data or b""
            self._check_size(len(data))
        file = ImageFile(data, hashlib.sha256(data).hexdigest())
        if event.sha256 is not None and file.sha256 != event.sha256:
            raise ItemBroken("sha256_mismatch", f"the bytes do not have the announced sha256 {event.sha256}")
        return file

    async def _read_file(self, uri: str) -> bytes:
        try:
            with self._opened(uri) as file:
                size = os.fstat(file.fileno()).st_size
                self._check_size(size)
                data = _in_memory(file, size)
                if data is None:
                    data = await asyncio.to_thread(file.read, size + 1)
        except OSError as error:
            raise ItemBroken("source_missing", f"{uri} cannot be read: {error.strerror}") from None
        self._check_size(len(data))
        return data

    def _opened(self, uri: str) -> BinaryIO:
        """The regular file behind a reference. Raises ItemBroken, OSError."""
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
            file = open(path, "rb", opener=_without_waiting)  # noqa: SIM115
        except (ValueError, RuntimeError) as error:  # RuntimeError: a loop of links, before Python 3.13
            raise ItemBroken("source_missing", f"{uri} cannot be read: {error}") from None
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            file.close()
            raise ItemBroken("source_missing", f"{uri} is not a file")
        return file

    def _check_size(self, size: int) -> None:
        if size > self._max_bytes:
            raise ItemBroken("too_large", f"the file has more than {self._max_bytes} bytes")


def _in_memory(file: BinaryIO, size: int) -> bytes | None:
    """The whole file if the system has it in memory, as it has fresh uploads; None where a read would wait.

    For those a change of threads would cost more than the reading.
    """
    buffer = bytearray(size + 1)
    try:
        read = os.preadv(file.fileno(), [buffer], 0, os.RWF_NOWAIT)
    except (AttributeError, OSError):  # not Linux; not there; a file system that cannot tell
        return None
    return bytes(memoryview(buffer)[:read]) if read == size else None


def _without_waiting(path: str, flags: int) -> int:
    """Opening a pipe would wait for a writer."""
    return os.open(path, flags | os.O_NONBLOCK)
