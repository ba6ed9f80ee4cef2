"""What `sightlog search` can be asked: its options, and the request that they make."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar, get_args

import click
import orjson

from sightlog.errors import BadPicture, BadRequest
from sightlog.questions import request_of
from sightlog.search import MAX_IMAGE, FacetName, SearchRequest

_DAY = click.DateTime(["%Y-%m-%d", "%Y-%m-%dT%H:%M:%S", "%Y-%m-%dT%H:%M:%S%z"])
_WEIGHT = re.compile(r"(?s)(.+)\^([0-9]+(?:\.[0-9]+)?)")
_CONDITION = re.compile(r"([^<>=]+)(>=|<=|>|<|=)(.*)")
_PIXELS = click.IntRange(min=0)
_SHARE = click.FloatRange(0, 1)

_Command = TypeVar("_Command", bound=Callable[..., Any])

_OPTIONS = (
    click.argument("text", required=False),
    click.option("--plus", multiple=True, metavar="TEXT", help="And this as well; may be repeated."),
    click.option("--minus", multiple=True, metavar="TEXT", help="And rather not this; may be repeated."),
    click.option("--like", "--image", "like", multiple=True, metavar="FILE", help="What looks like this picture."),
    click.option("--unlike", multiple=True, metavar="FILE", help="What does not look like this picture."),
    click.option("--like-image", multiple=True, metavar="ID", help="What looks like this indexed image."),
    click.option("--like-object", multiple=True, metavar="ID", help="What looks like this indexed object."),
    click.option("--words", metavar="TEXT", help="Words in filename, tags and metadata; alone or besides the others."),
    click.option("--words-weight", type=_SHARE, help="Share of --words beside the others. [default: 0.5]"),
    click.option("--fusion", type=click.Choice(["rrf", "weighted"]), help="How both come together, by what."),
    click.option("--objects", is_flag=True, help="Find objects in images rather than images."),
    click.option("--group", is_flag=True, help="Of objects, the best one of each image."),
    click.option("-k", default=10, show_default=True, type=click.IntRange(1, 1000), help="Hits of a page."),
    click.option("--min-relevance", type=_SHARE, help="Only hits of at least this relevance; 0.5 is rather yes."),
    click.option("--class", "classes", multiple=True, metavar="NAME", help="Only with an object of one of these."),
    click.option("--all-classes", is_flag=True, help="Of images: with an object of each --class."),
    click.option("--not-class", multiple=True, metavar="NAME", help="Only without such an object."),
    click.option("--min-count", type=click.IntRange(1, 100), help="Of images: that many objects of the class."),
    click.option("--min-confidence", type=_SHARE, help="Of the detections that count."),
    click.option("--tag", "tags", multiple=True, metavar="TAG", help="Only with this tag; repeated: with all of them."),
    click.option("--any-tag", multiple=True, metavar="TAG", help="Only with one of these tags."),
    click.option("--not-tag", multiple=True, metavar="TAG", help="Only without this tag."),
    click.option("--after", "--captured-after", "captured_after", type=_DAY, help="Taken at or after this time, UTC."),
    click.option("--before", "--captured-before", "captured_before", type=_DAY, help="Taken before this time, UTC."),
    click.option("--uploaded-after", type=_DAY, help="Uploaded at or after this time, UTC."),
    click.option("--uploaded-before", type=_DAY, help="Uploaded before this time, UTC."),
    click.option("--meta", multiple=True, metavar="CONDITION", help="site=north, 'gps.lat>=48', 'gps.lat<49'."),
    click.option("--min-width", type=_PIXELS, help="Of the image."),
    click.option("--max-width", type=_PIXELS),
    click.option("--min-height", type=_PIXELS),
    click.option("--max-height", type=_PIXELS),
    click.option("--min-area", type=_SHARE, help="Of an object's box, as a part of the image."),
    click.option("--max-area", type=_SHARE),
    click.option("--exact", is_flag=True, help="Compare with every vector instead of searching the graph."),
)


def question_options(command: _Command) -> _Command:
    """Give a command the argument and the options that say what is looked for."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def request_from(options: Mapping[str, Any], *, pages: bool, facets: bool, vectors: bool) -> SearchRequest:
    """The request that the options of `question_options` make. Raises click.UsageError with what does not fit."""
    asked: dict[str, Any] = {
        "lexical": options["words"],
        "lexical_weight": options["words_weight"],
        "fusion": options["fusion"],
        "target": "objects" if options["objects"] else "images",
        "group": "image" if options["group"] else None,
        "k": options["k"],
        "min_relevance": options["min_relevance"],
        "filters": _filters(options),
        "facets": get_args(FacetName) if facets else None,
        "pages": pages or None,
        "include_vectors": vectors or None,
        "exact": options["exact"] or None,
    }
    clauses = list(_clauses(options))
    if not clauses and asked["lexical"] is None:
        raise click.UsageError("say what is looked for: TEXT, --like FILE, --like-image ID, --words TEXT, ...")
    if len(clauses) == 1 and clauses[0].get("weight", 1) == 1:
        asked.update(clauses[0])
        asked.pop("weight", None)
    elif clauses:
        asked["clauses"] = clauses
    try:
        return request_of(None, asked)
    except BadPicture as error:
        size = f"a query picture has 1 byte to {MAX_IMAGE // 1024**2} MiB"
        raise click.UsageError(f"--like: {error.message}; {size}") from None
    except BadRequest as error:
        raise click.UsageError(error.message) from None


