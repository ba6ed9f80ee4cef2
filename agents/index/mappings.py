"""The two flat indices, one document an image and one an object, as OpenSearch takes them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from agents.settings import IndexSettings

_KEYWORD = {"type": "keyword"}
_STORED = {"type": "keyword", "index": False, "doc_values": False}

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
    "metadata": {"type": "flat_object"},
    "width": {"type": "integer"},
    "height": {"type": "integer"},
}


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


def confidence_field(class_name: str) -> str:
    """Field of an image document with the highest confidence of a class; OpenSearch splits names at dots."""
    return "class_confidence." + re.sub(r"[^\w-]+", "_", class_name)


def index_name(alias: str, model: ModelIdentity) -> str:
    """The index behind an alias: one for each model, since vectors of two models are never compared."""
    return f"{alias}-{model.digest[:12]}"


def images_index(settings: IndexSettings, model: ModelIdentity) -> dict[str, Any]:
    """Settings and mappings of the image index."""
    confidences = {confidence_field(name).split(".", 1)[1]: {"type": "float"} for name in model.classes}
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
        "max_confidence": {"type": "float"},
        "class_confidence": {"properties": confidences},
    }
    return _index(settings, model, own)


def objects_index(settings: IndexSettings, model: ModelIdentity) -> dict[str, Any]:
    """Settings and mappings of the object index."""
    own = {
        "ordinal": {"type": "integer"},
        "class": _KEYWORD,
        "confidence": {"type": "float"},
        "box": {"type": "float", "index": False, "doc_values": False},
        "area": {"type": "float"},
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
                "mapping.total_fields.limit": 200 + len(model.classes),
            }
        },
        "mappings": {
            "dynamic": "strict",
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
