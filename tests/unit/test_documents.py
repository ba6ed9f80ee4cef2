"""Embedding documents, receipts and dead letters survive their way through a topic; wrong ones are refused."""

from __future__ import annotations

import base64
from datetime import datetime, timezone
from typing import Any

import numpy as np
import orjson
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from sightlog.dead_letters import DeadLetter, Origin
from sightlog.documents import (
    MAX_VERSION,
    Detection,
    EmbeddingDocument,
    ImageDeletion,
    ImageUpdate,
    IndexReceipt,
    ModelRef,
    log_version,
    object_id,
    read_change,
)
from sightlog.errors import ContractError

TIME = datetime(2024, 5, 1, 12, 30, 1, 250_000, tzinfo=timezone.utc)


def document(**facts: Any) -> EmbeddingDocument:
    detection = Detection(
        ordinal=0,
        class_name="star",
        confidence=0.5,
        box=(1, 2, 3, 4),
        box_normalised=(0.1, 0.2, 0.3, 0.4),
        vector=[1.0, 0.0],
    )
    described: dict[str, Any] = {
        "image_id": "image",
        "version": 5,
        "event_id": "1",
        "event_source": "/s",
        "tags": ("a", "b"),
        "captured_at": TIME,
        "uploaded_at": TIME,
        "metadata": {"a": {"b": [1, None]}},
        "sha256": "0" * 64,
        "size_bytes": 10,
        "width": 100,
        "height": 50,
        "model": ModelRef(name="tiny", digest="a" * 64),
        "vector": [0.25, -1.5],
        "detections": (detection,),
    }
    return EmbeddingDocument(**(described | facts))


@given(st.lists(st.floats(width=32, allow_nan=True), min_size=1, max_size=20))
def test_vector_is_packed_little_endian_and_comes_back_bit_by_bit(values: list[float]) -> None:
    vector = np.array(values, dtype=np.float32)
    sent = document(vector=vector).to_kafka()
    packed = base64.b64decode(orjson.loads(sent)["vector"])
    assert packed == vector.astype("<f4").tobytes()
    read = EmbeddingDocument.from_kafka(sent).vector
    assert read.dtype == np.float32
    assert read.tobytes() == vector.tobytes()


@pytest.mark.parametrize("dtype", [np.float64, np.float16, ">f4", np.int32])
def test_vector_of_another_type_is_converted(dtype: Any) -> None:
    assert document(vector=np.array([1, -2], dtype=dtype)).vector.tolist() == [1.0, -2.0]


def test_document_survives_its_topic() -> None:
    sent = document()
    read = EmbeddingDocument.from_kafka(sent.to_kafka())
    assert read.model_dump(mode="json", by_alias=True) == sent.model_dump(mode="json", by_alias=True)
    assert orjson.loads(sent.to_kafka())["detections"][0]["class"] == "star"


def sent_with(**changes: Any) -> bytes:
    return orjson.dumps(orjson.loads(document().to_kafka()) | changes)


@pytest.mark.parametrize(
    "value",
    [
        None,
        b"",
        b"{",
        b"[]",
        b"{}",
        b"\xff",
        b'{"a":' * 300 + b"1" + b"}" * 300,
        sent_with(vector="not base64!"),
        sent_with(vector="YWJj"),
        sent_with(vector="AACA*Pw=="),
        sent_with(vector="grün"),
        sent_with(vector=[[1, 2], [3, 4]]),
        sent_with(vector=["x"]),
        sent_with(vector={}),
        sent_with(vector={"a": 1}),
        sent_with(version=-1),
        sent_with(version=0),
        sent_with(version=2**61),
        sent_with(version=1e30),
        sent_with(width=0),
        sent_with(model={"name": "x", "digest": "short"}),
        sent_with(detections=[{}]),
        sent_with(uploaded_at="0001-01-01T00:00:00+14:00"),
    ],
    ids=lambda value: repr(value)[:40],
)
def test_wrong_document_is_refused(value: bytes | None) -> None:
    with pytest.raises(ContractError) as refused:
        EmbeddingDocument.from_kafka(value)
    assert refused.value.code == "bad_document"
    assert "\n" not in refused.value.message


def test_field_of_a_newer_writer_is_passed_over() -> None:
    assert EmbeddingDocument.from_kafka(sent_with(future=1)).image_id == "image"


def test_receipt_survives_its_topic() -> None:
    receipt = IndexReceipt(image_id="i", version=1, objects=2, uploaded_at=TIME, searchable_at=TIME, superseded=True)
    assert IndexReceipt.from_kafka(receipt.to_kafka()) == receipt
    with pytest.raises(ContractError, match="bad_receipt"):
        IndexReceipt.from_kafka(b"{}")


