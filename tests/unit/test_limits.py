"""Bounds on headers, JSON, names and metadata."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from sightlog import limits
from sightlog.errors import ContractError


@pytest.mark.parametrize(
    "headers",
    [
        [("x", b"")] * (limits.MAX_HEADERS + 1),
        [("x", b"y" * limits.MAX_HEADER_BYTES)],
        [("x" * limits.MAX_HEADER_BYTES, b"y")],
        [("x", b"y" * 1100)] * 250,
    ],
)
def test_too_many_or_too_long_headers_are_refused(headers: list[tuple[str, bytes]]) -> None:
    with pytest.raises(ContractError, match="bad_event"):
        limits.check_headers(headers)


def test_usual_headers_pass() -> None:
    limits.check_headers([])
    limits.check_headers([("ce_type", b"image.uploaded.v1"), ("empty", None)] * 20)


@pytest.mark.parametrize("value", [b"[]," * 60_000, b"[" * 60_000, b'{"a":' * 60_000, b"1," * 60_000])
def test_json_that_expands_in_memory_is_refused_unparsed(value: bytes) -> None:
    with pytest.raises(ContractError, match="bad_json"):
        limits.check_json(value)


def test_a_large_file_in_json_passes() -> None:
    limits.check_json(orjson.dumps({"data_base64": "A" * 5_000_000, "tags": ["a"] * 1000}))


@pytest.mark.parametrize("name", ["a\0", "\x1b[2J", "a\nb", "\x7f", "\x85", "\udfff"])
def test_names_hold_no_control_characters(name: str) -> None:
    with pytest.raises(ValueError, match="which no name does"):
        limits.check_name(name)


@pytest.mark.parametrize("name", ["", "IMG 1.jpg", "grün", "写真", "👍🏽", "a/b?c#d", "\u202eevil", "'\"<>"])
def test_names_hold_everything_else(name: str) -> None:
    assert limits.check_name(name) == name


@pytest.mark.parametrize(
    "metadata",
    [
        {"": 1},
        {" ": 1},
        {".": 1},
        {"a.": 1},
        {".a": 1},
        {"a..b": 1},
        {"a\0": 1},
        {"\ud800": 1},
        {"k" * 513: 1},
        {"ü" * 300: 1},
        {"a": {"": 1}},
        {"a": [{"": 1}]},
        {"a": "x" * 16_385},
        {"a": ["ü" * 8_193]},
        {"a": "\0"},
        {"a": "\ud800"},
        {str(number): 1 for number in range(1025)},
        {"a": [{"b": 1}] * 1024},
    ],
)
def test_metadata_that_an_index_cannot_take_is_refused(metadata: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"key|string|name"):
        limits.check_metadata(metadata)


@pytest.mark.parametrize(
    "metadata",
    [
        {},
        {"a": "two\nlines\tand more"},
        {"a.b": 1, "a": {"b": [1, 2.5, None, True, "x"]}},
        {"写真": "👍🏽", "a b": "x" * 16_384},
        {str(number): number for number in range(1024)},
    ],
)
def test_other_metadata_passes(metadata: dict[str, Any]) -> None:
    limits.check_metadata(metadata)


def test_any_text_can_be_made_a_name() -> None:
    assert limits.as_name("a\nb\0\ud800.jpg") == "a\ufffdb\ufffd\ufffd.jpg"
    assert limits.check_name(limits.as_name("\x1b[2J")) == "\ufffd[2J"
