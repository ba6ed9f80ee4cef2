"""Whether what the index found is what the oracle expects."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from agents.index.found import Found
from sightlog.search import Hit, SearchRequest
from tests.oracle import Answer, Expected


def assert_same(request: SearchRequest, hits: Sequence[Hit], expected: Answer, where: str) -> None:
    """The same ids in the same order; documents of one score may stand for each other."""
    wanted = expected.hits if request.pages else expected.hits[: request.k]
    by_id = {hit.id: hit for hit in expected.hits}
    ids = [_id(hit) for hit in hits]
    assert len(set(ids)) == len(ids), f"repeated: {where}"
    assert set(ids) <= set(by_id), f"never expected {set(ids) - set(by_id)}: {where}"
    # Weighted scores of two documents may be as near as float32 is coarse; ranks are exact.
    close = 1e-6 if request.fusion == "weighted" else 1e-12
    differing = [
        place
        for place, (id_, one) in enumerate(zip(ids, wanted, strict=False))
        if abs(by_id[id_].score - one.score) > close
    ]
    assert not differing, (
        f"at {differing[0]} of {len(wanted)} {ids[differing[0]]}, not {wanted[differing[0]].id}: {where}"
    )
    assert len(ids) == len(wanted), where
    for hit in hits:
        _assert_like(hit, by_id[_id(hit)], request, where)


def _assert_like(hit: Hit, expected: Expected, request: SearchRequest, where: str) -> None:
    image, detection = expected.thing.image, expected.thing.detection
    for name, value in (
        ("score", expected.score),
        ("cosine", expected.cosine),
        ("relevance", expected.relevance),
        ("lexical_score", expected.lexical),
    ):
        assert getattr(hit, name) == (None if value is None else pytest.approx(value, abs=2e-5)), f"{name}: {where}"
    assert (hit.image_id, hit.width, hit.height) == (image.image_id, image.width, image.height), where
    assert (hit.tags, hit.metadata, hit.uploaded_at) == (image.tags, image.metadata, image.uploaded_at), where
    assert hit.captured_at == image.captured_at, where
    if detection is not None:
        assert (hit.class_name, hit.box) == (detection.class_name, detection.box), where
        assert hit.confidence == pytest.approx(detection.confidence), where
    assert (hit.vector is not None) == request.include_vectors, where
    if hit.vector is not None:
        np.testing.assert_allclose(hit.vector, (detection or image).vector, atol=1e-6)


def assert_same_facts(request: SearchRequest, found: Found, expected: Answer, where: str) -> None:
    facets = {name: {one.value: one.count for one in counts} for name, counts in found.facets.items()}
    assert facets == expected.facets, where
    for name, counts in found.facets.items():
        by_name = name.endswith("month")
        assert list(counts) == sorted(counts, key=lambda one: (0 if by_name else -one.count, one.value)), where
    assert found.no_good_match == expected.no_good_match, where
    assert not found.partial, where
    if not request.pages:
        assert found.cursor is None, where


def _id(hit: Hit) -> str:
    return hit.object_id or hit.image_id
