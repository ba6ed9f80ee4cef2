"""What OpenSearch is configured with."""

from __future__ import annotations

from pathlib import Path

import pytest

from stack.artifacts import ArtifactCache
from stack.component import Silent
from stack.java import JavaRuntime
from stack.opensearch import OpenSearch
from stack.settings import StackSettings


def test_no_setting_of_the_node_depends_on_a_memory_size_that_the_sandbox_may_hide(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stack.opensearch.assemble", lambda *arguments: None)
    monkeypatch.setattr("stack.opensearch.unprivileged", lambda *arguments: None)
    settings = StackSettings(data_dir=tmp_path / "data", cache_dir=tmp_path / "cache")
    cache = ArtifactCache(settings.cache_dir, lambda artifact, target, arrived: target)
    OpenSearch(settings, cache, JavaRuntime(tmp_path / "java", 25, "test", True)).prepare(Silent())

    lines = (settings.data_dir / "opensearch/config/opensearch.yml").read_text().splitlines()
    written = dict(line.split(": ", 1) for line in lines if not line.startswith("#"))
    assert written["knn.memory.circuit_breaker.limit"].endswith("mb")
    assert not [name for name, value in written.items() if value.endswith("%")]
