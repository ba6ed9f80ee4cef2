"""Recall: what counts as found."""

from __future__ import annotations

import numpy as np
import pytest

from load_tests.recall import share_found

COSINES = np.array([0.1, 0.9, 0.8, 0.7, 0.7, 0.6], np.float32)
ALL = np.ones(6, bool)


@pytest.mark.parametrize(
    ("found", "k", "share"),
    [
        ({1, 2}, 2, 1.0),
        ({2, 1, 0}, 2, 1.0),
        ({1, 0}, 2, 0.5),
        (set(), 2, 0.0),
        ({1, 2, 4}, 3, 1.0),  # as near as number 3
        ({1, 2, 3, 4}, 3, 1.0),
        ({1, 2, 5}, 3, 2 / 3),
        ({0, 1, 2, 3, 4, 5}, 10, 1.0),
    ],
    ids=str,
)
def test_share_of_the_nearest_that_were_found(found: set[int], k: int, share: float) -> None:
    assert share_found(COSINES, ALL, found, k) == pytest.approx(share)


def test_what_the_filter_leaves_out_is_not_wanted_and_does_not_count() -> None:
    among = np.array([True, False, True, False, False, True])
    assert share_found(COSINES, among, {2, 5}, 2) == 1.0
    assert share_found(COSINES, among, {1, 2}, 2) == 0.5
    assert share_found(COSINES, np.zeros(6, bool), set(), 2) == 1.0
