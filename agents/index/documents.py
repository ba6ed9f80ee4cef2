"""From an embedding document to the documents of the two indices."""

from __future__ import annotations

from typing import Any

from agents.index.mappings import confidence_field
from sightlog.documents import EmbeddingDocument


def image_document(document: EmbeddingDocument) -> dict[str, Any]:
    """The document of the image index; the best confidence of each class makes class filters work on images."""
    best: dict[str, float] = {}
    for detection in document.detections:
        best[detection.class_name] = max(detection.confidence, best.get(detection.class_name, 0.0))
    return {
        **_facts(document),
        "event_id": document.event_id,
        "content_type": document.content_type,
        "sha256": document.sha256,
        "size_bytes": document.size_bytes,
        "object_count": len(document.detections),
        "classes": list(best),
        "max_confidence": max(best.values(), default=0.0),
        "class_confidence": {confidence_field(name).split(".", 1)[1]: value for name, value in best.items()},
        "vector": document.vector,
    }


def object_documents(document: EmbeddingDocument) -> list[dict[str, Any]]:
    """The documents of the object index, one a detection, each with the facts of its image."""
    facts = _facts(document)
    return [
        {
            **facts,
            "ordinal": detection.ordinal,
            "class": detection.class_name,
            "confidence": detection.confidence,
            "box": detection.box,
            "area": (detection.box_normalised[2] - detection.box_normalised[0])
            * (detection.box_normalised[3] - detection.box_normalised[1]),
            "vector": detection.vector,
        }
        for detection in document.detections
    ]


def _facts(document: EmbeddingDocument) -> dict[str, Any]:
    facts = {
        "image_id": document.image_id,
        "version": document.version,
        "event_source": document.event_source,
        "tenant": document.tenant,
        "filename": document.filename,
        "dataref": document.dataref,
        "tags": document.tags,
        "captured_at": document.captured_at,
        "uploaded_at": document.uploaded_at,
        "metadata": document.metadata,
        "width": document.width,
        "height": document.height,
    }
    return {name: value for name, value in facts.items() if value not in (None, (), {})}
