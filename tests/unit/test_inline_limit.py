"""What a client may put into an event itself."""

from __future__ import annotations

import pytest

from sightlog.client import Client
from sightlog.errors import FileTooLarge, PublishFailed
from sightlog.events import new_upload
from sightlog.settings import ClientSettings

LIMIT = 10


@pytest.fixture
def client() -> Client:
    # Nothing listens there, so that what is handed to the producer fails otherwise.
    return Client(ClientSettings(kafka="127.0.0.1:1", inline_limit=LIMIT))


def test_a_file_above_the_inline_limit_is_refused_and_the_message_says_what_to_do(client: Client) -> None:
    with pytest.raises(FileTooLarge, match=r"photo-1.*10 bytes.*dataref"):
        client.publish(new_upload(b"x" * (LIMIT + 1), source="/test"), key="photo-1")
    assert isinstance(client.publish_async(new_upload(b"x" * 11, source="/test")).exception(0), FileTooLarge)


def test_files_up_to_the_limit_and_references_are_handed_to_the_producer(client: Client) -> None:
    for event in (
        new_upload(b"x" * LIMIT, source="/test"),
        new_upload(source="/test", dataref="https://example.org/a.jpg"),
    ):
        with pytest.raises(PublishFailed) as failure:
            client.publish(event, key="photo-1", timeout=0.05)
        assert not isinstance(failure.value, FileTooLarge)
