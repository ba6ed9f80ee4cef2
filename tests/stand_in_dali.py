"""Repositories for NVIDIA's container on machines without DALI: everything but its graph is real."""

from __future__ import annotations

import sys
import types
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from models.manifest import ModelManifest


@contextmanager
def stand_in_dali() -> Iterator[None]:
    """In place of `triton_repo.dali_pipeline`, which needs DALI."""

    def serialize(manifest: ModelManifest, device: str, path: Path) -> None:
        path.write_bytes(f"{device} graph of {manifest.digest}".encode())

    module = types.ModuleType("triton_repo.dali_pipeline")
    vars(module).update(serialize=serialize, OUTPUTS=("letterboxed", "centre", "original", "image_size"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, module.__name__, module)
        patch.delitem(sys.modules, "triton_repo.native", raising=False)
        yield
    # What was imported meanwhile holds the stand-in.
    sys.modules.pop("triton_repo.native", None)
