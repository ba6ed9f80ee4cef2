"""What the fuzzer and the replay of its corpus feed: every reader of a record that somebody else wrote."""

from __future__ import annotations

from collections.abc import Callable

from sightlog.dead_letters import DeadLetter, Resolution
from sightlog.documents import EmbeddingDocument, IndexReceipt, read_change
from sightlog.errors import ContractError
from sightlog.events import Headers, parse_event
from sightlog.history import HISTORY_HEADER, History

_STRUCTURED: Headers = [("content-type", b"application/cloudevents+json")]


def _binary(content: bytes) -> None:
    """Lines of `name:content` up to an empty one are headers; the rest is the value, the first line the key."""
    head, _, value = content.partition(b"\n\n")
    key, *lines = head.split(b"\n")
    headers = [
        (name.decode("utf-8", "replace"), text)
        for name, found, text in (line.partition(b":") for line in lines)
        if found
    ]
    event = parse_event(value or None, headers)
    image_id = event.image_id(key or None)
    assert image_id
    again, more = event.to_kafka()
    assert parse_event(again, [(name, _bytes(text)) for name, text in more]) == event


def _structured(content: bytes) -> None:
    event = parse_event(content, _STRUCTURED)
    event.image_id(b"key")
    value, _headers = event.to_kafka(structured=True)
    assert parse_event(value, _STRUCTURED) == event


def _history(content: bytes) -> None:
    history = History.from_headers([(HISTORY_HEADER, content)])
    if history is not None:
        assert History.from_headers([history.to_header()]) == history


def _document(content: bytes) -> None:
    EmbeddingDocument.from_kafka(content).to_kafka()


def _change(content: bytes) -> None:
    read_change(content).to_kafka()


def _dead_letter(content: bytes) -> None:
    letter = DeadLetter.from_kafka(content)
    assert letter.id
    assert letter.history
    letter.to_kafka()


def _receipt(content: bytes) -> None:
    IndexReceipt.from_kafka(content).to_kafka()


def _resolution(content: bytes) -> None:
    Resolution.from_kafka(content).to_kafka()


#: The first byte of an input says which of them reads the rest.
READERS: tuple[Callable[[bytes], None], ...] = (
    _binary,
    _structured,
    _document,
    _change,
    _history,
    _dead_letter,
    _receipt,
    _resolution,
)


def feed(data: bytes) -> None:
    """Let a reader read; everything but ContractError comes out."""
    if not data:
        return
    refusal = None
    try:
        READERS[data[0] % len(READERS)](data[1:])
    except ContractError as error:
        # Not the error itself: its context, of pydantic, holds this frame where no garbage collector looks.
        refusal = error.code, error.message
    if refusal is not None:
        # A dead letter carries the message and must stay publishable.
        assert refusal[0]
        assert len(refusal[1].encode()) < 4000


def _bytes(text: str | bytes | None) -> bytes:
    return text.encode() if isinstance(text, str) else text or b""
