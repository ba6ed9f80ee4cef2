"""What `sightlog ingest` makes of files, folders and generated scenes, and how it tells of failures."""

from __future__ import annotations

import hashlib
import io
import os
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import orjson
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from sightlog import ingest as module
from sightlog.dead_letters import DeadLetter, Origin
from sightlog.documents import IndexReceipt
from sightlog.errors import PublishFailed
from sightlog.events import ImageUploaded, parse_event
from sightlog.fields import now
from sightlog.ingest import Summary, file_upload, ingest, scene_uploads
from sightlog.settings import ClientSettings


@pytest.fixture
def settings(tmp_path: Path) -> ClientSettings:
    return ClientSettings.load(data_dir=tmp_path / "data", inline_limit=10)


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    (folder / "below").mkdir(parents=True)
    (folder / ".hidden").mkdir()
    for name in ("b.jpg", "a.PNG", "below/c.webp", "notes.txt", ".hidden/d.jpg"):
        (folder / name).write_bytes(name.encode())
    return folder


def test_small_file_travels_inside_its_event(pictures: Path, settings: ClientSettings) -> None:
    upload = file_upload(pictures / "b.jpg", settings, ("a", "b"))
    assert upload.image_id == upload.event.sha256 == hashlib.sha256(b"b.jpg").hexdigest()
    assert (upload.event.data, upload.event.dataref) == (b"b.jpg", None)
    assert (upload.event.filename, upload.event.tags) == ("b.jpg", ("a", "b"))
    assert upload.event.datacontenttype == "image/jpeg"
    assert not settings.uploads_dir.exists()


def test_file_above_the_limit_is_stored_and_referred_to(pictures: Path, settings: ClientSettings) -> None:
    upload = file_upload(pictures / "below/c.webp", settings)
    value, headers = upload.event.to_kafka()
    assert value == b""
    event = parse_event(value, headers)  # type: ignore[arg-type]
    stored = settings.uploads_dir / f"{upload.image_id}.webp"
    assert event.dataref == stored.as_uri()
    assert stored.read_bytes() == b"below/c.webp"
    assert event.sha256 == upload.image_id
    assert [file.name for file in settings.uploads_dir.iterdir()] == [stored.name], "no partial file is left"
    assert file_upload(pictures / "below/c.webp", settings).event.dataref == event.dataref


def test_generated_scenes_are_the_same_for_the_same_seed() -> None:
    first, again, other = (list(scene_uploads(2, seed, ("t",))) for seed in (1, 1, 2))
    assert [u.event.data for u in first] == [u.event.data for u in again]
    assert [u.event.data for u in first] != [u.event.data for u in other]
    assert [u.image_id for u in first] == ["scene-1-0", "scene-1-1"]
    event = first[0].event
    assert (event.tags, event.datacontenttype) == (("demo", "t"), "image/jpeg")
    assert event.metadata["shows"]
    assert Image.open(io.BytesIO(event.data or b"")).size == (1280, 960)


class FakeClient:
    """Takes events; those whose filename is in `refused` fail."""

    published: dict[str, ImageUploaded]

    def __init__(self, _settings: ClientSettings, refused: tuple[str, ...] = ()) -> None:
        FakeClient.published = {}
        self._refused = refused

    def __enter__(self) -> FakeClient:
        return self

    def __exit__(self, *_details: object) -> None:
        pass

    def publish_async(self, event: ImageUploaded, *, key: str) -> Future[None]:
        FakeClient.published[key] = event
        outcome: Future[None] = Future()
        if event.filename == "refused.jpg":
            outcome.set_exception(PublishFailed("too large"))
        else:
            outcome.set_result(None)
        return outcome

    def flush(self) -> None:
        pass


