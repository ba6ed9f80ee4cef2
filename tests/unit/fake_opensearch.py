"""What the index writer needs of OpenSearch, in memory: bulk and mget with `external_gte` versions, and a term search.

Its rules are those of the real one as far as the behaviours in `tests/index_behaviours.py` reach; they run on both.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

#: Lucene takes no longer term.
_MAX_TERM_BYTES = 32_766


@dataclass
class _Stored:
    version: int
    #: None once deleted: OpenSearch remembers the version for `gc_deletes`.
    source: dict[str, Any] | None


@dataclass
class FakeOpenSearch:
    """Both indices of one model."""

    dim: int
    classes: tuple[str, ...]
    documents: dict[tuple[str, str], _Stored] = field(default_factory=dict)

    async def bulk(self, body: str, params: dict[str, Any] | None = None) -> dict[str, Any]:
        await asyncio.sleep(0)
        items = [{verb: self._apply(verb, target, source)} for verb, target, source in _actions(body)]
        await asyncio.sleep(0)
        return {"errors": any(next(iter(i.values()))["status"] >= 400 for i in items), "items": items}

    async def mget(self, index: str, body: dict[str, Any], params: dict[str, Any] | None = None) -> dict[str, Any]:
        await asyncio.sleep(0)
        fields = (params or {})["_source_includes"].split(",")
        docs: list[dict[str, Any]] = []
        for id_ in body["ids"]:
            stored = self.documents.get((index, id_))
            if stored is None or stored.source is None:
                docs.append({"_index": index, "_id": id_, "found": False})
            else:
                source = {name: stored.source[name] for name in fields}
                docs.append({"_index": index, "_id": id_, "found": True, "_source": source})
        await asyncio.sleep(0)
        return {"docs": docs}

    async def search(self, index: str, body: dict[str, Any], params: dict[str, Any] | None = None) -> dict[str, Any]:
        (name, wanted), *_others = body["query"]["term"].items()
        hits = [
            {"_id": id_, "_source": stored.source}
            for (of, id_), stored in self.documents.items()
            if index in (of, of.rpartition("-")[0]) and stored.source is not None and stored.source[name] == wanted
        ]
        return {"hits": {"hits": hits[: body["size"]]}}

    def _apply(self, verb: str, target: dict[str, Any], source: dict[str, Any] | None) -> dict[str, Any]:
        assert target["version_type"] == "external_gte", "the fake knows no other versions"
        key = (target["_index"], target["_id"])
        version: int = target["version"]
        if source is not None and (refusal := self._refusal(source)):
            return {"_id": key[1], "status": 400, "error": refusal}
        stored = self.documents.get(key)
        if stored is not None and stored.version > version:
            error = {"type": "version_conflict_engine_exception", "reason": "current version is higher"}
            return {"_id": key[1], "status": 409, "error": error}
        existed = stored is not None and stored.source is not None
        self.documents[key] = _Stored(version, source)
        if verb == "delete" and not existed:
            return {"_id": key[1], "status": 404, "result": "not_found"}
        return {"_id": key[1], "status": 200 if existed else 201, "result": "updated" if existed else "created"}

    def _refusal(self, source: dict[str, Any]) -> dict[str, str] | None:
        terms = [*source.get("tags", ()), *source.get("classes", ()), source.get("content_type") or ""]
        if any(len(term.encode()) > _MAX_TERM_BYTES for term in terms):
            return {"type": "illegal_argument_exception", "reason": "Document contains at least one immense term"}
        unknown = set(source.get("class_confidence", ())) - set(self.classes)
        if unknown:
            return {"type": "strict_dynamic_mapping_exception", "reason": f"introduction of {sorted(unknown)}"}
        if len(source["vector"]) != self.dim or not any(source["vector"]):
            return {"type": "mapper_parsing_exception", "reason": "failed to parse field [vector]"}
        return None


def _actions(body: str) -> Iterator[tuple[str, dict[str, Any], dict[str, Any] | None]]:
    assert body.endswith("\n"), "OpenSearch wants a newline after the last line"
    lines = iter(body.splitlines())
    for line in lines:
        ((verb, target),) = json.loads(line).items()
        yield verb, target, json.loads(next(lines)) if verb == "index" else None
