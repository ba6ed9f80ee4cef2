"""k-NN searches with the filters inside, and their hits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from opensearchpy import AsyncOpenSearch
from opensearchpy.exceptions import NotFoundError

from agents.delivery.failures import DependencyDown
from agents.index.connection import check_model, translated_failures
from agents.index.found import Found
from agents.index.mappings import ModelIdentity, confidence_field, index_name
from agents.index.question import VectorQuestion
from agents.settings import IndexSettings
from sightlog.errors import ContractError
from sightlog.fields import FloatArray
from sightlog.filters import SearchFilters
from sightlog.search import Hit, SearchRequest


class IndexSearcher:
    """Searches both indices."""

    def __init__(self, client: AsyncOpenSearch, settings: IndexSettings, model: ModelIdentity, cursors: object) -> None:
        self._client = client
        self._settings = settings
        self._model = model

    async def turn_page(self, page: object, timeout: float) -> Found:
        raise ContractError("bad_cursor", "not yet")

    async def vector_of(self, kind: str, identity: str) -> FloatArray:
        raise ContractError("bad_cursor", "not yet")

    async def search(self, request: SearchRequest, question: VectorQuestion | None, timeout: float) -> Found:
        """The `k` nearest images or objects that fulfil the filters, by falling score.

        `vector`: float32 [dim] of this searcher's model; the index of that model is asked by its name, so a query never
        meets vectors of another one. Raises ContractError `unknown_class`, ConfigurationError when only another model
        has indices, DependencyDown.
        """
        assert question is not None
        filters = self.filter_clauses(request.target, request.filters)
        knn: dict[str, Any] = {
            "vector": question.vector,
            "k": request.k,
            # Always sent: the default beam differs between versions of OpenSearch.
            "method_parameters": {"ef_search": max(self._settings.ef_search, request.k)},
        }
        if filters:
            knn["filter"] = {"bool": {"filter": filters}}
        body = {
            "size": request.k,
            "query": {"knn": {"vector": knn}},
            "_source": {"excludes": ["vector"]},
            "track_total_hits": False,
        }
        alias = self._settings.images if request.target == "images" else self._settings.objects
        try:
            with translated_failures("search"):
                found = await self._client.search(
                    index=index_name(alias, self._model),
                    body=body,
                    params={
                        "filter_path": "hits.hits._id,hits.hits._score,hits.hits._source",
                        "request_timeout": timeout,
                    },
                )
        except NotFoundError:
            await check_model(self._client, self._settings, self._model)
            raise DependencyDown(f"OpenSearch: no {alias} of model {self._model.name}; an indexer creates it") from None
        return Found(tuple(_hit(request.target, entry) for entry in found.get("hits", {}).get("hits", ())))

    def filter_clauses(self, target: str, filters: SearchFilters) -> list[dict[str, Any]]:
        """The conditions as OpenSearch filter clauses, all of which must hold."""
        if unknown := sorted(set(filters.classes.any) - set(self._model.classes)):
            known = ", ".join(self._model.classes)
            raise ContractError("unknown_class", f"{', '.join(unknown)}; the model knows {known}")
        clauses: list[dict[str, Any]] = [{"term": {"tags": tag}} for tag in filters.tags.all]
        clauses += _range("captured_at", filters.captured_from, filters.captured_to)
        clauses += _range("uploaded_at", filters.uploaded_from, filters.uploaded_to)
        clauses += _class_clauses(target, filters.classes.any, filters.min_confidence)
        return clauses


def _class_clauses(target: str, classes: Sequence[str], min_confidence: float | None) -> list[dict[str, Any]]:
    if target == "objects":
        clauses: list[dict[str, Any]] = [{"terms": {"class": list(classes)}}] if classes else []
        return clauses + _range("confidence", min_confidence, None)
    if not classes:
        return _range("max_confidence", min_confidence, None)
    if min_confidence is None:
        return [{"terms": {"classes": list(classes)}}]
    # Of an image at least one of these classes must be that sure, not any other object of it.
    sure = [clause for name in classes for clause in _range(confidence_field(name), min_confidence, None)]
    return [{"bool": {"should": sure, "minimum_should_match": 1}}]


def _range(field: str, at_least: Any, below: Any) -> list[dict[str, Any]]:
    limits = {name: value for name, value in (("gte", at_least), ("lt", below)) if value is not None}
    return [{"range": {field: limits}}] if limits else []


def _hit(target: str, entry: dict[str, Any]) -> Hit:
    source = entry["_source"]
    is_object = target == "objects"
    return Hit(
        image_id=source["image_id"],
        score=entry["_score"],
        # OpenSearch scores cosine similarity as (1 + cosine) / 2.
        cosine=2 * entry["_score"] - 1,
        source=source.get("dataref") or source.get("filename") or source["event_source"],
        object_id=entry["_id"] if is_object else None,
        class_name=source["class"] if is_object else None,
        confidence=source["confidence"] if is_object else None,
        box=source["box"] if is_object else None,
        width=source["width"],
        height=source["height"],
        tags=source.get("tags", ()),
        captured_at=source.get("captured_at"),
        uploaded_at=source["uploaded_at"],
        metadata=source.get("metadata", {}),
    )
