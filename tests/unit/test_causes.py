"""One table knows every code: what the source raises is in it, and what is in it can happen."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from models.decoding import ERROR_CODES
from sightlog.causes import CAUSES, Fate, table

ROOT = Path(__file__).parents[2]
#: Which fate a code has that is raised as ...
FATES = {
    "ItemBroken": {Fate.BROKEN},
    "NotYet": {Fate.LATER},
    "ContractError": {Fate.BROKEN, Fate.REFUSED, Fate.UNREADABLE},
    "SearchError": {Fate.REFUSED},
}


@cache
def trees() -> tuple[tuple[Path, ast.Module], ...]:
    rooms = ("agents", "sightlog", "models", "triton_repo")
    files = [file for room in rooms for file in sorted((ROOT / room).rglob("*.py"))]
    return tuple((file, ast.parse(file.read_bytes())) for file in files)


def texts(node: ast.AST) -> Iterator[str]:
    for inner in ast.walk(node):
        if isinstance(inner, ast.Constant) and isinstance(inner.value, str):
            yield inner.value


def raised() -> Iterator[tuple[str, str, str]]:
    """Where, as what, and with which code."""
    for file, tree in trees():
        for node in ast.walk(tree):
            if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name) or node.func.id not in FATES:
                continue
            codes = [keyword.value for keyword in node.keywords if keyword.arg == "code"] or node.args[:1]
            for code in codes:
                for text in texts(code):
                    yield f"{file.relative_to(ROOT)}:{node.lineno}", node.func.id, text


def test_every_code_that_is_raised_is_in_the_table_with_its_fate() -> None:
    found = list(raised())
    assert len(found) > 25, "the search for codes finds none"
    strange = [f"{place}: {code} as {kind}" for place, kind, code in found if code not in CAUSES]
    assert strange == []
    wrong = [f"{place}: {code} as {kind}" for place, kind, code in found if not CAUSES[code].fates & FATES[kind]]
    assert wrong == []


def test_codes_of_pictures_are_in_the_table() -> None:
    assert {code for code in ERROR_CODES if Fate.BROKEN not in CAUSES[code].fates} == set()


@pytest.mark.parametrize("code", CAUSES)
def test_every_code_of_the_table_is_in_the_source(code: str) -> None:
    own = ROOT / "sightlog" / "causes.py"
    assert any(code in set(texts(tree)) for file, tree in trees() if file != own)


def test_the_documentation_shows_the_table() -> None:
    assert table() in (ROOT / "docs" / "failures.md").read_text(encoding="utf-8")
