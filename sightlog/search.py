"""Search over topics: what can be asked, and what comes back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import Field, ValidationError, model_validator
from typing_extensions import Self

from sightlog.documents import Box
from sightlog.errors import ContractError
from sightlog.fields import Base64Bytes, Contract, UtcTime, Vector
from sightlog.filters import SearchFilters
from sightlog.limits import MAX_JSON_VALUES

if TYPE_CHECKING:
    from pandas import DataFrame

#: Characters of a query; the text tower reads far fewer.
MAX_TEXT = 2000
#: Bytes of a query picture: as base64, with the rest of the request, it fits into a record.
MAX_IMAGE = 5 * 1024 * 1024
#: Bytes of a request: pictures of `MAX_IMAGE` bytes in all, as base64, and as much beside them as anybody may need.
MAX_REQUEST = MAX_IMAGE * 4 // 3 + 512 * 1024
#: Clauses of a question.
MAX_CLAUSES = 16
#: How far pages go.
MAX_RESULTS = 10_000
#: Characters of a cursor.
MAX_CURSOR = 64 * 1024
#: Relevance from which a hit shows what was asked for, rather not below.
GOOD = 0.5

#: What is searched for.
Target = Literal["images", "objects"]
#: How two orders come together: by ranks, or by scores brought to 0..1.
Fusion = Literal["rrf", "weighted"]
#: What can be counted over what was found.
FacetName = Literal["classes", "tags", "captured_month", "uploaded_month"]


class Question(Contract):
    """What is looked for: words, a picture, a reference to one, an indexed image or object, or a vector."""

    text: str | None = Field(None, min_length=1, max_length=MAX_TEXT)
    image: Base64Bytes | None = Field(
        None, description="an encoded picture of at most 5 MiB, seen exactly as an upload of it is"
    )
    dataref: str | None = Field(
        None, min_length=1, max_length=4096, description="URI of a picture in a place that uploads may refer to"
    )
    image_id: str | None = Field(None, min_length=1, max_length=1024, description="what is like this indexed image")
    object_id: str | None = Field(None, min_length=1, max_length=1100, description="what is like this indexed object")
    vector: Vector | None = Field(None, description="float32 [dim], not zero; of the model `model_digest`")
    model_digest: str | None = Field(None, pattern=r"^[0-9a-f]{64}$", description="which model made `vector`")

    @property
    def asked(self) -> tuple[str, ...]:
        """The fields that ask something, by name."""
        return tuple(name for name in QUESTIONS if getattr(self, name) is not None)

    @model_validator(mode="after")
    def _well_asked(self) -> Self:
        if len(self.asked) > 1:
            raise ValueError(f"give one of {', '.join(QUESTIONS)}, not {' and '.join(self.asked)}; or several clauses")
        if self.text is not None and not self.text.strip():
            raise ValueError("text is blank")
        if self.image is not None and not 0 < len(self.image) <= MAX_IMAGE:
            raise ValueError(f"image has {len(self.image)} bytes; 1 to {MAX_IMAGE} are taken")
        if (self.vector is None) != (self.model_digest is None):
            raise ValueError("a vector and the model_digest of the model that made it go together")
        if self.vector is not None and not (np.isfinite(self.vector).all() and self.vector.any()):
            raise ValueError("a vector has finite values, and not only zeros")
        return self


#: The fields of a question, one of which is given.
QUESTIONS = ("text", "image", "dataref", "image_id", "object_id", "vector")


class Clause(Question):
    """One part of a combined question: nearer to it, or with a negative weight, away from it."""

    weight: float = Field(1.0, ge=-10, le=10, allow_inf_nan=False, description="not 0")

    @model_validator(mode="after")
    def _counts(self) -> Self:
        if not self.asked:
            raise ValueError(f"a clause gives one of {', '.join(QUESTIONS)}")
        if self.weight == 0:
            raise ValueError("a clause of weight 0 asks nothing; leave it out")
        return self


class SearchRequest(Question):
    """Find images, or objects in images: by one question, by several `clauses`, by `lexical` words, or by a `cursor`.

    A cursor stands alone: it knows its request, and goes on where the reply that brought it ended.
    """

    clauses: tuple[Clause, ...] = Field((), max_length=MAX_CLAUSES, description="at least one has a positive weight")
    lexical: str | None = Field(
        None, min_length=1, max_length=MAX_TEXT, description="words in filename, tags and metadata; alone or besides"
    )
    fusion: Fusion = Field(
        "rrf", description="how a question and `lexical` come together: by ranks, or by scores brought to 0..1"
    )
    lexical_weight: float = Field(0.5, ge=0, le=1, description="share of `lexical` in the fusion")
    target: Target = "images"
    k: int = Field(10, ge=1, le=1000, description="hits in a reply")
    filters: SearchFilters = Field(default_factory=SearchFilters)
    min_relevance: float | None = Field(None, ge=0, le=1, description="hits below are left out; calibrated models only")
    group: Literal["image"] | None = Field(None, description="of objects, the best one of each image")
    facets: tuple[FacetName, ...] = Field((), max_length=8, description="counts over all that was found, to 1,000 hits")
    pages: bool = Field(False, description="bring a cursor for what comes after these hits")
    cursor: str | None = Field(None, min_length=1, max_length=MAX_CURSOR)
    include_vectors: bool = False
    exact: bool = Field(False, description="compare with every vector instead of searching the graph")

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.cursor is not None:
            if others := sorted(self.model_fields_set - {"cursor"}):
                raise ValueError(f"a cursor stands alone, without {', '.join(others)}")
            return self
        if self.asked and self.clauses:
            raise ValueError(f"give {self.asked[0]} or clauses, not both")
        if not (self.asked or self.clauses or self.lexical):
            raise ValueError(f"give one of {', '.join(QUESTIONS)}, or clauses, or lexical")
        if self.clauses and all(clause.weight < 0 for clause in self.clauses):
            raise ValueError("with negative clauses alone nothing is looked for; add one with a positive weight")
        if self.lexical is not None and not self.lexical.strip():
            raise ValueError("lexical is blank")
        if self.target == "objects" and (len(self.filters.classes.all) > 1 or self.filters.classes.min_count > 1):
            raise ValueError("an object has one class: classes.all and min_count are for images")
        if self.target == "images" and self.group is not None:
            raise ValueError("only objects are grouped")
        if self.min_relevance is not None and not (self.asked or self.clauses):
            raise ValueError("words alone have no relevance; leave min_relevance out")
        return self

    @property
    def parts(self) -> tuple[Clause, ...]:
        """The question as clauses: those given, or the one question with weight 1; none with words alone."""
        if self.clauses or not self.asked:
            return self.clauses
        name = self.asked[0]
        return (Clause.model_construct(**{name: getattr(self, name), "model_digest": self.model_digest}),)

    @classmethod
    def from_kafka(cls, value: bytes | None) -> SearchRequest:
        """Read a record of `search.requests`; raises ContractError `bad_request`, `too_large`."""
        value = value or b""
        if len(value) > MAX_REQUEST:
            raise ContractError("too_large", f"a request of {len(value)} bytes; {MAX_REQUEST} at most")
        if value.count(b",") + value.count(b"[") + value.count(b"{") > MAX_JSON_VALUES:
            raise ContractError("too_large", f"more than {MAX_JSON_VALUES} values, lists and objects")
        try:
            return cls.model_validate_json(value)
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(map(str, first["loc"])) or "request"
            raise ContractError("bad_request", f"{place}: {first['msg']}") from None

    def to_kafka(self) -> bytes:
        """The record value, JSON."""
        return self.model_dump_json(exclude_unset=True).encode()


class Hit(Contract):
    """One found image or object."""

    image_id: str
    score: float = Field(
        description="hits come by falling score: the relevance of a calibrated model, else (1 + cosine) / 2; of a"
        " request with `lexical` words, what the fusion gave"
    )
    relevance: float | None = Field(
        None, description="0..1, from 0.5 on rather what was asked for than not; absent where nothing was calibrated"
    )
    cosine: float | None = Field(None, description="between question and document; absent where words alone found it")
    lexical_score: float | None = Field(None, description="BM25 of the `lexical` words; absent where none matched")
    source: str = Field(description="where the picture is: its dataref, else its filename, else the publisher")
    object_id: str | None = None
    class_name: str | None = Field(None, alias="class")
    confidence: float | None = None
    box: Box | None = Field(None, description="x1, y1, x2, y2 in pixels of the upright original")
    width: int
    height: int
    tags: tuple[str, ...] = ()
    captured_at: UtcTime | None = None
    uploaded_at: UtcTime
    metadata: dict[str, Any] = Field(default_factory=dict)
    vector: Vector | None = Field(None, description="float32 [dim], unit length; when asked for")


class FacetCount(Contract):
    """How many of the found have a value."""

    value: str
    count: int


class SearchError(Contract):
    """Why a request was not answered."""

    code: str
    message: str


class SearchReply(Contract):
    """The answer to a request: hits by falling score, or an error."""

    hits: tuple[Hit, ...] = ()
    no_good_match: bool = Field(False, description="nothing in the index reaches a relevance of 0.5")
    partial: bool = Field(False, description="a part of the index did not answer in time; there may be better hits")
    cursor: str | None = Field(None, description="for the hits after these; absent when there are none")
    facets: dict[FacetName, tuple[FacetCount, ...]] = Field(default_factory=dict)
    model_digest: str | None = None
    cached: bool = Field(False, description="no model was asked: all texts of the question were known")
    took_ms: float = Field(0.0, description="from receipt of the request to the reply, in the agent")
    error: SearchError | None = None

    def to_dataframe(self) -> DataFrame:
        """The hits as a pandas DataFrame, one row each; see `sightlog.frames`."""
        from sightlog.frames import to_dataframe

        return to_dataframe(self.hits)

    @classmethod
    def from_kafka(cls, value: bytes | None) -> SearchReply:
        """Read a record of a reply topic; raises ContractError `bad_reply`."""
        try:
            return cls.model_validate_json(value or b"")
        except ValidationError as error:
            raise ContractError("bad_reply", str(error.errors()[0]["msg"])) from None

    def to_kafka(self) -> bytes:
        """The record value, JSON."""
        return self.model_dump_json(by_alias=True, exclude_none=True).encode()
