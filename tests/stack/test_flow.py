"""From an image event to a search reply, on real components, with real pictures and broken ones."""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Sequence
from pathlib import Path

import pytest
from confluent_kafka import Producer

from agents.settings import AgentSettings
from models.photos import photos
from sightlog.client import Client
from sightlog.dead_letters import DeadLetter
from sightlog.documents import IndexReceipt
from sightlog.errors import SearchFailed
from sightlog.events import new_upload
from sightlog.filters import SearchFilters
from sightlog.follow import Follower
from sightlog.ingest import file_upload
from sightlog.published import Outcome
from sightlog.search import GOOD, SearchRequest
from sightlog.settings import MAX_RECORD_BYTES
from tests.pictures import bomb, good_pictures, truncated_jpeg

BINARY = {"ce_specversion": b"1.0", "ce_type": b"image.uploaded.v1", "ce_id": b"1", "ce_source": b"/test"}
Record = tuple[bytes | None, dict[str, bytes]]


def outcomes_of(settings: AgentSettings, records: dict[str, Record]) -> dict[str, list[Outcome]]:
    """Publish records under fresh keys with a plain Kafka producer; everything said about each, by its name."""
    prefix = uuid.uuid4().hex[:8]
    keys = {f"{prefix}/{name}": name for name in records}
    said: dict[str, list[Outcome]] = {name: [] for name in records}
    producer = Producer({"bootstrap.servers": settings.kafka, "message.max.bytes": 8 * 1024 * 1024})
    with Follower(settings) as follower:
        for key, name in keys.items():
            value, headers = records[name]
            producer.produce(settings.topics.images, value, key, headers=dict(headers))
        assert producer.flush(30) == 0
        for key, outcome in follower.outcomes(keys):
            said[keys[key]].append(outcome)
        for key, outcome in follower.outcomes_at_hand():
            if key in keys:
                said[keys[key]].append(outcome)
    return said


def only(outcomes: Sequence[Outcome]) -> Outcome:
    assert len(outcomes) == 1
    return outcomes[0]


def test_every_kind_of_picture_becomes_searchable(settings: AgentSettings, client: Client) -> None:
    pictures = good_pictures()
    said = outcomes_of(settings, {name: (data, BINARY) for name, data in pictures.items()})
    dead = {name: only(o) for name, o in said.items() if not isinstance(only(o), IndexReceipt)}
    assert dead == {}