@given(st.binary(max_size=30), st.lists(st.tuples(st.text("aZ \x00\n\u00e9\U0001f600"), st.binary())))
def test_dead_letter_survives_its_topic_whatever_the_bytes(value: bytes, headers: list[tuple[str, bytes]]) -> None:
    letter = DeadLetter(
        code="undecodable",
        message="why",
        stage="vision",
        origin=Origin(topic="images", partition=1, offset=2, timestamp=TIME),
        failed_at=TIME,
        key=value,
        headers=tuple(headers),
        value=value,
        value_bytes=len(value),
    )
    assert DeadLetter.from_kafka(letter.to_kafka()) == letter


@pytest.mark.parametrize("value", [None, b"", b"{}", b"[", b'{"code":1}'])
def test_wrong_dead_letter_is_refused(value: bytes | None) -> None:
    with pytest.raises(ContractError, match="bad_dead_letter"):
        DeadLetter.from_kafka(value)


NOW_MS = 1_800_000_000_000
YEAR_2093_MS = 3_880_000_000_000


@given(
    st.integers(NOW_MS, YEAR_2093_MS),
    st.integers(0, 2**40),
    st.lists(
        st.tuples(st.integers(0, 3) | st.integers(0, 10**9), st.integers(1, 3) | st.integers(1, 10**7)), max_size=9
    ),
)
@example(NOW_MS, 2**20 - 1, [(0, 1)])
@example(NOW_MS, 5, [(0, 2**20)])
@example(NOW_MS, 2**20 - 1, [(1, 1)])
@example(1_600_000_000_000, 5, [(1, 1)])
@example(NOW_MS**2, 5, [(1, 1)])
def test_version_grows_with_every_record_of_a_partition(time: int, offset: int, steps: list[tuple[int, int]]) -> None:
    """Time never goes back, the offset always grows; many records may share a millisecond."""
    version = log_version(time, offset)
    for later, further in steps:
        time, offset = time + later, offset + further
        before, version = version, log_version(time, offset)
        assert before < version


@given(st.integers(NOW_MS, YEAR_2093_MS), st.integers(0, 10**9), st.integers(0, 10**9), st.integers(954, 10**9))
def test_version_grows_with_time_when_the_image_moves_to_another_partition(
    time: int, old: int, new: int, later: int
) -> None:
    assert log_version(time, old) < log_version(time + later, new)


@given(st.integers(-(2**62), 2**62), st.integers(0, 2**50 - 1))
def test_four_versions_together_fit_into_a_long(time: int, offset: int) -> None:
    assert 0 < log_version(time, offset) <= MAX_VERSION
    assert 4 * MAX_VERSION < 2**63


CHANGES: list[ImageUpdate | ImageDeletion] = [
    ImageUpdate(image_id="i", version=1, event_id="e", event_source="/s", updated_at=TIME, tags=(), metadata={"a": 1}),
    ImageUpdate(image_id="i", version=1, event_id="e", event_source="/s", updated_at=TIME, tags=("a",)),
    ImageDeletion(image_id="i", version=1, event_id="e", event_source="/s", deleted_at=TIME),
]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.type)
def test_update_and_deletion_survive_the_topic_that_embedding_documents_share(change: Any) -> None:
    assert read_change(change.to_kafka()) == change
    assert (
        read_change(document().to_kafka()).model_dump()
        == EmbeddingDocument.from_kafka(document().to_kafka()).model_dump()
    ), "an object without a type is an embedding document"
    with pytest.raises(ContractError, match="bad_document"):
        EmbeddingDocument.from_kafka(change.to_kafka())


@pytest.mark.parametrize("kind", ["upload", 1, [], {}, "x" * 10_000])
def test_change_of_unknown_type_is_refused(kind: Any) -> None:
    with pytest.raises(ContractError) as refused:
        read_change(sent_with(type=kind))
    assert refused.value.code == "bad_document"
    assert len(refused.value.message) < 500


def test_absent_field_of_an_update_is_not_an_empty_one() -> None:
    tags_only = read_change(CHANGES[1].to_kafka())
    assert isinstance(tags_only, ImageUpdate)
    assert (tags_only.tags, tags_only.metadata) == (("a",), None)
    both = read_change(CHANGES[0].to_kafka())
    assert isinstance(both, ImageUpdate)
    assert (both.tags, both.metadata) == ((), {"a": 1})


def test_object_ids_are_derived_and_distinct() -> None:
    assert object_id("image", 3) == "image#3"
    assert len({object_id("image", n) for n in range(100)}) == 100
