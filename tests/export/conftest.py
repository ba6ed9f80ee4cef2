"""Tests of exports need torch and open_clip; without them each file is skipped with the reason."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

MISSING = [name for name in ("torch", "open_clip", "yolox") if find_spec(name) is None]


class _Skipped(pytest.Module):
    def collect(self) -> Any:
        pytest.skip(f"needs {', '.join(MISSING)}: ./scripts/setup dev export", allow_module_level=True)


def pytest_pycollect_makemodule(module_path: Path, parent: pytest.Collector) -> pytest.Module | None:
    return _Skipped.from_parent(parent, path=module_path) if MISSING else None


@pytest.fixture(scope="session", autouse=True)
def two_threads() -> None:
    import torch

    torch.set_num_threads(2)


@pytest.fixture(scope="session")
def checkpoint_of(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Path]]:
    """Path of a checkpoint of an architecture, in open_clip's format, with random weights that spread vectors."""
    folder = tmp_path_factory.mktemp("checkpoints")

    @cache
    def path(name: str) -> Path:
        from models.export.random_weights import calibrated_model, save_checkpoint

        file = folder / f"{name}.safetensors"
        save_checkpoint(calibrated_model(name), file)
        return file

    yield path
    shutil.rmtree(folder)


@pytest.fixture(autouse=True)
def removed(tmp_path: Path) -> Iterator[None]:
    """Checkpoints have hundreds of megabytes, and pytest would keep those of its last runs."""
    yield
    shutil.rmtree(tmp_path)
