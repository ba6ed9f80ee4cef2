"""What the index writer needs of OpenSearch, in memory: bulk with both kinds of versions, mget, a term search.

Its rules are those of the real one as far as the behaviours in `tests/index_behaviours.py` reach; they run on both.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from opensearchpy.exceptions import TransportError

from agents.index.mappings import DERIVED

#: Lucene takes no longer term.
_MAX_TERM_BYTES = 32_766


@dataclass
class _Stored:
    version: int
    #: None once deleted: OpenSearch remembers the version for `gc_deletes`.
    source: dict[str, Any] | None
    seq_no: int


@dataclass
class FakeOpenSearch:
    """Both indices of one model."""

    dim: int
    documents: dict[tuple[str, str], _Stored] = field(default_factory=dict)
    #: Bytes of a bulk from which on it answers 429, for the whole or, if it says so, for each item.
    most_bytes: int | None = None
    refuse_items: bool = False
    _writes: int = 0

    async def bulk(self, body: bytes, params: dict[str, Any] | None = None) -> dict[str, Any]:
        await asyncio.sleep(0)
        if self.most_bytes is not None and len(body) > self.most_bytes:
            error = {"type": "rejected_execution_exception", "reason": "queue is full"}
            if not self.refuse_items:
                raise TransportError(429, error["type"], {})
            refused = [{verb: {"status": 429, "error": error}} for verb, _target, _source in _actions(body)]
            return {"errors": True, "items": refused}
        items = [{verb: self._apply(verb, target, source)} for verb, target, source in _actions(body)]
        await asyncio.sleep(0)
        return {"errors": any(next(iter(i.values()))["status"] >= 400 for i in items), "items": items}

    async def mget(self, body: dict[str, Any], params: dict[str, Any] | None = None) -> dict[str, Any]:
        await asyncio.sleep(0)
        docs: list[dict[str, Any]] = []
        for wanted in body["docs"]:
            place = {"_index": wanted["_index"], "_id": wanted["_id"]}
            stored = self.documents.get((wanted["_index"], wanted["_id"]))
            if stored is None or stored.source is None:
                docs.append({**place, "found": False})
                continue
            fields = wanted.get("_source", list(stored.source))
            source = {name: stored.source[name] for name in fields if name in stored.source}
            docs.append({**place, "found": True, "_seq_no": stored.seq_no, "_primary_term": 1, "_source": source})
        await asyncio.sleep(0)
        return {"docs": docs}

    async def search(self, index: str, body: dict[str, Any], params: dict[str, Any] | None = None) -> dict[str, Any]:
        ((name, wanted),) = body["query"]["term"].items()
        hits = [
            {"_id": id_, "_source": stored.source}
            for (of, id_), stored in self.documents.items()
            if index in (of, of.rpartition("-")[0]) and stored.source is not None
            if wanted in _terms(stored.source.get(name))
            # The alias has a filter, the index behind it has none.
            if index == of or not stored.source.get("hidden")
        ]
        return {"hits": {"hits": hits[: body["size"]]}}

    def _apply(self, verb: str, target: dict[str, Any], source: dict[str, Any] | None) -> dict[str, Any]:
        key = (target["_index"], target["_id"])
        if source is not None and (refusal := self._refusal(source)):
            return {"_id": key[1], "status": 400, "error": refusal}
        stored = self.documents.get(key)
        existed = stored is not None and stored.source is not None
        if "version" in target:
            assert target["version_type"] == "external_gte", "the fake knows no other versions"
            version: int = target["version"]
            conflict = stored is not None and stored.version > version
        else:
            version = 1 if stored is None else stored.version + 1
            if verb == "create":
                conflict = existed
            else:
                seen = (target["if_seq_no"], target["if_primary_term"])
                conflict = stored is None or not existed or seen != (stored.seq_no, 1)
        if conflict:
            error = {"type": "version_conflict_engine_exception", "reason": "another version is there"}
            return {"_id": key[1], "status": 409, "error": error}
        self._writes += 1
        kept = source and {name: value for name, value in source.items() if name not in DERIVED}
        self.documents[key] = _Stored(version, kept, self._writes)
        if verb == "delete" and not existed:
            return {"_id": key[1], "status": 404, "result": "not_found"}
        return {"_id": key[1], "status": 200 if existed else 201, "result": "updated" if existed else "created"}

    def _refusal(self, source: dict[str, Any]) -> dict[str, str] | None:
        named = [source.get(name) or "" for name in ("content_type", "sha256")]
        terms = [*named, *(term for name in ("tags", "classes", "facts", "ranked") for term in source.get(name, ()))]
        if any(len(term.encode()) > _MAX_TERM_BYTES for term in terms):
            return {"type": "illegal_argument_exception", "reason": "Document contains at least one immense term"}
        if source.get("width", 0) >= 2**31:
            return {"type": "mapper_parsing_exception", "reason": "failed to parse field [width]"}
        if "vector" in source and (len(source["vector"]) != self.dim or not any(source["vector"])):
            return {"type": "mapper_parsing_exception", "reason": "failed to parse field [vector]"}
        return None


def _terms(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _actions(body: bytes) -> Iterator[tuple[str, dict[str, Any], dict[str, Any] | None]]:
    assert body.endswith(b"\n"), "OpenSearch wants a newline after the last line"
    lines = iter(body.splitlines())
    for line in lines:
        ((verb, target),) = json.loads(line).items()
        yield verb, target, None if verb == "delete" else json.loads(next(lines))
