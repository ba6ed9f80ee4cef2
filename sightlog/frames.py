"""Hits as a table for pandas."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from sightlog.errors import ConfigurationError

if TYPE_CHECKING:
    from pandas import DataFrame

    from sightlog.search import Hit

_BOX = ("x1", "y1", "x2", "y2")
_TIMES = ("captured_at", "uploaded_at")


def to_dataframe(hits: Iterable[Hit]) -> DataFrame:
    """One row a hit, in their order: the fields of Hit, with the box as `x1`, `y1`, `x2`, `y2` in pixels.

    Times are datetime64 in UTC; `tags` are lists, `metadata` dicts, `vector` float32 [dim] arrays, where asked for.
    What a hit does not have is missing. Raises ConfigurationError when pandas is not installed.
    """
    try:
        import pandas
    except ImportError:
        raise ConfigurationError("a DataFrame needs pandas: pip install 'sightlog[notebook]'") from None
    from sightlog.search import Hit

    names = [name for name in Hit.model_fields if name != "box"]
    rows = [_row(hit, names) for hit in hits]
    frame = pandas.DataFrame(rows, columns=[*names, *_BOX])
    for time in _TIMES:
        frame[time] = pandas.to_datetime(frame[time], utc=True)
    numbers = ("score", "relevance", "cosine", "lexical_score", "confidence", *_BOX)
    return frame.astype(dict.fromkeys(numbers, "float64"))


def _row(hit: Hit, names: list[str]) -> dict[str, Any]:
    box = dict(zip(_BOX, hit.box or (None,) * 4, strict=True))
    return {name: getattr(hit, name) for name in names} | {"tags": list(hit.tags)} | box
