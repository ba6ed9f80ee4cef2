"""The tokenizer gives the ids that open_clip's SimpleTokenizer gave for `golden/clip_tokens.json`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from models.tokenizer import EOT, PAD, SOT, ClipTokenizer

GOLDEN: list[dict[str, Any]] = json.loads(
    (Path(__file__).parent / "golden" / "clip_tokens.json").read_text(encoding="utf-8")
)


@pytest.fixture(scope="module")
def tokenizer() -> ClipTokenizer:
    return ClipTokenizer()


@pytest.mark.parametrize("row", GOLDEN, ids=[ascii(row["text"])[:32] for row in GOLDEN])
def test_ids_equal_those_of_open_clip(tokenizer: ClipTokenizer, row: dict[str, Any]) -> None:
    expected = np.full(77, PAD, np.int64)
    expected[: len(row["ids"])] = row["ids"]
    tokens = tokenizer.encode([row["text"]])
    assert tokens.dtype == np.int64
    np.testing.assert_array_equal(tokens[0], expected)


def test_an_empty_text_is_start_and_end(tokenizer: ClipTokenizer) -> None:
    assert tokenizer.encode([""])[0, :3].tolist() == [SOT, EOT, PAD]


@pytest.mark.parametrize("context_length", [2, 3, 8, 77])
def test_a_truncated_text_keeps_its_end_token(context_length: int) -> None:
    row = ClipTokenizer(context_length).encode(["red circle " * 100])[0]
    assert row.shape == (context_length,)
    assert row[0] == SOT
    assert row[-1] == EOT
    assert (row == EOT).sum() == 1


def test_rows_of_a_batch_do_not_depend_on_each_other(tokenizer: ClipTokenizer) -> None:
    texts = ["a red circle", "", "word " * 200]
    together = tokenizer.encode(texts)
    np.testing.assert_array_equal(together, np.concatenate([tokenizer.encode([text]) for text in texts]))


def test_no_texts_give_no_rows(tokenizer: ClipTokenizer) -> None:
    assert tokenizer.encode([]).shape == (0, 77)


def test_a_lone_surrogate_is_encoded_and_not_refused(tokenizer: ClipTokenizer) -> None:
    row = tokenizer.encode(["red \ud800 circle"])[0]
    assert row[0] == SOT
    assert EOT in row


def test_the_work_for_a_word_without_end_grows_with_its_length_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else one query of 10 kB without a space keeps the search agent busy for seconds."""

    class Counting(dict[tuple[str, str], int]):
        lookups = 0

        def get(self, *arguments: Any) -> Any:
            self.lookups += 1
            return super().get(*arguments)

    tokenizer = ClipTokenizer()
    ranks = Counting(tokenizer._ranks)
    monkeypatch.setattr(tokenizer, "_ranks", ranks)
    word = "".join(np.random.default_rng(0).choice(list("abcdefghijklmnopqrstuvwxyz"), 10_000))
    assert tokenizer.encode([word])[0, -1] == EOT
    assert 10_000 < ranks.lookups < 60_000


def test_a_context_without_room_for_both_marks_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 2"):
        ClipTokenizer(1)
