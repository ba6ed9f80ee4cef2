"""What the storage tool of Kafka is given."""

from __future__ import annotations

import base64
import uuid

import pytest

from stack.kafka import cluster_id


@pytest.mark.parametrize("first", range(256))
def test_no_cluster_id_looks_like_an_option(first: int) -> None:
    written = cluster_id(uuid.UUID(bytes=bytes([first]) + b"\xff" * 15))
    assert not written.startswith("-")
    assert len(base64.urlsafe_b64decode(written + "==")) == 16
