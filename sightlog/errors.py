"""The family of errors that Sightlog raises; every message says what happened and what to do about it."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sightlog.dead_letters import DeadLetter
    from sightlog.documents import IndexReceipt


class SightlogError(Exception):
    """Root of all errors raised on purpose by this project."""


class ConfigurationError(SightlogError):
    """A setting, a file or the machine does not fit; the message names what to change."""


class ContractError(SightlogError):
    """A message does not follow its contract.

    `code` is stable and machine-readable (`bad_json`, `not_cloudevent`, ...); `message` is for people.
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code
        self.message = message


class SearchFailed(SightlogError):
    """The search agent answered with an error; `code` is the one of the reply, `message` is for people.

    The classes below say what kind of error it is; a code that this version does not know is a plain SearchFailed.
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code
        self.message = message

    def __reduce__(self) -> tuple[type[SearchFailed], tuple[str, str]]:
        return type(self), (self.code, self.message)


class BadRequest(SearchFailed):
    """The request cannot be answered as it is, now or later: correct it. Often found out before it is sent."""


class NotIndexed(BadRequest):
    """The image or object that others shall be like is not in the index."""


class BadPicture(SearchFailed):
    """The query picture cannot be fetched, read or embedded."""


class ModelMismatch(BadRequest):
    """The vector or the cursor is of another model than the index."""


class BadCursor(BadRequest):
    """The cursor was not made by this search agent, or was changed."""


class ExpiredCursor(BadCursor):
    """The pages of this cursor are closed; ask the first page again."""


class Unavailable(SearchFailed):
    """Not now: something that is needed is down or busy. The same request may be answered later."""


class TooManyRequests(Unavailable):
    """This caller, or all together, ask more than is let in; wait a moment, or ask less at once."""


_BY_CODE: dict[str, type[SearchFailed]] = {
    **dict.fromkeys(
        ("bad_request", "too_large", "record_too_large", "contradictory", "not_calibrated", "unknown_class"), BadRequest
    ),
    **dict.fromkeys(("unknown_image", "unknown_object"), NotIndexed),
    **dict.fromkeys(
        ("empty", "unsupported_format", "undecodable", "too_many_pixels", "too_complex", "unembeddable"), BadPicture
    ),
    **dict.fromkeys(("decoder_crash", "sha256_mismatch", "unsupported_source"), BadPicture),
    "model_mismatch": ModelMismatch,
    "bad_cursor": BadCursor,
    "expired_cursor": ExpiredCursor,
    "unavailable": Unavailable,
    **dict.fromkeys(("too_many_requests", "too_many_cursors"), TooManyRequests),
}


def search_failed(code: str, message: str) -> SearchFailed:
    """The error of a reply, of the class that fits its code."""
    # A picture that is elsewhere: source_missing, source_not_allowed, ...
    otherwise = BadPicture if code.startswith("source_") else SearchFailed
    return _BY_CODE.get(code, otherwise)(code, message)


class NoReply(SightlogError):
    """Nobody answered before the deadline."""


class PublishFailed(SightlogError):
    """The broker did not accept an event."""


class FileTooLarge(PublishFailed):
    """A file above the inline limit was to be sent in an event; put it somewhere and publish a reference to it."""

    @classmethod
    def named(cls, name: str, limit: int) -> FileTooLarge:
        """The error for a file of more than `limit` bytes."""
        return cls(
            f"{name}: the file has more than the {limit} bytes of an event; put it where the vision workers may read"
            " it and give its URI as dataref"
        )


class NotSearchable(SightlogError):
    """Not every image that was waited for can be found.

    `receipts`: what can, by image id. `letters`: what became a dead letter. `missing`: of what nothing was heard.
    """

    def __init__(
        self,
        message: str,
        *,
        receipts: Mapping[str, IndexReceipt],
        letters: Mapping[str, DeadLetter],
        missing: Collection[str],
    ) -> None:
        super().__init__(message)
        self.receipts, self.letters, self.missing = dict(receipts), dict(letters), tuple(missing)


class BecameDeadLetter(NotSearchable):
    """At least one image became a dead letter; `code` is the cause of the first one."""

    @property
    def code(self) -> str:
        """Stable cause, for example `undecodable`."""
        return next(iter(self.letters.values())).code


class NotSearchableYet(NotSearchable):
    """The time is over and nothing was heard of at least one image: it may still come."""
