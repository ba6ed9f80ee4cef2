"""What can go wrong in an export."""

from __future__ import annotations

from sightlog.errors import SightlogError


class ExportError(SightlogError):
    """The models cannot be exported; the message says which part of them does not fit."""


class UnknownArchitectureError(ExportError):
    """No MobileCLIP of that name, or no weights of that tag; the message names those that there are."""


class CheckpointError(ExportError):
    """A checkpoint is missing, damaged, unsafe to read, or one of another architecture."""


class HubError(ExportError):
    """Weights cannot be downloaded; the message says how to bring them by hand."""


class ParityError(ExportError):
    """The exported graphs do not give the vectors of the original."""
