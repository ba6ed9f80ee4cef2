"""The two flat indices, one document an image and one an object, as OpenSearch takes them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from agents.settings import IndexSettings

_KEYWORD = {"type": "keyword"}
_STORED = {"type": "keyword", "index": False, "doc_values": False}
_SIMILARITY = "any_length"

#: Facts of an image that both indices hold, so that one filter works on either.
_IMAGE_FACTS: dict[str, Any] = {
    "image_id": _KEYWORD,
    "version": {"type": "long"},
    "event_source": _KEYWORD,
    "tenant": _KEYWORD,
    "filename": {"type": "keyword", "ignore_above": 1024},
    "dataref": _STORED,
    "tags": _KEYWORD,
    "captured_at": {"type": "date"},
    "uploaded_at": {"type": "date"},
    # Not parsed: whatever keys a publisher uses, they become no fields. Filters ask for `facts`.
    "metadata": {"type": "object", "enabled": False},
    "width": {"type": "integer"},
    "height": {"type": "integer"},
    # Of objects their own, of images those of all their objects: share of the image, and `agents.index.tokens`.
    "area": {"type": "double"},
    "ranked": _KEYWORD,
    "facts": _KEYWORD,
    "words": {
        "type": "text",
        # The words are parted by spaces already, so no version of an analyzer decides what is found.
        "analyzer": "whitespace",
        "similarity": _SIMILARITY,
        "norms": False,
        "index_options": "freqs",
    },
}

#: Made of other fields whenever a document is written, so they are not kept; no answer of OpenSearch holds them.
DERIVED = ("facts", "words")


#: What searches may see: neither deleted images nor those of which only an update has come so far. The image alias has
#: it as its filter, so it holds for every search and count through the alias.
VISIBLE: dict[str, Any] = {"bool": {"must_not": [{"term": {"hidden": True}}]}}


@dataclass(frozen=True)
class ModelIdentity:
    """The model whose vectors an index holds."""

    name: str
    digest: str
    dim: int
    classes: tuple[str, ...]


def index_name(alias: str, model: ModelIdentity) -> str:
    """The index behind an alias: one for each model, since vectors of two models are never compared."""
    return f"{alias}-{model.digest[:12]}"


def images_index(settings: IndexSettings, model: ModelIdentity) -> dict[str, Any]:
    """Settings and mappings of the image index."""
    own = {
        "event_id": _STORED,
        "content_type": _KEYWORD,
        "sha256": _KEYWORD,
        "size_bytes": {"type": "long"},
        "tags_version": {"type": "long"},
        "metadata_version": {"type": "long"},
        "deleted_version": {"type": "long"},
        "object_count": {"type": "integer"},
        "object_rows": {"type": "integer"},
        "hidden": {"type": "boolean"},
        # Of an image that is not there yet: searches must not see it, so it is not indexed.
        "kept": {"type": "object", "enabled": False},
        "classes": _KEYWORD,
    }
    return _index(settings, model, own)


def objects_index(settings: IndexSettings, model: ModelIdentity) -> dict[str, Any]:
    """Settings and mappings of the object index."""
    own = {
        "ordinal": {"type": "integer"},
        "class": _KEYWORD,
        "confidence": {"type": "float"},
        "box": {"type": "float", "index": False, "doc_values": False},
    }
    return _index(settings, model, own)


def _index(settings: IndexSettings, model: ModelIdentity, own: dict[str, Any]) -> dict[str, Any]:
    vector = {
        "type": "knn_vector",
        "dimension": model.dim,
        "space_type": "cosinesimil",
        "method": {
            "name": "hnsw",
            # Always named: without it the default engine, faiss, kills a node that has no native libraries.
            "engine": settings.engine,
            "parameters": {"m": settings.m, "ef_construction": settings.ef_construction},
        },
    }
    properties = {**_IMAGE_FACTS, **own, "vector": vector}
    return {
        "settings": {
            "index": {
                "knn": True,
                "number_of_shards": settings.shards,
                "auto_expand_replicas": f"0-{settings.replicas}",
                "refresh_interval": settings.refresh_interval,
                "gc_deletes": settings.gc_deletes,
                # Tags and file names are lists of words, not prose: a longer one is no worse.
                f"similarity.{_SIMILARITY}": {"type": "BM25", "b": 0},
            }
        },
        "mappings": {
            "dynamic": "strict",
            "_source": {"excludes": list(DERIVED)},
            "_meta": {"model_name": model.name, "model_digest": model.digest},
            "properties": properties,
        },
    }


def missing_engine(mapping: dict[str, Any]) -> Sequence[str]:
    """Names of vector fields without a named engine; creating an index with one would kill the node."""
    return [
        name
        for name, field in mapping["mappings"]["properties"].items()
        if field.get("type") == "knn_vector" and not field["method"].get("engine")
    ]