def _clauses(options: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    if options["text"] is not None:
        yield {"text": options["text"]}
    for name, kind in (("like_image", "image_id"), ("like_object", "object_id")):
        yield from ({kind: given} for given in options[name])
    for name, kind, sign in (("plus", "text", 1), ("like", "image", 1), ("minus", "text", -1), ("unlike", "image", -1)):
        for given in options[name]:
            what, weight = _weighted(given) if kind == "text" or not Path(given).exists() else (given, 1.0)
            yield {kind: _file(what, name) if kind == "image" else what, "weight": sign * weight}


def _weighted(given: str) -> tuple[str, float]:
    """`people^0.5` is people with weight 0.5."""
    found = _WEIGHT.fullmatch(given)
    return (given, 1.0) if found is None else (found[1], float(found[2]))


def _file(name: str, option: str) -> Path:
    path = Path(name)
    if not path.is_file():
        raise click.BadParameter(f"there is no file {name!r}", param_hint=f"--{option}")
    return path


def _filters(options: Mapping[str, Any]) -> dict[str, Any]:
    counted = {"none": options["not_class"], "min_count": options["min_count"]}
    counted["all" if options["all_classes"] else "any"] = options["classes"]
    given = {
        "classes": _given(counted),
        "tags": _given({"all": options["tags"], "any": options["any_tag"], "none": options["not_tag"]}),
        "captured_from": options["captured_after"],
        "captured_to": options["captured_before"],
        "uploaded_from": options["uploaded_after"],
        "uploaded_to": options["uploaded_before"],
        "metadata": _conditions(options["meta"]),
    }
    as_they_are = ("min_confidence", "min_width", "max_width", "min_height", "max_height", "min_area", "max_area")
    return _given({**given, **{name: options[name] for name in as_they_are}})


def _given(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None and value != () and value != {}}


def _conditions(given: Iterable[str]) -> tuple[dict[str, Any], ...]:
    """Conditions on metadata; `>=` and `<` of the same field are one range."""
    conditions: list[dict[str, Any]] = []
    for text in given:
        found = _CONDITION.fullmatch(text)
        if found is None or found[2] in (">", "<="):
            raise click.BadParameter(f"{text!r} is not FIELD=VALUE, FIELD>=VALUE or FIELD<VALUE", param_hint="--meta")
        field, value = found[1].strip(), _value(found[3].strip())
        name = {"=": "equals", ">=": "at_least", "<": "below"}[found[2]]
        other = {"at_least": "below", "below": "at_least"}.get(name)
        range_of = [one for one in conditions if one["field"] == field and other in one and name not in one]
        if range_of:
            range_of[0][name] = value
        else:
            conditions.append({"field": field, name: value})
    return tuple(conditions)


def _value(text: str) -> str | float | bool:
    """As JSON has it, so that 20 is a number and "20" a string; else the text."""
    try:
        value = orjson.loads(text)
    except orjson.JSONDecodeError:
        return text
    return value if isinstance(value, (str, int, float)) else text
