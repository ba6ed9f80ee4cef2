"""The corpus of hostile events, without a stack: each ends under a name, and under the one that it must have."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from agents.delivery.failures import ItemBroken, NotYet
from agents.sources.reader import SourceReader
from load_tests.hostile_corpus import FORMATS, INDEXED, Corpus, Mutant
from models.decoding import ImageError, decode_upright
from sightlog.errors import ContractError
from sightlog.events import ImageUploaded, parse_event


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> list[Mutant]:
    return list(Corpus(seed=7, per_format=200, folder=tmp_path_factory.mktemp("allowed") / "hostile", tag="t"))


async def outcome(mutant: Mutant, reader: SourceReader) -> tuple[str, str]:
    """Code and message of what the vision agent would make of it before the models; only these errors may come out."""
    try:
        event = parse_event(mutant.value, mutant.headers)
        event.image_id(mutant.key)
        assert isinstance(event, ImageUploaded)
        decode_upright((await reader.read(event)).data)
    except (ContractError, ItemBroken, NotYet, ImageError) as error:
        return error.code, error.message
    return INDEXED, ""


async def test_every_mutant_ends_under_its_name(corpus: list[Mutant], tmp_path_factory: pytest.TempPathFactory) -> None:
    async with SourceReader([tmp_path_factory.getbasetemp()], 32 * 1024 * 1024) as reader:
        outcomes = {mutant.name: await outcome(mutant, reader) for mutant in corpus}
    # A dead letter carries the message and must stay publishable.
    assert all(len(message.encode()) < 4000 for _code, message in outcomes.values())
    codes = {name: code for name, (code, _message) in outcomes.items()}
    wrong = {
        m.name: (codes[m.name], sorted(m.expected)) for m in corpus if m.expected and codes[m.name] not in m.expected
    }
    assert wrong == {}
    counted = Counter(codes.values())
    # A corpus that says little would be no test: it reaches most of the ways to fail, and good events are among it.
    assert len(counted) >= 12, counted
    assert counted[INDEXED] >= 50


def test_the_same_seed_gives_the_same_events_and_another_one_others(tmp_path: Path) -> None:
    def made(seed: int) -> list[Mutant]:
        return list(Corpus(seed, 16, tmp_path, "t"))

    assert made(1) == made(1)
    assert made(1) != made(2)


def test_every_format_has_its_share(corpus: list[Mutant]) -> None:
    shares = Counter(mutant.name.split("-")[1] for mutant in corpus)
    assert {name: shares[name] for name in FORMATS} == dict.fromkeys(FORMATS, 200)
    assert len({mutant.name for mutant in corpus}) == len(corpus)
