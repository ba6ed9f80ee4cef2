"""Cursors: a page comes back as it was, and nothing else is taken for one."""

from __future__ import annotations

import base64
import hashlib
import hmac
import multiprocessing
import stat
import string
from dataclasses import fields
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agents.index.cursor_key import cursor_key
from agents.index.cursors import Cursors, Page
from agents.index.question import VectorQuestion
from agents.settings import AgentSettings
from sightlog.errors import ConfigurationError, ContractError
from sightlog.filters import ClassFilter, MetadataFilter, SearchFilters, TagFilter
from sightlog.search import MAX_CURSOR

KEY = b"k" * 32
DIGEST = "d" * 64


class _Clock:
    now = 1_000.0

    def __call__(self) -> float:
        return self.now


def cursors(key: bytes = KEY, digest: str = DIGEST) -> Cursors:
    return Cursors(key, 60, digest, _Clock())


def page(**changes: Any) -> Page:
    facts: dict[str, Any] = {
        "pit": "46ToAwMDaWR5BXV1aWQyKwZub2RlXzM",
        "target": "objects",
        "k": 10,
        "offset": 30,
        "question": VectorQuestion(np.array([0.6, -0.8], np.float32), 12.5, -3.25),
        "lexical": "Küste",
        "fusion": "weighted",
        "lexical_weight": 0.3,
        "filters": SearchFilters(
            classes=ClassFilter(any=("dog",), none=("cat",)),
            min_confidence=0.25,
            tags=TagFilter(all=("a",)),
            captured_from=datetime(2026, 1, 1, 12, 0, 0, 123456, tzinfo=timezone.utc),
            metadata=(
                MetadataFilter(field="n", equals=1.0),
                MetadataFilter(field="b", equals=True),
                MetadataFilter(field="s", at_least="a", below="b"),
            ),
        ),
        "min_relevance": 0.1,
        "group": "image",
        "include_vectors": True,
        "exact": True,
    }
    return Page(**(facts | changes))


def assert_same(found: Page, expected: Page) -> None:
    for one in fields(Page):
        if one.name != "question":
            assert getattr(found, one.name) == getattr(expected, one.name), one.name
    if expected.question is None:
        assert found.question is None
    else:
        assert found.question is not None
        assert found.question.vector.dtype == np.float32
        assert found.question.vector.tobytes() == expected.question.vector.tobytes()
        assert (found.question.slope, found.question.intercept) == (
            expected.question.slope,
            expected.question.intercept,
        )


def refusal(token: str, of: Cursors | None = None) -> str:
    with pytest.raises(ContractError) as refused:
        (of or cursors()).read(token)
    return refused.value.code


finite = st.floats(allow_nan=False, allow_infinity=False)
text = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=200)
questions = st.builds(
    VectorQuestion,
    st.lists(st.floats(width=32, allow_nan=False), min_size=1, max_size=64).map(lambda v: np.array(v, np.float32)),
    st.none() | finite,
    finite,
)
pages = st.builds(
    Page,
    pit=text,
    target=st.sampled_from(["images", "objects"]),
    k=st.integers(1, 1000),
    offset=st.integers(0, 10_000),
    question=st.none() | questions,
    lexical=st.none() | text,
    fusion=st.sampled_from(["rrf", "weighted"]),
    lexical_weight=st.floats(0, 1),
    filters=st.builds(
        SearchFilters,
        classes=st.builds(ClassFilter, any=st.lists(text, max_size=3).map(tuple), min_count=st.integers(1, 100)),
        uploaded_from=st.none() | st.datetimes(timezones=st.just(timezone.utc)),
        min_area=st.none() | st.floats(0, 1),
        metadata=st.lists(st.builds(MetadataFilter, field=text, equals=text | st.booleans() | finite), max_size=3).map(
            tuple
        ),
    ),
    min_relevance=st.none() | st.floats(0, 1),
    group=st.sampled_from([None, "image"]),
    include_vectors=st.booleans(),
    exact=st.booleans(),
)


@given(pages)
def test_page_comes_back_as_it_was(expected: Page) -> None:
    assert_same(cursors().read(cursors().token(expected)), expected)


@pytest.mark.parametrize("changes", [{}, {"question": None}, {"filters": SearchFilters()}], ids=str)
def test_page_of_every_mode_comes_back(changes: dict[str, Any]) -> None:
    assert_same(cursors().read(cursors().token(page(**changes))), page(**changes))


def test_every_flipped_bit_is_refused() -> None:
    token = cursors().token(page())
    for place in range(len(token)):
        for bit in range(7):
            flipped = chr(ord(token[place]) ^ 1 << bit)
            assert refusal(token[:place] + flipped + token[place + 1 :]) == "bad_cursor"


