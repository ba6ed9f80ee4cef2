"""What needs PyTorch and NVIDIA DALI, with or without a GPU; skipped where one of them is missing."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest

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
