"""Image events in both modes: what is read, what is refused and with which code, and that nothing else ever happens."""

from __future__ import annotations

import base64
import hashlib
from datetime import datetime, timedelta, timezone
from typing import Any

import orjson
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from sightlog.errors import ContractError
from sightlog.events import (
    IMAGE_UPLOADED,
    MAX_IMAGE_ID_BYTES,
    MAX_METADATA_DEPTH,
    STRUCTURED_CONTENT_TYPE,
    ImageDeleted,
    ImageUpdated,
    ImageUploaded,
    new_deletion,
    new_update,
    new_upload,
    parse_event,
)

BINARY = {"ce_specversion": b"1.0", "ce_type": IMAGE_UPLOADED.encode(), "ce_id": b"1", "ce_source": b"/camera/3"}
STRUCTURED = {"specversion": "1.0", "type": IMAGE_UPLOADED, "id": "1", "source": "/camera/3", "data_base64": "anBlZw=="}


def binary(value: bytes | None = b"jpeg", **headers: bytes | None) -> Any:
    changed = BINARY | {name.replace("content_type", "content-type"): content for name, content in headers.items()}
    return parse_event(value, [(name, content) for name, content in changed.items() if content is not None])


def structured(
    content_type: bytes = STRUCTURED_CONTENT_TYPE.encode(), *, raw: bytes | None = None, **attributes: Any
) -> Any:
    body = {name: value for name, value in (STRUCTURED | attributes).items() if value is not ...}
    return parse_event(orjson.dumps(body) if raw is None else raw, [("content-type", content_type)])


def refusal(read: Any, *args: Any, **kwargs: Any) -> str:
    with pytest.raises(ContractError) as refused:
        read(*args, **kwargs)
    assert len(refused.value.message) < 2000, "a message must not make its dead letter too large"
    return refused.value.code


# What producers write -----------------------------------------------------------------------------------------------

#: A few characters of every kind; building tables of all of Unicode takes longer than the tests.
_alphabet = "aZ09 ,;:/\\%+=_-.\"'{}[]\x00\t\r\n\x7f\u00e9\u00df\u0130\u2028\u6f22\ufeff\U0001f600"
#: Names hold no control characters.
_words = st.text([character for character in _alphabet if character.isprintable()], min_size=1, max_size=20)
#: Keys of metadata are paths: dots part their names, and no name is empty.
_keys = _words.filter(lambda key: all(part.strip() for part in key.split(".")))
_tags = st.lists(_words.map(str.strip).filter(lambda tag: tag and "," not in tag), max_size=4).map(tuple)
_times = st.datetimes(datetime(1900, 1, 1), datetime(2200, 1, 1)) | st.datetimes(
    datetime(1900, 1, 1), datetime(2200, 1, 1), timezones=st.sampled_from([timezone.utc, timezone(timedelta(hours=-9))])
)
_json = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | _words,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_keys, inner, max_size=3),
    max_leaves=8,
)
_uploads = st.builds(
    new_upload,
    data=st.binary(min_size=1, max_size=50),
    source=_words,
    subject=st.none() | _words,
    datacontenttype=st.sampled_from([None, "image/jpeg", "image/png; x=1"]),
    sha256=st.none() | st.just("0" * 64),
    tenant=st.none() | _words,
    filename=st.none() | _words,
    tags=_tags,
    capturedat=st.none() | _times,
    metadata=st.dictionaries(_keys, _json, max_size=3),
)


@given(_uploads, st.booleans())
def test_what_is_written_is_read_back_in_either_mode(event: ImageUploaded, in_structured_mode: bool) -> None:
    value, headers = event.to_kafka(structured=in_structured_mode)
    assert parse_event(value, headers) == event  # type: ignore[arg-type]


@given(st.booleans())
def test_reference_is_read_back_in_either_mode(in_structured_mode: bool) -> None:
    event = new_upload(source="/s", dataref="file:///a%20b.jpg", sha256="a" * 64)
    value, headers = event.to_kafka(structured=in_structured_mode)
    assert parse_event(value, headers) == event  # type: ignore[arg-type]


