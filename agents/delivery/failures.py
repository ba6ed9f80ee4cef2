"""The three ways in which work on an event can fail, and what each means for the stream.

Every code that is raised is in `sightlog.causes`.
"""

from __future__ import annotations

from sightlog.errors import SightlogError


class ItemBroken(SightlogError):
    """This event can never succeed: it leaves the stream as a dead letter, its neighbours go on.

    `code` is a stable, machine-readable cause such as `undecodable`; `message` says what was wrong with it.
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code
        self.message = message


class NotYet(SightlogError):
    """What this event needs is not there now but may be later: it goes into the next retry tier, its neighbours go on.

    After the last tier it becomes a dead letter. `code` and `message` as of ItemBroken.
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code
        self.message = message


class DependencyDown(SightlogError):
    """Something that every event needs does not answer: hold the event, back off, try again."""


class NoSuchPlace(DependencyDown):
    """The broker knows no such topic or partition, or does not let us write there. Of a topic of our own that means
    that somebody has yet to create it."""
