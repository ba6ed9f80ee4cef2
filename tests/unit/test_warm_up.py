"""How long a benchmark warms up before it measures."""

from __future__ import annotations

import itertools

import pytest

from load_tests.running import warm_up


@pytest.mark.parametrize(
    ("costs", "parts"),
    [
        ([9.0, 9.0, 9.0, 9.0], 3),  # warm already: the first part and two that are no cheaper
        ([40.0, 25.0, 15.0, 10.0, 9.5, 9.4, 9.3], 6),
        ([40.0, 44.0, 25.0, 10.0, 10.0, 10.0, 10.0], 6),  # one dear part is not the end
        ([40.0, 10.0, 44.0, 20.0, 9.5], 4),  # nor is one cheaper than a dear one a gain
        ([0.8**number for number in range(99)], 10),  # never settles
    ],
)
def test_warm_up_ends_when_two_parts_in_a_row_are_no_cheaper(costs: list[float], parts: int) -> None:
    spent = iter([0.0, *itertools.accumulate(itertools.chain.from_iterable((cost, 5.0) for cost in costs))])
    assert list(warm_up(lambda: next(spent))) == list(range(1, parts + 1))