def test_binary_mode_is_plain_headers_and_the_file_itself() -> None:
    event = new_upload(b"jpeg", source="/s", tags=("a", "b"), metadata={"n": 1}, datacontenttype="image/jpeg")
    value, headers = event.to_kafka()
    assert value == b"jpeg"
    sent = dict(headers)
    assert (sent["ce_specversion"], sent["ce_type"], sent["content-type"]) == (
        b"1.0",
        IMAGE_UPLOADED.encode(),
        b"image/jpeg",
    )
    assert (sent["ce_tags"], sent["ce_metadata"], sent["ce_id"]) == (b"a,b", b'{"n":1}', event.id.encode())


def test_least_event_of_a_foreign_producer_is_enough() -> None:
    assert (binary().data, structured().data) == (b"jpeg", b"jpeg")
    assert binary().time is None


def test_header_names_are_read_whatever_their_case() -> None:
    headers = [(name.upper(), content) for name, content in BINARY.items()]
    assert parse_event(b"jpeg", headers).source == "/camera/3"
    read = parse_event(orjson.dumps(STRUCTURED), [("Content-Type", STRUCTURED_CONTENT_TYPE.encode())])
    assert isinstance(read, ImageUploaded)
    assert read.data == b"jpeg"


@pytest.mark.parametrize(
    "content_type", [b"application/cloudevents+json; charset=utf-8", b" Application/CloudEvents+JSON "]
)
def test_content_type_may_have_parameters_and_capitals(content_type: bytes) -> None:
    assert structured(content_type).data == b"jpeg"


def test_of_two_headers_of_one_name_the_last_counts() -> None:
    headers = [*BINARY.items(), ("ce_id", b"2"), ("CE_ID", b"3")]
    assert parse_event(b"jpeg", headers).id == "3"


def test_attributes_of_a_newer_producer_are_passed_over() -> None:
    assert binary(ce_future=b"x").id == structured(future={"a": 1}).id == "1"


def test_time_without_zone_is_utc_and_others_become_utc() -> None:
    assert binary(ce_time=b"2024-05-01T12:00:00").time == datetime(2024, 5, 1, 12, tzinfo=timezone.utc)
    assert binary(ce_time=b"2024-05-01T12:00:00+02:00").time == datetime(2024, 5, 1, 10, tzinfo=timezone.utc)


@pytest.mark.parametrize(
    ("tags", "expected"), [(b"a, b ,,c", ("a", "b", "c")), (b"", ()), (b" , ", ()), ("grün".encode(), ("grün",))]
)
def test_tags_are_a_comma_list_in_headers(tags: bytes, expected: tuple[str, ...]) -> None:
    assert binary(ce_tags=tags).tags == expected
    assert structured(tags=tags.decode()).tags == expected


def test_tags_are_a_list_in_json() -> None:
    assert structured(tags=["a", "b, c"]).tags == ("a", "b, c")


def test_metadata_is_an_object_or_its_json() -> None:
    assert binary(ce_metadata=b'{"a": {"b": [1]}}').metadata == {"a": {"b": [1]}}
    assert structured(metadata={"a": 1}).metadata == structured(metadata='{"a": 1}').metadata == {"a": 1}


def nested(levels: int) -> bytes:
    return b'{"a":' * levels + b"1" + b"}" * levels


def test_metadata_may_be_as_deep_as_opensearch_takes_it() -> None:
    assert binary(ce_metadata=nested(MAX_METADATA_DEPTH)).metadata
    assert refusal(binary, ce_metadata=nested(MAX_METADATA_DEPTH + 1)) == "bad_event"
    assert refusal(structured, metadata=orjson.loads(nested(MAX_METADATA_DEPTH + 1))) == "bad_event"
    assert refusal(binary, ce_metadata=b'{"a":' + b"[" * 30 + b"]" * 30 + b"}") == "bad_event"


# What is refused ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [None, b""])
def test_no_bytes_and_no_reference_is_empty(value: bytes | None) -> None:
    assert refusal(binary, value) == "empty"
    assert refusal(parse_event, value, [("content-type", STRUCTURED_CONTENT_TYPE.encode())]) == "empty"
    assert refusal(structured, data_base64=...) == "empty"
    assert refusal(structured, data_base64="") == "empty"
    assert refusal(structured, data_base64=..., dataref="") == "empty"


