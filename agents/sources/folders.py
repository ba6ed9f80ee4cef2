"""Reads `file:` references below allowed folders."""

from __future__ import annotations

import asyncio
import errno
import os
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO
from urllib.parse import unquote, urlsplit

from agents.delivery.failures import ItemBroken, NotYet
from agents.sources.limits import ReadLimits, shown

#: The reference can never be a file; whatever else the system reports may pass.
_NEVER = frozenset({errno.ENAMETOOLONG, errno.ELOOP, errno.ENOTDIR, errno.EINVAL, errno.EISDIR, errno.ENXIO})
_FORBIDDEN = frozenset({errno.EACCES, errno.EPERM})


class FolderSource:
    """Reads regular files whose real place is below one of the folders."""

    def __init__(self, folders: Sequence[Path], limits: ReadLimits) -> None:
        self._folders = tuple(folder.resolve() for folder in folders)
        self._limits = limits

    async def read(self, uri: str) -> bytes:
        """The file behind `uri`. Raises ItemBroken, NotYet."""
        try:
            with self._opened(uri) as file:
                size = os.fstat(file.fileno()).st_size
                self._limits.check_size(size)
                data = _in_memory(file, size)
                if data is None:
                    data = await asyncio.to_thread(file.read, size + 1)
        except OSError as error:
            raise _failure(uri, error) from None
        self._limits.check_size(len(data))
        return data

    def _opened(self, uri: str) -> BinaryIO:
        """The regular file behind a reference. Raises ItemBroken, OSError."""
        try:
            parts = urlsplit(uri)
            if parts.netloc not in ("", "localhost"):
                raise ItemBroken("unsupported_source", f"{shown(uri)}: only files of this machine can be read")
            # Links and .. are resolved before the check, so that neither leads out of an allowed folder.
            path = Path(unquote(parts.path)).resolve()
        except (ValueError, RuntimeError) as error:  # RuntimeError: a loop of links, before Python 3.13
            raise ItemBroken("unsupported_source", f"{shown(uri)} names no file: {error}") from None
        folder = next((folder for folder in self._folders if path.is_relative_to(folder)), None)
        if folder is None:
            allowed = ", ".join(map(str, self._folders)) or "none"
            raise ItemBroken("source_not_allowed", f"{shown(uri)} is outside the allowed folders ({allowed})")
        file = os.fdopen(_open_below(folder, path.relative_to(folder).parts), "rb")
        return file


def _open_below(folder: Path, parts: tuple[str, ...]) -> int:
    """Descriptor of a regular file; every part is opened in the one before, without following links.

    A link that somebody put in place of a part after it was checked is refused: a path as a whole would follow it.
    Raises OSError.
    """
    at = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    for number, part in enumerate(parts, 1):
        # Opening a pipe would wait for a writer.
        kind = os.O_DIRECTORY if number < len(parts) else os.O_NONBLOCK
        try:
            below = os.open(part, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | kind, dir_fd=at)
        finally:
            os.close(at)
        at = below
    if not stat.S_ISREG(os.fstat(at).st_mode):
        os.close(at)
        raise OSError(errno.EINVAL, "not a regular file")
    return at


def _failure(uri: str, error: OSError) -> ItemBroken | NotYet:
    if error.errno == errno.ENOENT:
        return NotYet("source_missing", f"{shown(uri)} does not exist")
    if error.errno in _NEVER:
        return ItemBroken("unsupported_source", f"{shown(uri)} names no file: {error.strerror}")
    if error.errno in _FORBIDDEN:
        return ItemBroken("source_forbidden", f"{shown(uri)} may not be read by the worker: {error.strerror}")
    return NotYet("source_failed", f"{shown(uri)} cannot be read: {error.strerror}")


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