class FakeFollower:
    """Says that everything was indexed, except files named `broken.jpg`."""

    def __init__(self, _settings: ClientSettings) -> None:
        pass

    def __enter__(self) -> FakeFollower:
        return self

    def __exit__(self, *_details: object) -> None:
        pass

    def outcomes(self, image_ids: Any) -> Any:
        for image_id in image_ids:
            if FakeClient.published[image_id].filename == "broken.jpg":
                origin = Origin(topic="images", partition=0, offset=0, timestamp=now())
                yield (
                    image_id,
                    DeadLetter(
                        code="undecodable", message="no", stage="vision", origin=origin, failed_at=now(), value_bytes=1
                    ),
                )
            else:
                yield (
                    image_id,
                    IndexReceipt(image_id=image_id, version=1, objects=2, uploaded_at=now(), searchable_at=now()),
                )


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(module, "Client", FakeClient)
    monkeypatch.setattr(module, "Follower", FakeFollower)

    def call(*arguments: str | Path) -> tuple[Result, dict[str, Any]]:
        result = CliRunner().invoke(ingest, [*map(str, arguments), "--json"])
        last = result.stdout.strip().splitlines()[-1:] or [""]
        return result, orjson.loads(last[0]) if last[0].startswith("{") else {}

    return call


def test_folder_is_everything_in_it_that_is_a_picture(run: Any, pictures: Path) -> None:
    result, summary = run(pictures, "--tag", "t")
    assert result.exit_code == 0
    assert sorted(str(e.filename) for e in FakeClient.published.values()) == ["a.PNG", "b.jpg", "c.webp"]
    assert summary["published"] == 3
    assert {event.tags for event in FakeClient.published.values()} == {("t",)}


def test_file_that_is_named_is_taken_whatever_its_suffix(run: Any, pictures: Path) -> None:
    run(pictures / "notes.txt")
    (event,) = FakeClient.published.values()
    assert (event.filename, event.datacontenttype) == ("notes.txt", None)


def test_wait_tells_what_became_of_each_picture(run: Any, pictures: Path) -> None:
    (pictures / "broken.jpg").write_bytes(b"broken")
    result, summary = run(pictures, "--wait")
    assert result.exit_code == 1, "a picture that cannot be found is a failure"
    assert (summary["published"], summary["indexed"], summary["objects"]) == (4, 3, 6)
    assert summary["failed"] == {hashlib.sha256(b"broken").hexdigest(): "undecodable: no"}


def test_picture_that_the_broker_refuses_is_told(run: Any, pictures: Path) -> None:
    (pictures / "refused.jpg").write_bytes(b"refused")
    result, summary = run(pictures, "--wait")
    assert result.exit_code == 1
    assert (summary["published"], list(summary["failed"].values())) == (3, ["too large"])


def test_same_picture_twice_is_waited_for_once(run: Any, pictures: Path) -> None:
    (pictures / "copy.jpg").write_bytes((pictures / "b.jpg").read_bytes())
    result, summary = run(pictures, "--wait")
    assert result.exit_code == 0
    assert (summary["published"], summary["indexed"]) == (4, 3)


def test_nothing_to_do_is_a_usage_error(run: Any, tmp_path: Path) -> None:
    assert run()[0].exit_code == 2
    (tmp_path / "empty").mkdir()
    result, _summary = run(tmp_path / "empty")
    assert result.exit_code == 2
    assert ".webp files in" in result.output
    assert run(tmp_path / "missing")[0].exit_code == 2


def test_picture_that_cannot_be_read_does_not_keep_the_others(run: Any, pictures: Path) -> None:
    (pictures / "dangling.jpg").symlink_to(pictures / "gone.jpg")
    result, summary = run(pictures)
    assert (result.exit_code, summary.get("published")) == (1, 3)
    assert any("dangling.jpg" in name for name in summary["failed"])


def test_file_name_that_is_not_utf8_does_not_keep_the_others(run: Any, pictures: Path) -> None:
    with open(os.fsencode(pictures) + b"/caf\xe9.jpg", "wb") as file:  # noqa: PTH123
        file.write(b"x")
    result, summary = run(pictures)
    assert (result.exit_code, summary.get("published")) == (0, 4)


def test_tags_with_commas_arrive_as_they_are_split(run: Any, pictures: Path) -> None:
    run(pictures / "b.jpg", "--tag", "a,b")
    (event,) = FakeClient.published.values()
    value, headers = event.to_kafka()
    assert parse_event(value, headers).tags == ("a", "b")  # type: ignore[arg-type]


def test_summary_has_a_rate() -> None:
    assert orjson.loads(Summary(published=10, seconds=4.0).to_json())["images_per_s"] == 2.5
    assert orjson.loads(Summary().to_json())["images_per_s"] == 0.0
