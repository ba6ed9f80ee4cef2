"""The vision agent: one embedding document or one dead letter for every record, whatever happens."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from agents.delivery.failures import DependencyDown, ItemBroken, NotYet
from agents.delivery.outbox import Outbox
from agents.inference.quarantine import Quarantine
from agents.inference.results import ImageInference
from agents.inference.seen import Lookup, SeenPictures
from agents.settings import AgentSettings
from agents.sources.reader import SourceReader
from agents.vision import Vision
from models.manifest import load_manifest
from sightlog.dead_letters import DeadLetter
from sightlog.documents import EmbeddingDocument, ImageChange, ImageDeletion, ImageUpdate, log_version, read_change
from sightlog.events import new_deletion, new_update, new_upload
from tests.unit.deliveries import FakeProducer, record

MANIFEST = load_manifest()
DIM = MANIFEST.clip.dim
BINARY = [("ce_specversion", b"1.0"), ("ce_type", b"image.uploaded.v1"), ("ce_id", b"1"), ("ce_source", b"/s")]


def seen(objects: int = 1) -> ImageInference:
    return ImageInference(
        width=200,
        height=100,
        embedding=np.full(DIM, 0.5, np.float32),
        boxes=np.array([[20, 10, 60, 50], [0, 0, 200, 100]], np.float32)[:objects],
        scores=np.array([0.75, 0.5], np.float32)[:objects],
        class_ids=np.array([2, 0], np.int32)[:objects],
        object_embeddings=np.full((objects, DIM), 0.25, np.float32),
    )


class FakeTriton:
    """Sees the same in everything; outcomes given for some bytes come first, in order."""

    def __init__(self, **outcomes: list[Exception]) -> None:
        self.outcomes = outcomes
        self.asked: list[bytes] = []
        self.result = seen()

    async def infer_image(self, data: bytes, timeout: float) -> ImageInference:
        self.asked.append(data)
        waiting = self.outcomes.get(data.decode("latin-1"))
        if waiting:
            raise waiting.pop(0)
        return self.result


class Bench:
    """A vision agent between a fake Triton and a fake broker."""

    def __init__(
        self,
        triton: FakeTriton,
        producer: FakeProducer | None = None,
        lookup: Lookup | None = None,
        **settings: Any,
    ) -> None:
        self.settings = AgentSettings.load(retry_first=1e-6, retry_limit=1e-6, **settings)
        self.triton = triton
        self.producer = producer or FakeProducer()
        outbox = Outbox(
            "vision",
            self.producer,  # type: ignore[arg-type]
            dead_topic=self.settings.topics.dead,
            dead_inline_limit=self.settings.dead_letter_inline_limit,
            backoff=self.settings.backoff,
            retry_topics=("images.retry.10s",),
        )
        self.sources: Any = SourceReader(self.settings.folders, self.settings.max_image_bytes, self.settings.sources)
        seer = Quarantine(triton, self.settings.backoff, spread_s=0)
        self.agent = Vision(self.settings, MANIFEST, seer, self.sources, SeenPictures(2**20, lookup), outbox)

    @property
    def documents(self) -> dict[bytes | None, EmbeddingDocument]:
        sent = self.producer.sent_to(self.settings.topics.embedded)
        assert len({one.key for one in sent}) == len(sent)
        return {one.key: EmbeddingDocument.from_kafka(one.value) for one in sent}

    @property
    def changes(self) -> list[ImageChange]:
        return [read_change(one.value) for one in self.producer.sent_to(self.settings.topics.embedded)]

    @property
    def letters(self) -> list[DeadLetter]:
        return [DeadLetter.from_kafka(one.value) for one in self.producer.sent_to(self.settings.topics.dead)]


async def test_document_says_what_was_seen_where_and_by_which_model() -> None:
    bench = Bench(FakeTriton())
    bench.triton.result = seen(objects=2)
    event = new_upload(
        b"jpeg",
        source="/camera",
        subject="other",
        filename="f.jpg",
        tenant="t",
        tags=("a",),
        capturedat="2024-05-01T00:00:00Z",
        metadata={"n": 1},
        datacontenttype="image/jpeg",
    )
    value, headers = event.to_kafka()
    await bench.agent.see([record(value, headers, b"image-1")])
    ((key, document),) = bench.documents.items()
    assert (key, document.image_id) == (b"image-1", "image-1")
    assert document.version == log_version(1_700_000_000_123, 41)
    assert (document.event_id, document.event_source, document.uploaded_at) == (event.id, "/camera", event.time)
    assert (document.tenant, document.filename, document.tags) == ("t", "f.jpg", ("a",))
    assert (document.captured_at, document.metadata) == (event.capturedat, {"n": 1})
    assert (document.content_type, document.size_bytes) == ("image/jpeg", 4)
    assert document.sha256 == hashlib.sha256(b"jpeg").hexdigest()
    assert (document.width, document.height) == (200, 100)
    assert (document.model.name, document.model.digest) == (MANIFEST.name, MANIFEST.digest)
    assert document.vector.tolist() == [0.5] * DIM
    first, second = document.detections
    assert [first.ordinal, second.ordinal] == [0, 1]
    assert [first.class_name, second.class_name] == [MANIFEST.detector.classes[2], MANIFEST.detector.classes[0]]
    assert first.box == (20, 10, 60, 50)
    assert first.box_normalised == pytest.approx((0.1, 0.1, 0.3, 0.5))
    assert second.box_normalised == (0, 0, 1, 1)
    assert first.confidence == 0.75
    assert first.vector.tolist() == [0.25] * DIM


async def test_picture_without_objects_has_a_document() -> None:
    bench = Bench(FakeTriton())
    bench.triton.result = seen(objects=0)
    await bench.agent.see([record(b"jpeg", BINARY, b"k")])
    assert bench.documents[b"k"].detections == ()


async def test_a_class_without_a_name_is_a_dead_letter() -> None:
    bench = Bench(FakeTriton())
    bench.triton.result = replace(seen(objects=2), class_ids=np.array([0, len(MANIFEST.detector.classes)], np.int32))
    await bench.agent.see([record(b"jpeg", BINARY, b"k")])
    assert [letter.code for letter in bench.letters] == ["unknown_class"]
    assert bench.documents == {}


async def test_upload_time_is_that_of_the_record_when_the_event_has_none() -> None:
    bench, one = Bench(FakeTriton()), record(b"jpeg", BINARY)
    await bench.agent.see([one])
    (document,) = bench.documents.values()
    assert document.uploaded_at == one.time
    assert document.image_id == hashlib.sha256(b"jpeg").hexdigest()


async def test_broken_item_is_one_dead_letter_and_its_neighbours_are_published() -> None:
    bench = Bench(FakeTriton(broken=[ItemBroken("undecodable", "not an image")]))
    await bench.agent.see([record(b"a", BINARY, b"1"), record(b"broken", BINARY, b"2"), record(b"b", BINARY, b"3")])
    assert set(bench.documents) == {b"1", b"3"}
    (letter,) = bench.letters
    assert (letter.code, letter.message, letter.stage, letter.image_id) == (
        "undecodable",
        "not an image",
        "vision",
        "2",
    )
    assert (letter.key, letter.value, letter.value_bytes) == (b"2", b"broken", 6)
    assert (letter.origin.topic, letter.origin.partition, letter.origin.offset) == ("images", 3, 41)
    assert dict(letter.headers) == dict(BINARY)
    assert [one.key for one in bench.producer.sent_to("images.dead")] == [b"2"]


async def test_bytes_above_the_limit_stay_at_the_origin() -> None:
    bench = Bench(FakeTriton(broken=[ItemBroken("undecodable", "no")]), dead_letter_inline_limit=5)
    await bench.agent.see([record(b"broken", BINARY)])
    (letter,) = bench.letters
    assert (letter.value, letter.value_bytes) == (None, 6)


@pytest.mark.parametrize(
    ("value", "headers", "key", "code"),
    [
        (None, BINARY, b"k", "empty"),
        (b"", BINARY, b"k", "empty"),
        (b"jpeg", [], b"k", "not_cloudevent"),
        (b"{", [("content-type", b"application/cloudevents+json")], b"k", "bad_json"),
        (b"jpeg", [*BINARY, ("ce_type", b"image.viewed.v1")], b"k", "unsupported_type"),
        (b"jpeg", [*BINARY, ("ce_metadata", b"[")], b"k", "bad_event"),
        (b"jpeg", BINARY, b"\xff", "bad_image_id"),
        (b"jpeg", BINARY, b"k" * 501, "bad_image_id"),
        (b"jpeg", [*BINARY, ("ce_sha256", b"0" * 64)], b"k", "sha256_mismatch"),
        (None, [*BINARY, ("ce_dataref", b"ftp://example.org/a.jpg")], b"k", "unsupported_source"),
        (None, [*BINARY, ("ce_dataref", b"file:///etc/passwd")], b"k", "source_not_allowed"),
        (None, [*BINARY, ("ce_dataref", b"file://[")], b"k", "unsupported_source"),
        (b"x" * 101, BINARY, b"k", "too_large"),
    ],
    ids=lambda part: part if isinstance(part, str) else "",
)
async def test_event_that_cannot_be_read_is_a_dead_letter_without_inference(
    value: bytes | None, headers: list[tuple[str, bytes]], key: bytes, code: str
) -> None:
    bench = Bench(FakeTriton(), max_image_bytes=100)
    await bench.agent.see([record(value, headers, key)])
    assert [letter.code for letter in bench.letters] == [code]
    assert bench.documents == {}
    assert bench.triton.asked == []


async def test_triton_that_is_down_is_waited_for_and_nothing_is_buried() -> None:
    bench = Bench(FakeTriton(jpeg=[DependencyDown("starting")] * 5))
    await bench.agent.see([record(b"jpeg", BINARY, b"k")])
    assert list(bench.documents) == [b"k"]
    assert bench.letters == []
    assert len(bench.triton.asked) == 6


async def test_broken_item_is_not_tried_again_once_triton_is_back() -> None:
    bench = Bench(FakeTriton(jpeg=[DependencyDown("starting"), ItemBroken("undecodable", "no")]))
    await bench.agent.see([record(b"jpeg", BINARY, b"k")])
    assert [letter.code for letter in bench.letters] == ["undecodable"]
    assert bench.documents == {}


async def test_broker_that_is_down_is_waited_for() -> None:
    bench = Bench(FakeTriton(), FakeProducer(DependencyDown("1"), DependencyDown("2")))
    await bench.agent.see([record(b"jpeg", BINARY, b"k")])
    assert list(bench.documents) == [b"k"]
    assert len(bench.triton.asked) == 1, "the picture is not seen again because of the broker"


async def test_document_that_no_record_can_hold_is_a_dead_letter() -> None:
    bench = Bench(FakeTriton(), FakeProducer(ItemBroken("record_too_large", "no")))
    await bench.agent.see([record(b"jpeg", BINARY, b"k")])
    assert [letter.code for letter in bench.letters] == ["record_too_large"]


async def test_bug_is_not_swallowed() -> None:
    bench = Bench(FakeTriton(jpeg=[RuntimeError("bug")]))
    with pytest.raises(RuntimeError):
        await bench.agent.see([record(b"jpeg", BINARY, b"k")])
    assert bench.producer.sent == []


async def test_update_and_deletion_pass_on_without_inference() -> None:
    bench = Bench(FakeTriton())
    updated, deleted = new_update(source="/s", tags=("a",)), new_deletion(source="/s", subject="image")
    for structured in (False, True):
        for offset, event in enumerate((updated, deleted), 7):
            await bench.agent.see([record(*event.to_kafka(structured=structured), b"image", offset=offset)])
    update, deletion = bench.changes[:2]
    assert bench.changes[2:] == [update, deletion]
    at = 1_700_000_000_123
    assert isinstance(update, ImageUpdate)
    assert (update.image_id, update.version, update.event_id) == ("image", log_version(at, 7), updated.id)
    assert (update.tags, update.metadata, update.updated_at) == (("a",), None, updated.time)
    assert isinstance(deletion, ImageDeletion)
    assert (deletion.image_id, deletion.version, deletion.deleted_at) == ("image", log_version(at, 8), deleted.time)
    assert {one.key for one in bench.producer.sent} == {b"image"}
    assert bench.triton.asked == []


@pytest.mark.parametrize("event", [new_update(source="/s", tags=()), new_deletion(source="/s")])
async def test_change_of_no_image_is_a_dead_letter(event: Any) -> None:
    bench = Bench(FakeTriton())
    await bench.agent.see([record(*event.to_kafka())])
    assert [letter.code for letter in bench.letters] == ["bad_image_id"]


async def test_file_that_is_not_there_yet_is_tried_later_with_the_version_of_its_first_attempt() -> None:
    bench = Bench(FakeTriton())
    read = bench.sources.read
    not_yet = NotYet("source_missing", "not there")

    async def missing(event: Any) -> Any:
        raise not_yet

    bench.sources.read = missing
    await bench.agent.see([record(b"jpeg", BINARY, b"k")])
    (waiting,) = bench.producer.sent_to("images.retry.10s")
    assert bench.documents == {}
    bench.sources.read = read
    back = record(waiting.value, waiting.headers, waiting.key, offset=99, timestamp_ms=1_800_000_000_000)
    await bench.agent.see([back])
    assert bench.documents[b"k"].version == log_version(1_700_000_000_123, 41) < log_version(1_800_000_000_000, 99)
    bench.sources.read = missing
    await bench.agent.see([back])
    assert [letter.code for letter in bench.letters] == ["source_missing"]


async def test_same_bytes_again_are_not_inferred_again_and_the_document_says_so() -> None:
    bench = Bench(FakeTriton())
    await bench.agent.see([record(b"jpeg", BINARY, key) for key in (b"1", b"2")])
    await bench.agent.see([record(b"other", BINARY, b"3")])
    assert bench.triton.asked == [b"jpeg", b"other"]
    documents = bench.documents
    assert [documents[key].reused for key in (b"1", b"2", b"3")] == [False, True, False]
    first, second = documents[b"1"], documents[b"2"]
    assert first.vector.tobytes() == second.vector.tobytes()
    assert first.model_dump(mode="json", exclude={"image_id", "reused"}) == second.model_dump(
        mode="json", exclude={"image_id", "reused"}
    )


async def test_what_the_index_knows_is_not_inferred() -> None:
    async def known(sha256: str) -> ImageInference | None:
        return seen(2) if sha256 == hashlib.sha256(b"jpeg").hexdigest() else None

    bench = Bench(FakeTriton(), lookup=known)
    await bench.agent.see([record(b"jpeg", BINARY, b"1"), record(b"other", BINARY, b"2")])
    assert bench.triton.asked == [b"other"]
    assert [bench.documents[key].reused for key in (b"1", b"2")] == [True, False]
    assert len(bench.documents[b"1"].detections) == 2
