"""Search messages: where a reply goes, and what can be asked."""

from __future__ import annotations

from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sightlog.errors import ContractError
from sightlog.filters import SearchFilters
from sightlog.reply_address import CORRELATION_ID, DEADLINE, REPLY_PARTITION, REPLY_TOPIC, ReplyAddress
from sightlog.search import Hit, SearchError, SearchReply, SearchRequest

ADDRESS = {REPLY_TOPIC: b"search.replies", CORRELATION_ID: b"\xff\x00\x80opaque"}


def address(**headers: bytes | None) -> ReplyAddress:
    changed = ADDRESS | headers
    return ReplyAddress.from_headers([(name, content) for name, content in changed.items() if content is not None])


def test_headers_of_spring_are_read() -> None:
    read = address(**{REPLY_PARTITION: b"\x00\x00\x01\x02", "__TypeId__": b"com.example.Request"})
    assert read == ReplyAddress("search.replies", 258, b"\xff\x00\x80opaque", None)


def test_partition_and_deadline_may_be_missing() -> None:
    read = address(**{DEADLINE: b"1700000000000"})
    assert (read.partition, read.deadline_ms) == (None, 1_700_000_000_000)
    assert address().deadline_ms is None


@pytest.mark.parametrize(
    "headers",
    [
        {REPLY_TOPIC: None},
        {REPLY_TOPIC: b""},
        {REPLY_TOPIC: "grün".encode()},
        {CORRELATION_ID: None},
        {CORRELATION_ID: b""},
        {REPLY_PARTITION: b"\xff\xff\xff\xff"},
        {REPLY_PARTITION: b"\x80\x00\x00\x00"},
        {REPLY_PARTITION: b"3"},
        {REPLY_PARTITION: b""},
        {REPLY_PARTITION: b"\x00" * 8},
        {DEADLINE: b"soon"},
        {DEADLINE: b""},
        {DEADLINE: b"\xff"},
        {DEADLINE: b"1.5"},
        {DEADLINE: b"nan"},
    ],
    ids=repr,
)
def test_request_that_cannot_be_replied_to_is_refused(headers: dict[str, bytes | None]) -> None:
    with pytest.raises(ContractError) as refused:
        address(**headers)
    assert refused.value.code == "no_reply_address"


@given(
    st.integers(0, 2**31 - 1) | st.none(),
    st.binary(min_size=1, max_size=40),
    st.integers(0, 2**62) | st.none(),
)
def test_address_comes_back_from_its_headers(partition: int | None, correlation: bytes, deadline: int | None) -> None:
    sent = ReplyAddress("topic-1.x", partition, correlation, deadline)
    assert ReplyAddress.from_headers(sent.to_headers()) == sent  # type: ignore[arg-type]


@given(
    st.lists(
        st.tuples(st.sampled_from([REPLY_TOPIC, CORRELATION_ID, REPLY_PARTITION, DEADLINE, "x"]), st.binary(max_size=8))
    )
)
def test_odd_headers_raise_nothing_but_contract_errors(headers: list[tuple[str, bytes]]) -> None:
    try:
        read = ReplyAddress.from_headers([*ADDRESS.items(), *headers])
    except ContractError:
        return
    assert read.partition is None or 0 <= read.partition < 2**31


def test_request_survives_its_topic() -> None:
    filters = SearchFilters(classes=("star",), min_confidence=0.5, tags=("a",), captured_from="2024-05-01T00:00:00Z")
    request = SearchRequest(text="a red star", target="objects", k=3, filters=filters)
    assert SearchRequest.from_kafka(request.to_kafka()) == request
    assert SearchRequest.from_kafka(b'{"text": "x"}') == SearchRequest(text="x")


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"text": ""},
        {"text": " \t\n"},
        {"text": "x" * 2001},
        {"text": 5},
        {"text": None},
        {"text": "x", "k": 0},
        {"text": "x", "k": 1001},
        {"text": "x", "k": "many"},
        {"text": "x", "k": 1.5},
        {"text": "x", "target": "videos"},
        {"text": "x", "filters": {"min_confidence": 1.1}},
        {"text": "x", "filters": {"min_confidence": -0.1}},
        {"text": "x", "filters": {"classes": "star"}},
        {"text": "x", "filters": {"tags": ["t"] * 257}},
        {"text": "x", "filters": {"captured_from": "yesterday"}},
        {"text": "x", "filters": {"captured_from": "0001-01-01T00:00:00+14:00"}},
        {"text": "x", "filters": {"uploaded_to": "9999-12-31T23:59:59-14:00"}},
        {"text": "x", "filters": []},
    ],
    ids=lambda body: repr(body)[:60],
)
def test_request_that_breaks_the_contract_is_refused(body: Any) -> None:
    with pytest.raises(ContractError) as refused:
        SearchRequest.from_kafka(orjson.dumps(body))
    assert refused.value.code == "bad_request"


@pytest.mark.parametrize(
    "value",
    [None, b"", b"{", b"[]", b"null", b"\xff", b'{"text":"\\ud800"}', b'{"text":"x","k":NaN}', b"[" * 10_000],
    ids=lambda value: repr(value)[:20],
)
def test_request_that_is_no_json_object_is_refused(value: bytes | None) -> None:
    with pytest.raises(ContractError, match="bad_request"):
        SearchRequest.from_kafka(value)


def test_reply_survives_its_topic() -> None:
    hit = Hit(
        image_id="i",
        score=0.75,
        cosine=0.5,
        source="s",
        object_id="i#0",
        class_name="star",
        confidence=0.5,
        box=(1, 2, 3, 4),
        width=10,
        height=20,
        uploaded_at="2024-05-01T00:00:00Z",
    )
    for reply in (
        SearchReply(hits=(hit,), model_digest="a" * 64, took_ms=1.5),
        SearchReply(error=SearchError(code="unavailable", message="later")),
    ):
        assert SearchReply.from_kafka(reply.to_kafka()) == reply
    with pytest.raises(ContractError, match="bad_reply"):
        SearchReply.from_kafka(b"{")
