"""The two ways to find documents, by nearness and by words, as queries with the filters inside."""

from __future__ import annotations

import math
from typing import Any

from agents.index.filters import Query
from agents.index.question import VectorQuestion
from agents.index.tokens import words_asked
from agents.settings import IndexSettings
from sightlog.search import MAX_RESULTS


def nearest(question: VectorQuestion, k: int, filters: Query | None, exact: bool, settings: IndexSettings) -> Query:
    """The `k` nearest documents; their scores are (1 + cosine) / 2. `exact`: every vector is compared."""
    if exact:
        # Images that are hidden have no vector.
        among: dict[str, Any] = {"filter": [{"exists": {"field": "vector"}}, *([filters] if filters else [])]}
        parameters = {"field": "vector", "query_value": question.vector, "space_type": "cosinesimil"}
        script = {"lang": "knn", "source": "knn_score", "params": parameters}
        return {"script_score": {"query": {"bool": among}, "script": script}}
    beam = min(max(settings.ef_search, math.ceil(k * settings.oversampling)), MAX_RESULTS)
    # The beam is always sent: its default differs between versions of OpenSearch.
    knn: dict[str, Any] = {"vector": question.vector, "k": k, "method_parameters": {"ef_search": max(beam, k)}}
    if filters is not None:
        knn["filter"] = filters
    return {"knn": {"vector": knn}}


def matching(lexical: str, filters: Query | None) -> Query:
    """The documents with at least one of the words, scored by BM25."""
    wanted = words_asked(lexical)
    if not wanted:
        return {"match_none": {}}
    match = {"match": {"words": {"query": " ".join(wanted)}}}
    return {"bool": {"must": [match], **({"filter": [filters]} if filters else {})}}
