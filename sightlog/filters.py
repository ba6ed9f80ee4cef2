"""Conditions that hits fulfil; all of them hold inside the k-NN search, so that filters do not starve a result."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator, Field, model_validator

from sightlog.fields import Contract, UtcTime

_MAX_NAMES = 256

Name = Annotated[str, Field(min_length=1, max_length=1024)]
Names = Annotated[tuple[Name, ...], Field(max_length=_MAX_NAMES)]


class ClassFilter(Contract):
    """What was detected in the image; of objects, what the object is.

    A list in place of this object means `any`.
    """

    any: Names = Field((), description="at least one of these classes")
    all: Names = Field((), description="each of these classes; images only")
    none: Names = Field((), description="none of these classes")
    min_count: int = Field(
        1,
        ge=1,
        le=100,
        description="detections of each wanted class, or of any class if none is named; images only",
    )


class TagFilter(Contract):
    """Tags of the image. A list in place of this object means `all`."""

    any: Names = ()
    all: Names = ()
    none: Names = ()


#: A finite number or a string, as it stands in the metadata; `True` is not 1.
Comparable = Annotated[float, Field(strict=True, allow_inf_nan=False)] | Annotated[str, Field(max_length=256)]


class MetadataFilter(Contract):
    """One field of the metadata: equal to a value, or within a range. An array fulfils it with any of its elements.

    Numbers compare as numbers, strings by code point (so ISO dates in order); a number never equals a string.
    """

    field: Annotated[str, Field(min_length=1, max_length=256)] = Field(description="nested fields with dots: gps.lat")
    equals: Annotated[bool, Field(strict=True)] | Comparable | None = None
    at_least: Comparable | None = Field(None, description="inclusive")
    below: Comparable | None = Field(None, description="exclusive")

    @model_validator(mode="after")
    def _one_condition(self) -> MetadataFilter:
        limits = [limit for limit in (self.at_least, self.below) if limit is not None]
        if (self.equals is None) != bool(limits):
            raise ValueError("give equals, or at_least and below, or one of these two")
        if len({isinstance(limit, str) for limit in limits}) > 1:
            raise ValueError("at_least and below are both numbers or both strings")
        return self


def _short_for(name: str, contract: type[Contract]) -> BeforeValidator:
    return BeforeValidator(
        lambda value: {name: value} if isinstance(value, (list, tuple)) else value,
        json_schema_input_type=contract | Names,
    )


class SearchFilters(Contract):
    """Conditions inside the k-NN search: `k` hits come back when that many documents fulfil them all."""

    classes: Annotated[ClassFilter, _short_for("any", ClassFilter)] = Field(default_factory=ClassFilter)
    min_confidence: float | None = Field(
        None, ge=0, le=1, description="of each detection that counts for `classes`; six decimals"
    )
    tags: Annotated[TagFilter, _short_for("all", TagFilter)] = Field(default_factory=TagFilter)
    captured_from: UtcTime | None = Field(None, description="inclusive")
    captured_to: UtcTime | None = Field(None, description="exclusive")
    uploaded_from: UtcTime | None = Field(None, description="inclusive")
    uploaded_to: UtcTime | None = Field(None, description="exclusive")
    metadata: tuple[MetadataFilter, ...] = Field((), max_length=16, description="all of them hold")
    min_width: int | None = Field(None, ge=0, description="of the image, pixels")
    max_width: int | None = Field(None, ge=0, description="inclusive")
    min_height: int | None = Field(None, ge=0)
    max_height: int | None = Field(None, ge=0, description="inclusive")
    min_area: float | None = Field(None, ge=0, le=1, description="of a box, as a part of its image")
    max_area: float | None = Field(None, ge=0, le=1, description="inclusive; of images, some box is within both")

    @model_validator(mode="after")
    def _possible(self) -> SearchFilters:
        for low, high, empty in (
            ("captured_from", "captured_to", True),
            ("uploaded_from", "uploaded_to", True),
            ("min_width", "max_width", False),
            ("min_height", "max_height", False),
            ("min_area", "max_area", False),
        ):
            start: Any = getattr(self, low)
            end: Any = getattr(self, high)
            if start is not None and end is not None and (start > end or (empty and start == end)):
                raise ValueError(f"nothing lies between {low} and {high}")
        for what in (self.classes, self.tags):
            if both := set(what.none) & (set(what.any) | set(what.all)):
                raise ValueError(f"{', '.join(sorted(both))}: wanted and not wanted at once")
        return self
