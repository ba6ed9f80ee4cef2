"""From what a caller says by keyword to a search request, and from a reply's record to a reply or an error."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypedDict

from pydantic import ValidationError

from sightlog.errors import BadRequest, search_failed
from sightlog.fields import FloatArray
from sightlog.filters import SearchFilters
from sightlog.pictures import Picture, picture_bytes
from sightlog.search import MAX_IMAGE, Clause, FacetName, Fusion, SearchReply, SearchRequest, Target


class Asked(TypedDict, total=False):
    """What searches take by keyword: the fields of SearchRequest. None is the same as leaving it out."""

    #: 1 to 2,000 characters.
    text: str | None
    #: An encoded JPEG, PNG or WebP of at most 5 MiB: bytes, a path, or an open file.
    image: Picture | None
    #: URI of a picture in a place that uploads may refer to.
    dataref: str | None
    #: What is like this indexed image, or object.
    image_id: str | None
    object_id: str | None
    #: float32 [dim], with the digest of the model that made it (64 hex digits).
    vector: FloatArray | Sequence[float] | None
    model_digest: str | None
    #: Several questions, each with a weight; negative: rather not. As Clause, or as a mapping of its fields.
    clauses: Sequence[Clause | Mapping[str, Any]]
    #: Words in filename, tags and metadata; alone, or besides a question.
    lexical: str | None
    fusion: Fusion
    lexical_weight: float
    target: Target
    #: Hits in a reply, 1 to 1,000.
    k: int
    #: As SearchFilters, or as a mapping of its fields: `{"tags": ["night"], "min_width": 640}`.
    filters: SearchFilters | Mapping[str, Any]
    #: 0..1; hits below are left out. Calibrated models only.
    min_relevance: float | None
    #: Of objects, the best one of each image.
    group: Literal["image"] | None
    facets: Sequence[FacetName]
    #: Bring a cursor for what comes after these hits; `pages` and `hits` see to it.
    pages: bool
    include_vectors: bool
    #: Compare with every vector instead of searching the graph.
    exact: bool


def request_of(question: str | SearchRequest | None, asked: Mapping[str, Any]) -> SearchRequest:
    """The request: as it is, or of text and keywords.

    Raises BadRequest with what does not fit, BadPicture, OSError when a file cannot be read, TypeError when a keyword
    is unknown or a request comes with keywords.
    """
    given = {name: value for name, value in asked.items() if value is not None}
    if isinstance(question, SearchRequest):
        if given:
            raise TypeError(f"a SearchRequest says it all; {', '.join(given)} beside it would be ignored")
        return question
    if unknown := given.keys() - Asked.__annotations__.keys():
        raise TypeError(f"a search takes no {', '.join(sorted(unknown))}")
    if question is not None:
        if "text" in given:
            raise TypeError("the text is given twice")
        given["text"] = question
    if "image" in given:
        given["image"] = picture_bytes(given["image"], MAX_IMAGE)
    if isinstance(given.get("filters"), Mapping):
        _only_fields(SearchFilters, given["filters"])
    if "clauses" in given:
        given["clauses"] = [_clause(clause) for clause in given["clauses"]]
    try:
        return SearchRequest.model_validate(given)
    except ValidationError as error:
        first = error.errors()[0]
        place, reason = ".".join(map(str, first["loc"])), first["msg"].removeprefix("Value error, ")
        raise BadRequest("bad_request", f"{place}: {reason}" if place else reason) from None


def similar_request(asked: Mapping[str, Any]) -> SearchRequest:
    """The request for what is like one picture, indexed image or indexed object; objects are compared with objects."""
    references = ("image", "dataref", "image_id", "object_id")
    if sum(asked.get(name) is not None for name in references) != 1:
        raise TypeError(f"give one of {', '.join(references)}")
    target = "images" if asked.get("object_id") is None else "objects"
    return request_of(None, {"target": target, **asked})


def _clause(clause: Clause | Mapping[str, Any]) -> Clause | dict[str, Any]:
    if isinstance(clause, Clause):
        return clause
    _only_fields(Clause, clause)
    given = dict(clause)
    if given.get("image") is not None:
        given["image"] = picture_bytes(given["image"], MAX_IMAGE)
    return given


def _only_fields(contract: type[SearchFilters] | type[Clause], given: Mapping[str, Any]) -> None:
    """Contracts ignore what they do not know; a filter that is spelled wrong would find too much."""
    if unknown := given.keys() - contract.model_fields.keys():
        raise BadRequest("bad_request", f"{contract.__name__} has no {', '.join(sorted(map(str, unknown)))}")


def read_reply(value: bytes | None) -> SearchReply:
    """The reply in a record. Raises SearchFailed when it is an error, ContractError `bad_reply`."""
    reply = SearchReply.from_kafka(value)
    if reply.error is not None:
        raise search_failed(reply.error.code, reply.error.message)
    return reply


def first_page(request: SearchRequest) -> SearchRequest:
    """The same request, that brings a cursor."""
    if request.pages or request.cursor is not None:
        return request
    return request.model_copy(update={"pages": True})


def next_page(reply: SearchReply) -> SearchRequest | None:
    """The request for the page after this one; None after the last."""
    return None if reply.cursor is None else SearchRequest(cursor=reply.cursor)
