"""What the fuzzer found worth keeping: every reader of records still refuses it with ContractError, or reads it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fuzz.readers import READERS, feed

_CORPUS = sorted((Path(__file__).parents[1] / "fuzz" / "corpus").iterdir())


def test_every_input_is_refused_or_read() -> None:
    for path in _CORPUS:
        try:
            feed(path.read_bytes())
        except Exception as error:
            pytest.fail(f"{path.name}: {type(error).__name__}: {error}")


def test_the_corpus_is_small_and_reaches_every_reader() -> None:
    assert sum(path.stat().st_size for path in _CORPUS) < 200_000
    assert {path.read_bytes()[0] % len(READERS) for path in _CORPUS} == set(range(len(READERS)))
