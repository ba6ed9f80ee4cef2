"""The key that signs cursors: of the settings, else one that the workers of a data folder share."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from agents.settings import AgentSettings
from sightlog.errors import ConfigurationError

_FILE = "cursor.key"
_BYTES = 32


def cursor_key(settings: AgentSettings) -> bytes:
    """`SIGHTLOG_CURSOR_KEY`, else the content of `<data_dir>/cursor.key`, which is made where it is missing.

    Raises ConfigurationError where the file cannot be read or made, or is too short.
    """
    if settings.cursor_key is not None:
        return settings.cursor_key.get_secret_value().encode()
    path = settings.data_dir / _FILE
    try:
        if not path.exists():
            _make(path)
        key = path.read_bytes()
    except OSError as error:
        raise ConfigurationError(f"{path}: {error.strerror}; make it readable, or set SIGHTLOG_CURSOR_KEY") from None
    if len(key) < _BYTES:
        raise ConfigurationError(f"{path} has {len(key)} bytes, not {_BYTES}; remove the file")
    return key


def _make(path: Path) -> None:
    """Make a key of which nobody sees a part; of several who try at once, one succeeds."""
    path.parent.mkdir(parents=True, exist_ok=True)
    own = path.with_name(f"{_FILE}.{secrets.token_hex(8)}")
    descriptor = os.open(own, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(secrets.token_bytes(_BYTES))
            file.flush()
            os.fsync(file.fileno())
        # Unlike a rename this never replaces a key that somebody signs with already.
        os.link(own, path)
    except FileExistsError:
        pass
    finally:
        own.unlink()
