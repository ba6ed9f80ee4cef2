"""Bounds on what an event may hold beside its file, so that no event costs memory, or is refused by the index later."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from sightlog.errors import ContractError

MAX_HEADERS = 256
MAX_HEADER_BYTES = 256 * 1024
#: Values in the JSON of a structured event: an empty list takes 2 bytes there and 56 in memory.
MAX_JSON_VALUES = 50_000
MAX_METADATA_KEYS = 1024
MAX_METADATA_KEY_BYTES = 512
#: Of a string; the index keeps it with the image and with each of its objects.
MAX_METADATA_TEXT_BYTES = 16 * 1024

#: C0, DEL and C1 controls, with which terminals, logs and URLs do odd things; halves of characters above U+FFFF, which
#: cannot be written as UTF-8.
_NOT_NAME = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")
#: Line breaks and tabs are text.
_NOT_TEXT = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff]")


def check_headers(headers: Sequence[tuple[str, bytes | None]]) -> None:
    """Refuse records with too many or too long headers. Raises ContractError `bad_event`."""
    if len(headers) > MAX_HEADERS:
        raise ContractError("bad_event", f"{len(headers)} headers; {MAX_HEADERS} at most")
    size = sum(len(name) + len(content or b"") for name, content in headers)
    if size > MAX_HEADER_BYTES:
        raise ContractError("bad_event", f"headers of {size} bytes; {MAX_HEADER_BYTES} at most")


def check_json(value: bytes) -> None:
    """Refuse JSON of very many values before it is parsed. Raises ContractError `bad_json`.

    Every value but the first has one of these characters before it, and base64 has none of them.
    """
    if value.count(b",") + value.count(b"[") + value.count(b"{") > MAX_JSON_VALUES:
        raise ContractError("bad_json", f"more than {MAX_JSON_VALUES} values, lists and objects")


def check_name(text: str) -> str:
    """An id, a name or a tag, as it is. Raises ValueError where it holds control characters or half characters."""
    if (found := _NOT_NAME.search(text)) is not None:
        raise ValueError(f"holds {found[0]!r}, which no name does")
    return text


def as_name(text: str) -> str:
    """The text with a replacement character for everything that no name holds."""
    return _NOT_NAME.sub("\ufffd", text)


def check_metadata(metadata: Mapping[str, Any]) -> None:
    """Refuse metadata that the index could not take. Raises ValueError.

    It has to be bounded in depth already, and to hold what JSON knows.
    """
    keys = 0
    left: list[Any] = [metadata]
    while left:
        value = left.pop()
        if isinstance(value, Mapping):
            keys += len(value)
            if keys > MAX_METADATA_KEYS:
                raise ValueError(f"more than {MAX_METADATA_KEYS} keys")
            for key, below in value.items():
                _check_key(key)
                left.append(below)
        elif isinstance(value, (list, tuple)):
            left.extend(value)
        elif isinstance(value, str):
            _check_text(value)


def _check_key(key: str) -> None:
    # A dot parts the names of a path, and no filter could name one with an empty part.
    if not key or any(not part.strip() for part in key.split(".")):
        raise ValueError(f"the key {key[:50]!r} has an empty part; dots part the names of a path")
    check_name(key)
    if len(key.encode()) > MAX_METADATA_KEY_BYTES:
        raise ValueError(f"a key of {len(key.encode())} bytes; {MAX_METADATA_KEY_BYTES} at most")


def _check_text(text: str) -> None:
    if (found := _NOT_TEXT.search(text)) is not None:
        raise ValueError(f"a string holds {found[0]!r}, which no text does")
    if len(text.encode()) > MAX_METADATA_TEXT_BYTES:
        raise ValueError(f"a string of {len(text.encode())} bytes; {MAX_METADATA_TEXT_BYTES} at most")
