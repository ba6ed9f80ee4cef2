"""Keeps the talk of libraries off the terminal while they work for us."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quiet() -> Iterator[None]:
    """No warnings and no log lines below CRITICAL; what goes wrong is raised, and told once, by the caller.

    open_clip logs each failure before it raises it, the tracing exporter warns about every shape that it sees, and
    torch about its coming end.
    """
    disabled = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)