def test_every_cut_and_every_addition_is_refused() -> None:
    token = cursors().token(page())
    for length in range(len(token)):
        assert refusal(token[:length]) == "bad_cursor"
    for more in ("=", "A", "\n", " ", "é", "\ud800", token):
        assert refusal(token + more) == "bad_cursor"
        assert refusal(more + token) == "bad_cursor"


@given(st.text(max_size=300) | st.text(string.ascii_letters + string.digits + "-_", min_size=43, max_size=300))
def test_nothing_made_up_is_taken(token: str) -> None:
    assert refusal(token) == "bad_cursor"


def test_bloated_cursor_is_refused_before_its_signature_is_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hmac, "digest", lambda *_: pytest.fail("hashed"))
    assert refusal("A" * (MAX_CURSOR + 1)) == "bad_cursor"


def test_forged_content_is_not_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    token = cursors(b"other" * 8).token(page())
    monkeypatch.setattr(base64, "urlsafe_b64decode", lambda *_: pytest.fail("decoded"))
    assert refusal(token) == "bad_cursor"


def test_cursor_of_another_model_is_refused() -> None:
    assert refusal(cursors(digest="e" * 64).token(page())) == "bad_cursor"


def test_cursor_of_another_version_is_refused() -> None:
    token = cursors().token(page())
    content = bytearray(base64.urlsafe_b64decode(token[43:] + "=" * (-len(token[43:]) % 4)))
    content[0] += 1
    other = base64.urlsafe_b64encode(content).rstrip(b"=")
    signature = base64.urlsafe_b64encode(hmac.digest(KEY, other, hashlib.sha256)).rstrip(b"=")
    assert refusal((signature + other).decode()) == "bad_cursor"


def test_cursor_lives_to_its_time_and_is_then_said_to_be_expired() -> None:
    ours, clock = cursors(), _Clock()
    ours._clock = clock
    token = ours.token(page())
    clock.now += 59.9
    assert ours.read(token).offset == 30
    clock.now += 0.1
    assert refusal(token, ours) == "expired_cursor"


def test_another_worker_with_the_same_key_goes_on() -> None:
    assert cursors().read(cursors().token(page())).k == 10


def test_cursor_of_a_large_model_fits_and_one_of_immense_filters_is_not_made() -> None:
    large = page(question=VectorQuestion(np.ones(2048, np.float32)), pit="p" * 4000)
    assert len(cursors().token(large)) < MAX_CURSOR / 3
    immense = SearchFilters(tags=TagFilter(any=tuple(f"{n:01000}" for n in range(100))))
    with pytest.raises(ContractError) as refused:
        cursors().token(page(filters=immense))
    assert refused.value.code == "too_large"


def test_key_of_the_settings_wins_and_is_shown_to_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SIGHTLOG_CURSOR_KEY", "sixteen letters!")
    settings = AgentSettings.load(data_dir=tmp_path)
    assert cursor_key(settings) == b"sixteen letters!"
    assert "sixteen" not in repr(settings) + settings.model_dump_json()
    assert settings.model_dump(mode="json")["cursor_key"] == "**********"
    assert not list(tmp_path.iterdir())
    monkeypatch.setenv("SIGHTLOG_CURSOR_KEY", "too short")
    with pytest.raises(ConfigurationError, match=r"^SIGHTLOG_CURSOR_KEY=\*+: ") as wrong:
        AgentSettings.load()
    assert "too short" not in str(wrong.value)


def test_key_is_made_once_and_only_its_owner_reads_it(tmp_path: Path) -> None:
    settings = AgentSettings.load(data_dir=tmp_path / "new")
    key = cursor_key(settings)
    assert len(key) == 32
    assert cursor_key(settings) == key
    (file,) = settings.data_dir.iterdir()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_workers_that_start_at_once_share_one_key(tmp_path: Path) -> None:
    settings = AgentSettings.load(data_dir=tmp_path)
    context = multiprocessing.get_context("fork")
    barrier, keys = context.Barrier(8), context.SimpleQueue()

    def start() -> None:
        barrier.wait()
        keys.put(cursor_key(settings))

    workers = [context.Process(target=start) for _ in range(8)]
    for worker in workers:
        worker.start()
    found = {keys.get() for _ in workers}
    for worker in workers:
        worker.join()
    assert found == {cursor_key(settings)}
    assert [file.name for file in tmp_path.iterdir()] == ["cursor.key"]


def test_loser_of_the_race_takes_the_key_of_the_winner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = AgentSettings.load(data_dir=tmp_path)
    (tmp_path / "cursor.key").write_bytes(b"w" * 32)
    monkeypatch.setattr(Path, "exists", lambda _: False)
    assert cursor_key(settings) == b"w" * 32


def test_damaged_key_is_named(tmp_path: Path) -> None:
    (tmp_path / "cursor.key").write_bytes(b"short")
    with pytest.raises(ConfigurationError, match=r"cursor\.key has 5 bytes"):
        cursor_key(AgentSettings.load(data_dir=tmp_path))
