"""The torch-free tokenizer gives the ids of open_clip's own, whatever people write."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from open_clip.tokenizer import SimpleTokenizer

from models.tokenizer import EOT, PAD, ClipTokenizer
from tests.export.texts import long_texts, texts

CONTEXT = 77


@pytest.fixture(scope="module")
def original() -> SimpleTokenizer:
    return SimpleTokenizer()


def compare(original: SimpleTokenizer, written: list[str], context_length: int = CONTEXT) -> npt.NDArray[np.int64]:
    """Ids of all texts, int64 [n, context_length], after both agree on them."""
    expected = original(written, context_length=context_length).numpy()
    found = ClipTokenizer(context_length).encode(written)
    differing = np.flatnonzero((expected != found).any(1))
    assert not len(differing), (
        f"{len(differing)} of {len(written)} differ, such as {ascii(written[differing[0]])[:300]}"
    )
    return found


def test_ten_thousand_texts_in_many_scripts_have_the_ids_of_open_clip(original: SimpleTokenizer) -> None:
    written = texts(10_000, seed=1)
    assert len(set(written)) > 9_000
    ids = compare(original, written)
    assert (ids == EOT).any(1).all()
    truncated = ids[:, -1] == EOT
    assert 500 < truncated.sum() < 9_500
    assert (ids[~truncated, -1] == PAD).all()


def test_texts_of_ten_kilobytes_have_the_ids_of_open_clip_and_keep_their_end(original: SimpleTokenizer) -> None:
    written = long_texts(60, seed=2)
    assert min(map(len, written)) >= 10_000
    ids = compare(original, written)
    assert (ids[:, -1] == EOT).all()


@pytest.mark.parametrize("context_length", [2, 3, 16, 256])
def test_other_context_lengths_truncate_alike(original: SimpleTokenizer, context_length: int) -> None:
    compare(original, texts(300, seed=3), context_length)
