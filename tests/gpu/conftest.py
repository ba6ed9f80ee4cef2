"""What needs PyTorch and NVIDIA DALI, with or without a GPU; skipped where one of them is missing."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from models.manifest import ModelManifest

if TYPE_CHECKING:  # it imports torch, which may be missing
    from tests.gpu.engine_runs import Answers, Start

_HERE = Path(__file__).parent
_NEEDED = {"torch": "torch", "nvidia.dali": "NVIDIA DALI", "onnx": "onnx"}


def _present(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # of the package around it
        return False


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    missing = [name for module, name in _NEEDED.items() if not _present(module)]
    if missing:
        reason = f"needs {' and '.join(missing)}: pip install 'sightlog[stack,gpu]'"
        for item in items:
            if _HERE in item.path.parents:
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> ModelManifest:
    """Models that tell the colour of a picture."""
    from tests.gpu.small_models import colour_manifest

    return colour_manifest(tmp_path_factory.mktemp("models"))


@pytest.fixture
def start(manifest: ModelManifest) -> Iterator[Start]:
    """Starts engines, which end with the test."""
    from tests.gpu.engine_runs import engines

    with engines(manifest) as started:
        yield started


@pytest.fixture
def answers() -> Answers:
    """Those of one test."""
    from tests.gpu.engine_runs import Answers

    return Answers()
