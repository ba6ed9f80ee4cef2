"""The family of errors that Sightlog raises; every message says what happened and what to do about it."""

from __future__ import annotations


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
    """The search agent answered with an error; `code` is the one of the reply."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code


class NoReply(SightlogError):
    """Nobody answered before the deadline."""


class PublishFailed(SightlogError):
    """The broker did not accept an event."""


class FileTooLarge(PublishFailed):
    """A file above the inline limit was to be sent in an event; put it somewhere and publish a reference to it."""