@pytest.mark.parametrize("missing", ["ce_specversion", "ce_type"])
def test_record_without_the_attributes_is_no_cloudevent(missing: str) -> None:
    assert refusal(binary, **{missing: None}) == "not_cloudevent"


@pytest.mark.parametrize("raw", [b"{}", b"[]", b"1", b"null", b'"x"', b'{"type":"image.uploaded.v1"}'])
def test_json_without_specversion_is_no_cloudevent(raw: bytes) -> None:
    assert refusal(structured, raw=raw) == "not_cloudevent"


def test_plain_record_is_no_cloudevent() -> None:
    assert refusal(parse_event, b"jpeg", []) == "not_cloudevent"
    assert refusal(parse_event, orjson.dumps(STRUCTURED), [("content-type", b"application/json")]) == "not_cloudevent"


@pytest.mark.parametrize(
    "raw",
    [b"{", b"\xff\xfe", b'{"a":NaN}', b'{"a":Infinity}', b'{"a":1e999}', b'{"a":"\\ud800"}', b"[" * 100_000, b"{}x"],
    ids=repr,
)
def test_what_is_not_json_is_bad_json(raw: bytes) -> None:
    assert refusal(structured, raw=raw) == "bad_json"


@pytest.mark.parametrize("kind", ["image.uploaded.v2", "IMAGE.UPLOADED.V1", "", "x" * 100_000])
def test_other_types_are_unsupported(kind: str) -> None:
    assert refusal(binary, ce_type=kind.encode()) == "unsupported_type"
    assert refusal(structured, type=kind) == "unsupported_type"


@pytest.mark.parametrize("kind", [1, None, [IMAGE_UPLOADED], {"a": 1}])
def test_types_that_are_no_string_are_unsupported(kind: Any) -> None:
    assert refusal(structured, type=kind) == "unsupported_type"


@pytest.mark.parametrize(
    "headers",
    [
        {"ce_id": None},
        {"ce_source": None},
        {"ce_id": b""},
        {"ce_specversion": b"0.3"},
        {"ce_time": b"yesterday"},
        {"ce_time": b"0001-01-01T00:00:00+14:00"},
        {"ce_time": b"9999-12-31T23:59:59-14:00"},
        {"ce_capturedat": b"0001-01-01T00:00:00+00:01"},
        {"ce_sha256": b"abc"},
        {"ce_sha256": b"A" * 64},
        {"ce_dataref": b"file:///a.jpg"},
        {"ce_metadata": b"[1]"},
        {"ce_metadata": b"1"},
        {"ce_metadata": b"null"},
        {"ce_metadata": b"{"},
        {"ce_metadata": b""},
        {"ce_metadata": b'{"a":NaN}'},
        {"ce_metadata": nested(300)},
        {"ce_metadata": b"[" * 100_000},
        {"ce_tags": b",".join(b"%d" % n for n in range(257))},
        {"ce_id": b"\xff"},
        {"ce_metadata": b'{"a":"\xff"}'},
        {"content_type": b"image/\xe9"},
        {"ce_future\u00e9": b"\xff"},
        {"ce_filename": b"x" * 2000},
    ],
    ids=repr,
)
def test_attributes_that_break_the_contract_are_a_bad_event(headers: dict[str, bytes | None]) -> None:
    assert refusal(binary, **headers) == "bad_event"


@pytest.mark.parametrize(
    "attributes",
    [
        {"dataref": "file:///a.jpg"},
        {"data_base64": "not base64!"},
        {"data_base64": "YQ"},
        {"data_base64": "anBl\nZw=="},
        {"data_base64": "grün"},
        {"data_base64": 5},
        {"data_base64": {"a": 1}},
        {"id": 5},
        {"id": None},
        {"tags": [1]},
        {"tags": {"a": 1}},
        {"metadata": [1]},
        {"metadata": "[1]"},
        {"metadata": orjson.loads(nested(200))},
        {"time": 1e300},
        {"time": "0001-01-01T00:00:00+14:00"},
        {"time": {"a": 1}},
        {"specversion": 1.0},
    ],
    ids=lambda attributes: repr(attributes)[:60],
)
def test_json_attributes_that_break_the_contract_are_a_bad_event(attributes: dict[str, Any]) -> None:
    assert refusal(structured, **attributes) == "bad_event"


