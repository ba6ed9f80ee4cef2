"""Pictures as people have them, bytes, paths and open files, and the upload event of one."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, BinaryIO, TypedDict

from sightlog.errors import BadPicture, FileTooLarge
from sightlog.events import ImageEvent, ImageUploaded, new_upload
from sightlog.limits import as_name

CONTENT_TYPES = {".jpg": "image/jpeg", ".jpeg": "image/jpeg", ".png": "image/png", ".webp": "image/webp"}

#: An encoded JPEG, PNG or WebP file: its bytes, where it is, or open for reading in binary.
Picture = bytes | bytearray | memoryview | str | os.PathLike[str] | BinaryIO


def picture_bytes(picture: Picture, at_most: int) -> bytes:
    """The encoded file. Raises BadPicture when it is empty or of more bytes than that, OSError when it is not there.

    Of a path or an open file, no more than that is read.
    """
    if isinstance(picture, (bytes, bytearray, memoryview)):
        data = bytes(picture)
    elif isinstance(picture, (str, os.PathLike)):
        if isinstance(picture, str) and "://" in picture:
            raise BadPicture("unsupported_source", f"{picture[:200]} is no path; give a URI as dataref")
        with Path(picture).open("rb") as file:
            data = file.read(at_most + 1)
    else:
        data = picture.read(at_most + 1)
        if not isinstance(data, bytes):
            raise BadPicture("unsupported_source", "the file is open for reading text; open it in binary mode")
    if not data:
        raise BadPicture("empty", "the picture has no bytes")
    if len(data) > at_most:
        raise BadPicture("too_large", f"the picture has more than {at_most} bytes")
    return data


class About(TypedDict, total=False):
    """What can be said about a picture when it is published."""

    #: Who publishes, for example /camera/3.
    source: str
    #: Of a path or an open file it is known.
    filename: str | None
    tags: Sequence[str]
    #: What JSON knows, to 16 levels.
    metadata: Mapping[str, Any]
    #: When the picture was taken; without a zone it is UTC.
    captured_at: datetime | None


def event_of(image: ImageEvent | Picture, about: About, inline_limit: int) -> ImageEvent:
    """The event as it is, or the upload of a picture. Raises as `picture_upload`, TypeError for an event with more."""
    if not isinstance(image, ImageEvent):
        return picture_upload(image, inline_limit, **about)
    if about:
        raise TypeError(f"an event says it all; {', '.join(about)} beside it would be ignored")
    return image


def picture_upload(
    picture: Picture,
    inline_limit: int,
    *,
    source: str = "/sightlog/client",
    filename: str | None = None,
    tags: Sequence[str] = (),
    metadata: Mapping[str, Any] | None = None,
    captured_at: datetime | None = None,
) -> ImageUploaded:
    """The event of a picture, with the file in it, its SHA-256, and the name of the file where that is known.

    Raises FileTooLarge above `inline_limit` bytes, BadPicture when it is empty, OSError when it cannot be read,
    ValueError when an attribute is not as an event has it.
    """
    named = getattr(picture, "name", "") if filename is None else filename
    path = picture if isinstance(picture, (str, os.PathLike)) else named
    name = Path(path).name if isinstance(path, (str, os.PathLike)) else ""
    try:
        data = picture_bytes(picture, inline_limit)
    except BadPicture as error:
        if error.code != "too_large":
            raise
        raise FileTooLarge.named(name or "picture", inline_limit) from None
    return new_upload(
        data,
        source=source,
        filename=as_file_name(filename or name) or None,
        tags=tuple(tags),
        sha256=hashlib.sha256(data).hexdigest(),
        datacontenttype=CONTENT_TYPES.get(Path(name).suffix.lower()),
        metadata=dict(metadata or {}),
        capturedat=captured_at,
    )


def as_file_name(name: str) -> str:
    """The name of a file as an event can carry it, whatever bytes the file system has in it."""
    return as_name(os.fsencode(name).decode("utf-8", "replace"))
