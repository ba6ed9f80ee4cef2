"""The documents of the two indices: from what an upload says, and back from what the indices hold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from agents.index.mappings import DERIVED
from agents.index.tokens import facts, ranked, words, words_of_object
from sightlog.documents import EmbeddingDocument

if TYPE_CHECKING:
    from agents.index.state import ImageState

#: Fields of a document that are not of the upload, or may have been changed since.
_REGISTERS = ("version", "tags_version", "metadata_version", "deleted_version", "object_rows")
_CHANGEABLE = (*_REGISTERS, "tags", "metadata", *DERIVED)


@dataclass(frozen=True)
class Content:
    """What an upload and its inference say of an image, as fields of its documents."""

    image: Mapping[str, Any]
    objects: Sequence[Mapping[str, Any]]


def content_of(document: EmbeddingDocument) -> Content:
    """The fields of an upload."""
    shared = _without_nothing(
        {
            "image_id": document.image_id,
            "event_source": document.event_source,
            "tenant": document.tenant,
            "filename": document.filename,
            "dataref": document.dataref,
            "captured_at": document.captured_at,
            "uploaded_at": document.uploaded_at,
            "width": document.width,
            "height": document.height,
        }
    )
    objects = [
        {
            **shared,
            "ordinal": detection.ordinal,
            "class": detection.class_name,
            "confidence": detection.confidence,
            "box": detection.box,
            "area": (detection.box_normalised[2] - detection.box_normalised[0])
            * (detection.box_normalised[3] - detection.box_normalised[1]),
            "ranked": ranked([(detection.class_name, detection.confidence)]),
            "vector": detection.vector,
        }
        for detection in document.detections
    ]
    image = {
        **shared,
        "event_id": document.event_id,
        "content_type": document.content_type,
        "sha256": document.sha256,
        "size_bytes": document.size_bytes,
        "object_count": len(objects),
        "classes": list(dict.fromkeys(detection.class_name for detection in document.detections)),
        "area": [one["area"] for one in objects],
        "ranked": ranked((one.class_name, one.confidence) for one in document.detections),
        "vector": document.vector,
    }
    return Content(image, objects)


def stored_content(image: Mapping[str, Any], objects: Sequence[Mapping[str, Any]]) -> Content:
    """The fields of an upload, from the documents of it in the indices."""
    return Content(_without(image, _CHANGEABLE), [_without(one, _CHANGEABLE) for one in objects])


def image_document(image_id: str, state: ImageState) -> dict[str, Any]:
    """The document of the image index.

    Of an image that is deleted, or not uploaded yet, it has no field that a filter could match, and no vector: it only
    remembers. `content` must be in hand when the state is visible.
    """
    registers = {name: getattr(state, name) for name in _REGISTERS}
    changeable = _without_nothing({"tags": state.tags, "metadata": state.metadata})
    if not state.visible:
        kept = {"kept": changeable} if changeable else {}
        return {"image_id": image_id, **registers, "object_count": 0, "hidden": True, **kept}
    assert state.content is not None
    return {**state.content.image, **registers, **changeable, **_derived(state)}


def object_documents(state: ImageState) -> list[dict[str, Any]]:
    """The documents of the object index, one a detection, each with the facts of its image; none of a hidden image."""
    if not state.visible or state.content is None:
        return []
    changeable = _without_nothing({"version": state.version, "tags": state.tags, "metadata": state.metadata})
    derived = _derived(state)
    return [
        {**one, **changeable, **derived, "words": words_of_object(derived["words"], one["class"])}
        for one in state.content.objects
    ]


def _derived(state: ImageState) -> dict[str, Any]:
    """What filters and words are compared with, of all that may change."""
    assert state.content is not None
    found = words(state.content.image.get("filename"), state.tags, state.metadata)
    return {"facts": facts(state.metadata), "words": found}


def _without_nothing(facts: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in facts.items() if value not in (None, (), {})}


def _without(fields: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if name not in names}
