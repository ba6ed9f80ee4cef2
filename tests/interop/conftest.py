"""An album that clients in other languages look into."""

from __future__ import annotations

import uuid
from dataclasses import dataclass

import pytest

from agents.settings import AgentSettings
from models.photos import photos
from sightlog.client import Client
from sightlog.documents import IndexReceipt
from sightlog.events import new_upload
from sightlog.follow import Follower


@dataclass(frozen=True)
class Album:
    """Indexed pictures that share a tag. `pictures`: image id -> JPEG."""

    tag: str
    pictures: dict[str, bytes]


@pytest.fixture(scope="session")
def album(settings: AgentSettings) -> Album:
    tag = f"interop-{uuid.uuid4().hex[:8]}"
    made = {f"{tag}/{number}": photo.jpeg for number, photo in enumerate(photos(8, seed=7, sizes=[(640, 480)]))}
    with Follower(settings) as follower, Client(settings) as publisher:
        for image_id, jpeg in made.items():
            publisher.publish(new_upload(jpeg, source="/test", tags=(tag,)), key=image_id)
        assert {type(outcome) for _id, outcome in follower.outcomes(made)} == {IndexReceipt}
    return Album(tag, made)
