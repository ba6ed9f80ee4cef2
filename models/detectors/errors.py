"""Why a detector cannot be taken; every message says what was found and what to do."""

from __future__ import annotations

from sightlog.errors import SightlogError


class DetectorError(SightlogError):
    """A detector cannot be imported; the root of the family."""


class DetectorFileError(DetectorError):
    """The file cannot be read as an ONNX model: it is something else, cut off, or parts of it lie elsewhere."""


class GraphError(DetectorError):
    """The graph does not have what is needed: inputs, outputs, operators, a dynamic batch, finite values."""


class UnknownHeadError(DetectorError):
    """The outputs are of no known head, or of more than one."""


class ClassNamesError(DetectorError):
    """The class names are missing, unreadable, or not as many as the head has classes."""


class CheckpointError(DetectorError):
    """A checkpoint cannot be fetched, read, or loaded into its architecture."""


def first_line(error: Exception) -> str:
    """What a library said, short enough for one line."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