@pytest.mark.parametrize("name", ["ce_data_base64", "ce_data", "CE_DATA_BASE64"])
def test_header_never_stands_for_the_bytes(name: str) -> None:
    smuggled = [*BINARY.items(), (name, base64.b64encode(b"other"))]
    read = parse_event(b"jpeg", smuggled)
    assert isinstance(read, ImageUploaded)
    assert read.data == b"jpeg"
    assert refusal(parse_event, b"", smuggled) == "empty"


# Which image it is --------------------------------------------------------------------------------------------------


def test_image_id_is_the_key_else_the_subject_else_the_digest() -> None:
    named, plain = binary(ce_subject=b"subject"), binary()
    assert named.image_id(b"key") == "key"
    assert named.image_id(None) == named.image_id(b"") == "subject"
    assert plain.image_id(None) == hashlib.sha256(b"jpeg").hexdigest()
    assert binary(ce_subject=b"").image_id(None) == hashlib.sha256(b"jpeg").hexdigest()
    assert binary(None, ce_dataref=b"file:///a", ce_sha256=b"a" * 64).image_id(None) == "a" * 64


def test_image_without_any_identity_is_refused() -> None:
    assert refusal(binary(None, ce_dataref=b"file:///a").image_id, None) == "bad_image_id"


@pytest.mark.parametrize("key", [b"\xff", b"k" * (MAX_IMAGE_ID_BYTES + 1), "ü".encode() * 251, b"\xff" * 10_000])
def test_key_that_opensearch_cannot_take_as_an_id_is_refused(key: bytes) -> None:
    assert refusal(binary().image_id, key) == "bad_image_id"


def test_longest_key_leaves_room_for_the_ordinals_of_objects() -> None:
    assert len(f"{binary().image_id(b'k' * MAX_IMAGE_ID_BYTES)}#99".encode()) <= 512


