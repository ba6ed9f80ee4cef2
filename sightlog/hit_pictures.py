"""The pictures of hits, where they lie on this machine: read with Pillow, small, and whatever a reference points at."""

from __future__ import annotations

import importlib.util
import os
import stat
import warnings
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from sightlog.search import Hit

if TYPE_CHECKING:
    from PIL.Image import Image

_MAX_BYTES = 64 * 1024 * 1024


def can_read() -> bool:
    """Whether Pillow is there; without it no hit has a picture."""
    return importlib.util.find_spec("PIL") is not None


def path_of(hit: Hit, folder: Path | None = None) -> Path | None:
    """Where the file of a hit is: its `file:` reference, else what has its name in `folder`; None where nobody can say.

    The file may be missing. A name is looked up in the folder alone, whatever path it seems to have.
    """
    try:
        parts = urlsplit(hit.source)
    except ValueError:
        return None
    if parts.scheme == "file":
        return Path(unquote(parts.path)) if parts.netloc in ("", "localhost") else None
    name = Path(hit.source).name
    return folder / name if folder is not None and name and "://" not in hit.source else None


def picture(path: Path, hit: Hit, side: int, *, crop: bool = False) -> Image | None:
    """RGB, upright, neither edge above `side` pixels; with `crop` what is in the hit's box.

    None when it is no JPEG, PNG or WebP of reasonable size that can be read. What a reference names may be anything: no
    device or pipe is read.
    """
    from PIL import Image, ImageOps

    try:
        # Not blocking: opening a pipe would wait for somebody to write.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        with os.fdopen(descriptor, "rb") as file:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode) or status.st_size > _MAX_BYTES:
                return None
            with warnings.catch_warnings():
                # Above 89 megapixels; twice that is an error by itself.
                warnings.simplefilter("error", Image.DecompressionBombWarning)
                opened = Image.open(file, formats=["JPEG", "PNG", "WEBP"])
            with opened:
                if hit.box is None or not crop:
                    opened.draft("RGB", (2 * side, 2 * side))  # a JPEG is decoded no larger than needed
                upright = ImageOps.exif_transpose(opened).convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError, Image.DecompressionBombWarning):
        return None
    if crop and hit.box is not None:
        x1, y1, x2, y2 = (round(edge) for edge in hit.box)
        edges = (max(0, x1), max(0, y1), min(upright.width, max(x2, x1 + 1)), min(upright.height, max(y2, y1 + 1)))
        if edges[0] >= edges[2] or edges[1] >= edges[3]:
            return None
        upright = upright.crop(edges)
    upright.thumbnail((side, side))
    return upright
