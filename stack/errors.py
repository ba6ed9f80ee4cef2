"""Errors of the local stack; each message names the component and what to change."""

from __future__ import annotations

from sightlog.errors import ConfigurationError, SightlogError


class PreflightError(ConfigurationError):
    """The machine cannot run the stack as configured; one line for each thing to change."""


class DownloadError(SightlogError):
    """An artifact could not be downloaded, or what arrived is not what was pinned."""


class StartError(SightlogError):
    """A component did not become ready; the message carries the end of its log."""


class NotRunningError(SightlogError):
    """A running stack or component was needed and there is none."""