def test_subject_is_measured_in_bytes_too() -> None:
    event = binary(ce_subject="ü".encode() * (MAX_IMAGE_ID_BYTES // 2 + 1))
    assert refusal(event.image_id, None) == "bad_image_id"
    assert event.image_id(b"key") == "key"


# Nothing but ContractError ------------------------------------------------------------------------------------------

_names = st.sampled_from(
    [f"ce_{name}" for name in (*ImageUploaded.model_fields, "data_base64", "future")] + ["content-type", "CE_TYPE", ""]
)
_contents = (
    st.binary(max_size=30)
    | st.text(_alphabet + "\ud800", max_size=20).map(lambda text: text.encode("utf-8", "surrogatepass"))
    | st.sampled_from([b"1.0", IMAGE_UPLOADED.encode(), STRUCTURED_CONTENT_TYPE.encode(), b"null", b"[]", nested(400)])
    | st.datetimes(timezones=st.just(timezone(timedelta(hours=14)))).map(lambda time: time.isoformat().encode())
    | _json.map(orjson.dumps)
)


_CODES = {"empty", "not_cloudevent", "bad_json", "unsupported_type", "bad_event", "bad_image_id"}


def nothing_but_contract_errors(value: bytes | None, headers: list[tuple[str, bytes]], key: bytes | None) -> None:
    try:
        event = parse_event(value, headers)
        image_id = event.image_id(key)
    except ContractError as error:
        refused: str | None = error.code
    else:
        refused = None
        assert 0 < len(image_id.encode()) <= MAX_IMAGE_ID_BYTES
        event.to_kafka()
        event.to_kafka(structured=True)
    assert refused is None or refused in _CODES


@given(
    st.none() | st.binary(max_size=60),
    st.lists(st.tuples(st.text(_alphabet, max_size=12), _contents)),
    st.binary(max_size=9),
)
def test_random_records_raise_nothing_but_contract_errors(
    value: bytes | None, headers: list[tuple[str, bytes]], key: bytes
) -> None:
    nothing_but_contract_errors(value, headers, key)


@given(st.none() | st.binary(max_size=20), st.lists(st.tuples(_names, _contents), max_size=6), st.none() | _contents)
@example(b"x", [("ce_time", b"0001-01-01T00:00:00+14:00")], None)
def test_odd_headers_raise_nothing_but_contract_errors(
    value: bytes | None, headers: list[tuple[str, bytes]], key: bytes | None
) -> None:
    nothing_but_contract_errors(value, [*BINARY.items(), *headers], key)


@given(st.dictionaries(st.sampled_from([*STRUCTURED, *ImageUploaded.model_fields]), _json, max_size=4), _json)
def test_odd_json_raises_nothing_but_contract_errors(attributes: dict[str, Any], instead: Any) -> None:
    headers = [("content-type", STRUCTURED_CONTENT_TYPE.encode())]
    nothing_but_contract_errors(orjson.dumps(STRUCTURED | attributes), headers, None)
    nothing_but_contract_errors(orjson.dumps(instead), headers, None)


# Updates and deletions ----------------------------------------------------------------------------------------------

_metadata = st.dictionaries(_keys, _json, max_size=3)


@given(st.none() | _tags, st.none() | _metadata, st.booleans())
@example((), None, False)
@example(None, {}, False)
@example((), {}, True)
def test_an_update_survives_both_modes(tags: Any, metadata: Any, in_json: bool) -> None:
    if tags is None and metadata is None:
        with pytest.raises(ValueError, match="at least one"):
            new_update(source="/s", subject="image")
        return
    event = new_update(source="/s", subject="image", tags=tags, metadata=metadata)
    value, headers = event.to_kafka(structured=in_json)
    read = parse_event(value, [(name, bytes(content)) for name, content in headers])  # type: ignore[arg-type]
    assert read == event
    assert isinstance(read, ImageUpdated)


@pytest.mark.parametrize("value", [None, b"", b"whatever"])
def test_a_deletion_needs_no_value(value: bytes | None) -> None:
    read = binary(value, ce_type=b"image.deleted.v1")
    assert isinstance(read, ImageDeleted)
    assert read.image_id(b"key") == "key"


@pytest.mark.parametrize("in_json", [False, True])
def test_a_deletion_survives_both_modes(in_json: bool) -> None:
    event = new_deletion(source="/s", subject="image")
    value, headers = event.to_kafka(structured=in_json)
    assert parse_event(value, [(name, bytes(content)) for name, content in headers]) == event  # type: ignore[arg-type]


def test_update_in_headers_says_what_it_replaces() -> None:
    tags = binary(None, ce_type=b"image.updated.v1", ce_tags=b"a, b")
    assert (tags.tags, tags.metadata) == (("a", "b"), None)
    cleared = binary(b"", ce_type=b"image.updated.v1", ce_tags=b"", ce_metadata=b'{"a": {"b": 1}}')
    assert (cleared.tags, cleared.metadata) == ((), {"a": {"b": 1}})


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"ce_metadata": b"null"},
        {"ce_metadata": b"[1]"},
        {"ce_metadata": b"{"},
        {"ce_metadata": b""},
        {"ce_tags": b"t" * 1025},
        {"ce_tags": b",".join(b"%d" % n for n in range(257))},
        {"ce_metadata": b'{"a":' * 17 + b"1" + b"}" * 17},
        {"ce_tags": b"a", "ce_time": b"yesterday"},
    ],
    ids=lambda headers: repr(headers)[:40],
)
def test_wrong_update_is_refused(headers: dict[str, bytes]) -> None:
    assert refusal(binary, None, ce_type=b"image.updated.v1", **headers) == "bad_event"


@pytest.mark.parametrize("event", [new_update(source="/s", tags=("a",)), new_deletion(source="/s")])
def test_update_and_deletion_must_say_of_which_image(event: Any) -> None:
    assert refusal(event.image_id, None) == "bad_image_id"
    assert event.image_id(b"k") == "k"
    assert event.model_copy(update={"subject": "s"}).image_id(None) == "s"
    assert refusal(event.image_id, b"\xff") == "bad_image_id"
    assert refusal(event.image_id, b"k" * (MAX_IMAGE_ID_BYTES + 1)) == "bad_image_id"
