"""Tokens sort and compare as what they stand for."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from agents.index.tokens import fact, fact_range, facts, ranked, ranked_range, words, words_asked, words_of_object
from sightlog.filters import SearchFilters

NUMBERS = st.floats(allow_nan=False, allow_infinity=False)


def within(limits: dict[str, str], held: list[str]) -> bool:
    """As Lucene compares terms: by their bytes."""
    low, high = limits["gte"].encode(), limits["lt"].encode()
    return any(low <= token.encode() < high for token in held)


@given(st.lists(st.tuples(st.sampled_from(["a", "a b", "b"]), st.floats(0, 1)), max_size=12), st.data())
def test_detections_are_counted_by_class_and_confidence(detections: list[tuple[str, float]], data: Any) -> None:
    name = data.draw(st.sampled_from(["a", "a b", "b", None]))
    count, least = data.draw(st.integers(1, 5)), data.draw(st.sampled_from([0.0, 0.25, 0.5, 1.0]))
    sure = [c for held, c in detections if name in (None, held) and round(c, 6) >= least]
    assert within(ranked_range(name, count, least), ranked(detections)) == (len(sure) >= count)


def test_more_detections_than_can_be_counted_make_no_more_tokens() -> None:
    held = ranked([("a", 0.5)] * 500)
    assert len(held) == 200
    assert within(ranked_range("a", 100, 0.5), held)
    assert within(ranked_range(None, 100, 0.5), held)


@given(NUMBERS, NUMBERS, NUMBERS)
def test_numbers_compare_as_numbers(value: float, low: float, high: float) -> None:
    held = facts({"n": value})
    assert within(fact_range("n", low, high), held) == (low <= value < high)
    assert within(fact_range("n", low, None), held) == (low <= value)
    assert within(fact_range("n", None, high), held) == (value < high)
    assert (fact("n", low) in held) == (value == low)


@given(st.text(max_size=300), st.text(max_size=256), st.text(max_size=256))
def test_strings_compare_by_code_point_however_long(value: str, low: str, high: str) -> None:
    held = facts({"s": value})
    assert within(fact_range("s", low, high), held) == (low <= value < high)
    assert within(fact_range("s", low, None), held) == (low <= value)
    assert within(fact_range("s", None, high), held) == (value < high)
    assert (fact("s", low) in held) == (value == low)


def test_string_longer_than_a_filter_can_say_equals_none_and_sorts_after_its_beginning() -> None:
    longest = "v" * 256
    for value, equal in ((longest, True), (longest + "a", False), (longest + "z" * 9000, False)):
        held = facts({"s": value})
        assert (fact("s", longest) in held) == equal
        assert within(fact_range("s", longest, None), held)
        assert not within(fact_range("s", None, longest), held)


def test_a_number_a_string_and_a_truth_never_equal_each_other() -> None:
    values: list[Any] = [1, "1", True, 1.5, "true", False, 0, ""]
    for value in values:
        equal = [other for other in values if fact("v", other) in facts({"v": value})]
        assert [(type(other), other) for other in equal] == [(type(value), value)]
        assert not within(fact_range("v", "", None), facts({"v": value})) or isinstance(value, str)
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        assert within(fact_range("v", -1e300, None), facts({"v": value})) == number


def test_paths_are_told_apart_and_arrays_give_each_element() -> None:
    held = facts({"gps": {"lat": 1, "l": [2, {"x": "y"}, [3, None]]}, "gps.lat": 4, "gpsx": 5})
    assert held == [
        fact(path, value)
        for path, value in (
            ("gps.lat", 1.0), ("gps.l", 2.0), ("gps.l.x", "y"), ("gps.l", 3.0), ("gps.lat", 4.0), ("gpsx", 5.0),
        )
    ]  # fmt: skip
    assert not within(fact_range("gp", None, 9.0), held)
    assert not within(fact_range("gps", -9.0, None), held)


def test_equal_numbers_are_one_fact() -> None:
    assert facts({"n": [0, 0.0, -0.0, 1, 1.0]}) == [fact("n", 0.0), fact("n", 1.0)]


def test_what_has_no_order_is_no_fact() -> None:
    assert facts({"a": None, "b": math.inf, "c": math.nan, "d": 10**400, "e": -(10**400)}) == []


@pytest.mark.parametrize(
    "metadata",
    [
        {"k" * 5000: "v", "a": {"b" * 300: 1}},
        {"list": [f"{number}-{'ü' * 300}" for number in range(5000)]},
        {f"key-{number}": number for number in range(50_000)},
        {"p" * 256: list(range(50_000))},
    ],
    ids=["long names", "long values", "many names", "many values"],
)
def test_tokens_of_any_metadata_are_bounded(metadata: dict[str, Any]) -> None:
    held = facts(metadata)
    assert len(held) <= 1024
    assert sum(len(token.encode()) for token in held) <= 64 * 1024
    assert max((len(token.encode()) for token in held), default=0) < 32_766
    found = words(None, (), metadata).split(" ")
    assert len(found) <= 1024
    assert max(map(len, found)) <= 100


def test_words_are_parted_at_everything_that_is_no_letter_or_digit() -> None:
    assert words("IMG_0042.Strand-Nord.jpg", ("Big Dog",), {}) == "img 0042 strand nord jpg big dog"
    assert words(None, (), {"a": ["Nord", {"b": 7}], "c": 1.5, "d": True, "e": None}) == "nord 7 1 5 true"
    assert words_of_object(words("x", ("y",), {}), "Traffic light") == "x y traffic light"
    assert words_of_object("", "star") == "star"


def test_words_are_the_same_however_they_are_written() -> None:
    assert words_asked("STRASSE straße \uff33trasse") == ["strasse"]
    assert words_asked("cafe\u0301") == words_asked("CAFÉ") == ["café"]


def test_ideographs_and_kana_are_words_by_themselves() -> None:
    assert words_asked("東京タワー2024") == ["東", "京", "タ", "ワ", "ー", "2024"]
    assert words_asked("\U00020000\U00020001") == ["\U00020000", "\U00020001"]


def test_words_asked_are_different_and_bounded() -> None:
    assert words_asked("a b A. b?") == ["a", "b"]
    assert len(words_asked(" ".join(map(str, range(900))))) == 64
    assert words_asked("?! --") == []


@pytest.mark.parametrize(
    "beyond",
    [
        {"classes": {"min_count": 101}},
        {"metadata": [{"field": "f" * 257, "equals": 1.0}]},
        {"metadata": [{"field": "f", "equals": "v" * 257}]},
    ],
    ids=["count", "path", "value"],
)
def test_no_filter_asks_for_what_has_no_token(beyond: dict[str, Any]) -> None:
    """The bounds of requests and of tokens belong together."""
    with pytest.raises(ValidationError):
        SearchFilters.model_validate(beyond)
