"""One clause as a question to the index."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from agents.index.question import VectorQuestion
from sightlog.fields import FloatArray
from sightlog.search import Clause


def combine(parts: Sequence[tuple[Clause, FloatArray]], target: str, calibration: Any) -> VectorQuestion:
    """The question of a single clause."""
    ((_clause, vector),) = parts
    return VectorQuestion(vector)