def test_an_indexed_picture_finds_itself_first(settings: AgentSettings, client: Client) -> None:
    tag = uuid.uuid4().hex
    made = {f"{tag}-{number}": photo for number, photo in enumerate(photos(12, 21, [(800, 600), (2400, 1800)]))}
    generous = settings.model_copy(update={"inline_limit": MAX_RECORD_BYTES // 2})
    with Follower(settings) as follower, Client(generous) as publisher:
        for image_id, photo in made.items():
            publisher.publish(new_upload(photo.jpeg, source="/test", tags=(tag,)), key=image_id)
        assert {type(outcome) for _id, outcome in follower.outcomes(made)} == {IndexReceipt}
    for image_id, photo in made.items():
        reply = client.search(SearchRequest(image=photo.jpeg, k=3, filters=SearchFilters(tags=(tag,))), timeout=30)
        assert reply.hits[0].image_id == image_id
        assert reply.hits[0].cosine == pytest.approx(1, abs=1e-4)


def test_a_query_picture_that_cannot_be_seen_is_told_so(client: Client) -> None:
    with pytest.raises(SearchFailed, match="undecodable"):
        client.search(SearchRequest(image=truncated_jpeg()), timeout=30)


def test_each_broken_event_is_one_dead_letter_and_its_neighbours_are_indexed(settings: AgentSettings) -> None:
    good = photos(6, seed=1, sizes=[(320, 240)])
    structured = {"content-type": b"application/cloudevents+json"}
    broken: dict[str, tuple[Record, str]] = {
        "unreadable": ((b"these are not the bytes of a picture", BINARY), "unsupported_format"),
        "empty": ((b"", BINARY), "empty"),
        "no value": ((None, BINARY), "empty"),
        "unknown type": ((good[0].jpeg, {**BINARY, "ce_type": b"image.painted.v1"}), "unsupported_type"),
        "broken JSON": ((b'{"specversion": "1.0", "type', structured), "bad_json"),
        "not a CloudEvent": ((good[0].jpeg, {}), "not_cloudevent"),
        "truncated": ((truncated_jpeg(), BINARY), "undecodable"),
        "bomb": ((bomb(), BINARY), "too_many_pixels"),
        "outside": ((None, {**BINARY, "ce_dataref": b"file:///etc/hostname"}), "source_not_allowed"),
    }
    records: dict[str, Record] = {}
    for number, (name, (record, _code)) in enumerate(broken.items()):
        records[f"good {number}"] = (good[number % len(good)].jpeg, BINARY)
        records[name] = record
    said = outcomes_of(settings, records)
    for name, (record, code) in broken.items():
        letter = only(said[name])
        assert isinstance(letter, DeadLetter), name
        assert (letter.code, letter.value or b"") == (code, record[0] or b""), name
        assert letter.message
        assert dict(letter.headers) == record[1]
        assert letter.origin.topic == settings.topics.images
    for name in records.keys() - broken.keys():
        assert isinstance(only(said[name]), IndexReceipt), name


def test_structured_events_need_no_library_of_ours(settings: AgentSettings) -> None:
    import base64

    jpeg = photos(1, seed=2, sizes=[(320, 240)])[0].jpeg
    body = {
        "specversion": "1.0",
        "type": "image.uploaded.v1",
        "id": "7",
        "source": "/elsewhere",
        "tags": ["structured"],
        "data_base64": base64.b64encode(jpeg).decode(),
    }
    said = outcomes_of(
        settings, {"event": (json.dumps(body).encode(), {"content-type": b"application/cloudevents+json"})}
    )
    assert isinstance(only(said["event"]), IndexReceipt)


def test_a_large_file_travels_by_reference(settings: AgentSettings, uploads: Path, tmp_path: Path) -> None:
    picture = tmp_path / "large.png"
    picture.write_bytes(good_pictures()["png"])
    small_limit = settings.model_copy(update={"inline_limit": 1000})
    upload = file_upload(picture, small_limit)
    assert upload.event.data is None
    assert upload.event.dataref is not None
    assert upload.image_id == hashlib.sha256(picture.read_bytes()).hexdigest()
    with Client(settings) as client, Follower(settings) as follower:
        client.publish(upload.event, key=upload.image_id)
        ((_key, outcome),) = follower.outcomes([upload.image_id])
    assert isinstance(outcome, IndexReceipt)


@pytest.fixture(scope="module")
def gallery(settings: AgentSettings) -> dict[str, list[str]]:
    """Published scenes with a tag of their own: image id -> captions of what is in it."""
    made = photos(24, seed=3, sizes=[(1280, 960), (960, 1280)])
    shows = {f"gallery-{number}": [thing.caption for thing in photo.objects] for number, photo in enumerate(made)}
    with Client(settings) as client, Follower(settings) as follower:
        for number, photo in enumerate(made):
            tags = ("gallery", "even" if number % 2 == 0 else "odd")
            event = new_upload(photo.jpeg, source="/test", tags=tags, capturedat=f"2026-01-{number + 1:02}T12:00:00Z")
            client.publish_async(event, key=f"gallery-{number}")
        client.flush()
        assert all(isinstance(outcome, IndexReceipt) for _key, outcome in follower.outcomes(shows))
    return shows


def test_an_object_is_found_by_words_with_its_box_class_and_cosine(
    client: Client, gallery: dict[str, list[str]]
) -> None:
    asked = [captions[0] for captions in gallery.values()]
    right = 0
    for caption in asked:
        request = SearchRequest(
            text=f"a photo of a {caption}", target="objects", k=1, filters=SearchFilters(tags=("gallery",))
        )
        (hit,) = client.search(request, timeout=20).hits
        right += caption in gallery[hit.image_id]
        assert hit.class_name in caption
        assert hit.relevance is not None
        assert hit.score == hit.relevance > GOOD
        assert hit.box is not None
        assert 0 <= hit.box[0] < hit.box[2] <= hit.width
        assert 0 <= hit.box[1] < hit.box[3] <= hit.height
    assert right / len(asked) >= 0.9


@pytest.mark.parametrize("target", ["images", "objects"])
def test_filters_hold_and_do_not_starve_the_result(client: Client, gallery: dict[str, list[str]], target: str) -> None:
    def find(**filters: object) -> list[str]:
        request = SearchRequest.model_validate(
            {"text": "a circle", "target": target, "k": 200, "filters": {"tags": ["gallery"], **filters}}
        )
        return [hit.image_id for hit in client.search(request, timeout=20).hits]

    everything = find()
    assert set(everything) == set(gallery)
    assert set(find(tags=["gallery", "odd"])) == {i for i in gallery if int(i.split("-")[1]) % 2}
    early = find(captured_to="2026-01-05T00:00:00Z")
    assert set(early) == {f"gallery-{n}" for n in range(4)}
    stars = {i for i, captions in gallery.items() if any(c.endswith("star") for c in captions)}
    assert set(find(classes=["star"])) == stars
    assert set(find(classes=["star"], min_confidence=0.99999)) == set()
    assert find(tags=["nobody has this"]) == []


def test_images_are_ranked_by_what_they_show(client: Client, gallery: dict[str, list[str]]) -> None:
    reply = client.search(SearchRequest(text="a star", filters=SearchFilters(tags=("gallery",)), k=24), timeout=20)
    cosines = [hit.cosine for hit in reply.hits]
    assert cosines == sorted(cosines, reverse=True)
    assert len({hit.image_id for hit in reply.hits}) == len(gallery)
