"""Whether something grows: a robust slope over samples."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

#: Of a run, what is left out at its beginning: caches fill, code is compiled.
_SETTLING = 0.25


class Series:
    """Samples of one quantity in the order of time."""

    def __init__(self) -> None:
        self._seconds: list[float] = []
        self._values: list[float] = []

    def add(self, seconds: float, value: float) -> None:
        """A sample, `seconds` after the start."""
        self._seconds.append(seconds)
        self._values.append(value)

    @property
    def last(self) -> float:
        """The newest value."""
        return self._values[-1]

    def summary(self) -> dict[str, float | None]:
        """Medians of the first and last third, the highest value, and the slope an hour, after the settling."""
        begin = self._seconds[-1] * _SETTLING
        settled = [(s, v) for s, v in zip(self._seconds, self._values, strict=True) if s >= begin]
        values = [value for _, value in settled]
        third = max(1, len(values) // 3)
        slope = slope_per_hour([seconds for seconds, _ in settled], values)
        return {
            "first": round(float(np.median(values[:third])), 2),
            "last": round(float(np.median(values[-third:])), 2),
            "highest": round(max(values), 2),
            "slope_per_hour": None if slope is None else round(slope, 2),
        }


def slope_per_hour(seconds: Sequence[float], values: Sequence[float]) -> float | None:
    """The median of the slopes between all pairs (Theil, Sen): single outliers do not move it. None of one sample."""
    at, value = np.asarray(seconds, np.float64), np.asarray(values, np.float64)
    first, second = np.triu_indices(len(at), 1)
    apart = at[second] - at[first]
    slopes = (value[second] - value[first])[apart > 0] / apart[apart > 0]
    return float(np.median(slopes)) * 3600 if len(slopes) else None
