"""What the log says about one image: registers of which the last writer wins, joined in any order with the same end.

Uploads, updates and deletions of an image may arrive late, twice and in any order. Each is itself a state, and two
states are joined register by register: the greater version stays. Joining is commutative, associative and idempotent,
so every order and every repetition ends in the same state, and nothing that is written ever has to be taken back.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import reduce
from typing import Any

from agents.index.documents import Content, content_of
from sightlog.documents import EmbeddingDocument, ImageChange, ImageUpdate


@dataclass(frozen=True)
class ImageState:
    """The registers of an image; a version of 0 was never written.

    An upload writes content, tags and metadata, an update what it brings, a deletion hides whatever is older than it.
    """

    version: int = 0
    tags_version: int = 0
    metadata_version: int = 0
    deleted_version: int = 0
    #: As many objects as the image ever had: whatever the index holds of it has an ordinal below.
    object_rows: int = 0
    #: None where there is none, or where it is in the index only.
    content: Content | None = None
    tags: tuple[str, ...] = ()
    metadata: Mapping[str, Any] = field(default_factory=dict)

    @property
    def registers(self) -> tuple[int, int, int, int]:
        """The four versions."""
        return self.version, self.tags_version, self.metadata_version, self.deleted_version

    @property
    def visible(self) -> bool:
        """Whether searches may find it: not before its upload, and not after its deletion."""
        return self.version > self.deleted_version

    @property
    def revision(self) -> int:
        """Grows whenever a register does; the version of the object documents."""
        return sum(self.registers)


def joined(state: ImageState, change: ImageState) -> ImageState:
    """Both states in one. Of equal versions, which are of the same event, `change` stays."""
    content = change if change.version >= state.version else state
    tags = change if change.tags_version >= state.tags_version else state
    metadata = change if change.metadata_version >= state.metadata_version else state
    deleted = max(state.deleted_version, change.deleted_version)
    return ImageState(
        version=content.version,
        tags_version=tags.tags_version,
        metadata_version=metadata.metadata_version,
        deleted_version=deleted,
        object_rows=max(state.object_rows, change.object_rows),
        # What a deletion hides never shows again, so it is not kept.
        content=content.content if content.version > deleted else None,
        tags=tags.tags if tags.tags_version > deleted else (),
        metadata=metadata.metadata if metadata.metadata_version > deleted else {},
    )


def state_of(change: ImageChange) -> ImageState:
    """What one record of `images.embedded` says."""
    at = change.version
    if isinstance(change, EmbeddingDocument):
        return ImageState(
            version=at,
            tags_version=at,
            metadata_version=at,
            object_rows=len(change.detections),
            content=content_of(change),
            tags=change.tags,
            metadata=change.metadata,
        )
    if isinstance(change, ImageUpdate):
        state = ImageState()
        if change.tags is not None:
            state = replace(state, tags_version=at, tags=change.tags)
        if change.metadata is not None:
            state = replace(state, metadata_version=at, metadata=change.metadata)
        return state
    return ImageState(deleted_version=at)


def state_of_all(changes: Iterable[ImageChange]) -> ImageState:
    """What several records of one image say."""
    return reduce(joined, map(state_of, changes), ImageState())


def has_part_in(change: ImageState, state: ImageState) -> bool:
    """Whether a register of `state` is of this change, so that documents may have to be written for it."""
    return any(own and own == held for own, held in zip(change.registers, state.registers, strict=True))


def superseded(change: ImageChange, state: ImageState) -> bool:
    """Whether nothing of the change shows any more, in a state that it was joined to."""
    if isinstance(change, EmbeddingDocument):
        return state.version > change.version or state.deleted_version > change.version
    if isinstance(change, ImageUpdate):
        own = state_of(change)
        shows = change.version in (
            own.tags_version and state.tags_version,
            own.metadata_version and state.metadata_version,
        )
        return not shows or state.deleted_version > change.version
    return state.deleted_version > change.version or state.version > change.version
