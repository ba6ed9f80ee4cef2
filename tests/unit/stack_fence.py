"""A fence around tests that end processes: whatever the code under test believes, only the test's own are visible.

Without it a fault in recognising leftovers would end every process of the person who runs the tests.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator

import psutil
import pytest

#: Every dummy process carries this, and so does whatever it starts.
FENCE = {"TEST_FENCE": uuid.uuid4().hex}


def raise_fence(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hide from `psutil.process_iter` every process that does not carry the fence's mark."""
    everything = psutil.process_iter

    def fenced() -> Iterator[psutil.Process]:
        for process in everything():
            try:
                inside = process.environ().items() >= FENCE.items()
            except (psutil.Error, OSError):
                continue
            if inside:
                yield process

    monkeypatch.setattr(psutil, "process_iter", fenced)
