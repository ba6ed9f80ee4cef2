"""What `docs/search.md` tells callers is so: error codes, examples, fields, settings."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from agents.settings import AgentSettings
from models.decoding import ERROR_CODES
from sightlog.causes import CAUSES, Fate
from sightlog.fields import Contract
from sightlog.filters import ClassFilter, MetadataFilter, SearchFilters, TagFilter
from sightlog.search import Clause, Hit, SearchReply, SearchRequest

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "search.md").read_text(encoding="utf-8")
#: Calls that carry a code to the caller, or to a dead letter.
CARRIERS = {"ContractError", "ItemBroken", "NotYet", "SearchError", "refusal"}
#: Only for requests that nobody can be told about.
UNTOLD = {"no_reply_address", "reply_topic_refused"}


def rows(head: str) -> Iterator[list[str]]:
    """The cells of each row of the table that begins with `head`."""
    for line in TEXT[TEXT.index(head) :].splitlines()[2:]:
        if not line.startswith("|"):
            return
        yield line.strip("|").split("|")


def documented() -> set[str]:
    return {code for row in rows("| code | when |") for code in re.findall(r"`([a-z_0-9]+)`", row[0])}


def examples(kind: str) -> list[str]:
    return re.findall(rf"```json {kind}\n(.*?)```", TEXT, re.DOTALL)


@cache
def tree(module: str) -> ast.Module | None:
    """The source of a module of ours; None of a package's name within it, or of somebody else's module."""
    path = ROOT.joinpath(*module.split("."))
    for file in (path.with_suffix(".py"), path / "__init__.py"):
        if file.is_file():
            return ast.parse(file.read_bytes())
    return None


def imported(module: str) -> set[str]:
    """The module and everything of ours that it imports, and so on."""
    found: set[str] = set()
    ahead = [module]
    while ahead:
        name = ahead.pop()
        parsed = tree(name)
        if name in found or parsed is None:
            continue
        found.add(name)
        for node in ast.walk(parsed):
            if isinstance(node, ast.ImportFrom) and node.module:
                ahead += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    return found


def raised(modules: set[str]) -> Iterator[tuple[str, str]]:
    """Where, and with which code."""
    for module in sorted(modules):
        for node in ast.walk(tree(module) or ast.Module([], [])):
            if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name) or node.func.id not in CARRIERS:
                continue
            for code in [keyword.value for keyword in node.keywords if keyword.arg == "code"] or node.args[:1]:
                for text in ast.walk(code):
                    if isinstance(text, ast.Constant) and isinstance(text.value, str):
                        yield f"{module}:{node.lineno}", text.value


def on_the_way_of_a_request() -> set[str]:
    modules = imported("agents.search")
    # Of the types that all agents share, only these two are read by a search.
    return {name for name in modules if name.startswith("agents.")} | {"sightlog.search", "sightlog.reply_address"}


def test_the_search_for_codes_finds_them() -> None:
    found = dict(reversed(one) for one in raised(on_the_way_of_a_request()))
    assert {"bad_request", "unavailable", "unknown_class", "no_reply_address", "reply_topic_refused"} <= set(found)


def test_every_code_that_a_search_raises_is_documented_or_goes_to_a_dead_letter() -> None:
    known = documented() | UNTOLD | {"bad_reply"}
    strange = [
        f"{place}: {code}"
        for place, code in raised(on_the_way_of_a_request())
        if code not in known and Fate.REFUSED in getattr(CAUSES.get(code), "fates", {Fate.REFUSED})
    ]
    assert strange == []


def test_codes_of_query_pictures_are_documented() -> None:
    assert set(ERROR_CODES) <= documented()


def test_the_documentation_and_the_table_of_causes_have_the_same_codes() -> None:
    assert documented() == {code for code, cause in CAUSES.items() if Fate.REFUSED in cause.fates}


def test_codes_without_a_reply_are_documented_where_the_headers_are() -> None:
    assert all(f"`{code}`" in TEXT[: TEXT.index("## What can be asked")] for code in UNTOLD)


@pytest.mark.parametrize(
    ("kind", "contract", "schema"),
    [("request", SearchRequest, "search-request.v1"), ("reply", SearchReply, "search-reply.v1")],
)
def test_every_example_is_valid(kind: str, contract: type[SearchRequest | SearchReply], schema: str) -> None:
    validator = jsonschema.Draft202012Validator(json.loads((ROOT / "schemas" / f"{schema}.json").read_text()))
    found = examples(kind)
    assert found
    for example in found:
        contract.from_kafka(example.encode())
        validator.validate(json.loads(example))


def keys(part: Any) -> Iterator[str]:
    if isinstance(part, dict):
        for key, value in part.items():
            yield key
            yield from keys(value)
    elif isinstance(part, list):
        for item in part:
            yield from keys(item)


@pytest.mark.parametrize("contract", [SearchRequest, Clause, SearchFilters, ClassFilter, TagFilter, MetadataFilter])
def test_every_field_that_can_be_asked_has_an_example(contract: type[Contract]) -> None:
    shown = {key for example in examples("request") for key in keys(json.loads(example))}
    assert set(contract.model_fields) - shown == set()


@pytest.mark.parametrize("contract", [SearchReply, Hit])
def test_every_field_of_a_reply_is_mentioned(contract: type[Contract]) -> None:
    shown = {key for example in examples("reply") for key in keys(json.loads(example))}
    named = {field.alias or name for name, field in contract.model_fields.items()}
    assert {name for name in named - shown if f"`{name}`" not in TEXT and name != "vector"} == set()


def test_settings_that_are_named_exist() -> None:
    named = {name.removeprefix("SIGHTLOG_").lower() for name in re.findall(r"SIGHTLOG_[A-Z_]+", TEXT)}
    assert named - set(AgentSettings.model_fields) == set()


def test_links_lead_somewhere() -> None:
    missing = [link for link in re.findall(r"\]\(([^)#]+)\)", TEXT) if not (ROOT / "docs" / link).exists()]
    assert missing == []
