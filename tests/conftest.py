"""One real stack for all tests that ask for one: Kafka, Triton, OpenSearch and the workers.

What it needs is imported when it is asked for: other tests also run where it is not installed.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from agents.settings import AgentSettings
    from sightlog.client import Client
    from stack.local import LocalStack


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalStack]:
    """A running stack of its own, stopped and wiped at the end."""
    from load_tests.running import free_port_offset
    from stack.local import LocalStack

    data_dir = tmp_path_factory.mktemp("stack")
    local = LocalStack(data_dir, port_offset=free_port_offset(), workers=True)
    local.up()
    before = os.environ.get("SIGHTLOG_DATA_DIR")
    os.environ["SIGHTLOG_DATA_DIR"] = str(data_dir)
    yield local
    if before is None:
        del os.environ["SIGHTLOG_DATA_DIR"]
    else:
        os.environ["SIGHTLOG_DATA_DIR"] = before
    local.down(wipe=True)


@pytest.fixture(scope="module")
def lone_opensearch(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """URL of an OpenSearch of the module's own, with nothing else around it."""
    from agents.settings import AgentSettings
    from load_tests.running import free_port_offset
    from stack.local import LocalStack
    from stack.settings import StackSettings

    alone = LocalStack(
        tmp_path_factory.mktemp("opensearch"),
        port_offset=free_port_offset(),
        workers=False,
        settings=StackSettings(components=("opensearch",)),
    )
    alone.up()
    yield AgentSettings.load(data_dir=alone.data_dir).opensearch
    alone.down(wipe=True)


@pytest.fixture(scope="session")
def settings(stack: LocalStack) -> AgentSettings:
    """Settings that point at the stack."""
    from agents.settings import AgentSettings

    return AgentSettings.load(data_dir=stack.data_dir)


@pytest.fixture(scope="session")
def uploads(settings: AgentSettings) -> Path:
    """The folder that `file:` references may point into."""
    settings.uploads_dir.mkdir(parents=True, exist_ok=True)
    return settings.uploads_dir


@pytest.fixture(scope="session")
def client(settings: AgentSettings) -> Iterator[Client]:
    from sightlog.client import Client

    with Client(settings) as made:
        yield made
