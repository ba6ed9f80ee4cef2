"""One example of every message, made from the types, the same on each run; the AsyncAPI document shows them."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone

import numpy as np

from sightlog.dead_letters import DeadLetter, Resolution
from sightlog.documents import (
    Detection,
    EmbeddingDocument,
    ImageDeletion,
    ImageUpdate,
    IndexReceipt,
    ModelRef,
    log_version,
    object_id,
)
from sightlog.events import ImageDeleted, ImageUpdated, ImageUploaded
from sightlog.filters import ClassFilter, MetadataFilter, SearchFilters
from sightlog.history import History, Origin, failed_hop
from sightlog.reply_address import ReplyAddress
from sightlog.search import Clause, FacetCount, Hit, SearchError, SearchReply, SearchRequest

_AT = datetime(2026, 3, 1, 9, 30, tzinfo=timezone.utc)
_IMAGE = "album/7"
_SOURCE = "/camera/3"
_VERSION = log_version(round(_AT.timestamp() * 1000), 41)
_DIGEST = "5a" * 32
_BOX = (120.0, 80.0, 420.0, 560.0)
#: Four values stand for the hundreds that a model gives.
_VECTOR = np.array([0.5, -0.5, 0.5, 0.5], dtype=np.float32)
_ORIGIN = Origin(topic="images", partition=2, offset=41, timestamp=_AT)

UPLOADED = ImageUploaded(
    id="3f1c",
    source=_SOURCE,
    time=_AT,
    filename="beach.jpg",
    tags=("holiday", "sea"),
    capturedat=_AT - timedelta(days=2),
    metadata={"place": "Sylt", "gps": {"lat": 54.9}},
    datacontenttype="image/jpeg",
    dataref="s3://uploads/beach.jpg",
)
UPDATED = ImageUpdated(id="3f1d", source=_SOURCE, time=_AT, tags=("holiday", "dog"))
DELETED = ImageDeleted(id="3f1e", source=_SOURCE, time=_AT)

EMBEDDED = EmbeddingDocument(
    image_id=_IMAGE,
    version=_VERSION,
    event_id=UPLOADED.id,
    event_source=_SOURCE,
    filename=UPLOADED.filename,
    tags=UPLOADED.tags,
    captured_at=UPLOADED.capturedat,
    uploaded_at=_AT,
    metadata=UPLOADED.metadata,
    dataref=UPLOADED.dataref,
    content_type=UPLOADED.datacontenttype,
    sha256="c4" * 32,
    size_bytes=183_201,
    width=1200,
    height=800,
    model=ModelRef(name="example", digest=_DIGEST),
    vector=_VECTOR,
    detections=(
        Detection(
            ordinal=0,
            class_name="dog",
            confidence=0.91,
            box=_BOX,
            box_normalised=(0.1, 0.1, 0.35, 0.7),
            vector=_VECTOR,
        ),
    ),
)
UPDATE = ImageUpdate(
    image_id=_IMAGE,
    version=_VERSION + 1,
    event_id=UPDATED.id,
    event_source=_SOURCE,
    updated_at=_AT,
    tags=UPDATED.tags,
)
DELETION = ImageDeletion(
    image_id=_IMAGE, version=_VERSION + 2, event_id=DELETED.id, event_source=_SOURCE, deleted_at=_AT
)
RECEIPT = IndexReceipt(
    image_id=_IMAGE, version=_VERSION, objects=1, uploaded_at=_AT, searchable_at=_AT + timedelta(seconds=1.4)
)

_HOP = failed_hop("vision", "source_missing", "s3://uploads/beach.jpg is not there", _ORIGIN, _AT)
#: After the first failed attempt.
HISTORY = History(origin=_ORIGIN, attempts=0, first_failed_at=_AT).after(_HOP)
DEAD_LETTER = DeadLetter(
    code=_HOP.code,
    message=_HOP.message,
    stage="vision",
    origin=_ORIGIN,
    failed_at=_AT,
    hops=(_HOP,),
    image_id=_IMAGE,
    key=_IMAGE.encode(),
    headers=(("ce_type", UPLOADED.type.encode()),),
    value=b"",
    value_bytes=0,
    dataref=UPLOADED.dataref,
)
RESOLUTION = Resolution(
    id=DEAD_LETTER.id,
    action="replayed",
    letter=Origin(topic="images.dead", partition=0, offset=6, timestamp=_AT),
    at=_AT + timedelta(hours=3),
)

ADDRESS = ReplyAddress(
    topic="search.replies",
    partition=5,
    correlation_id=b"6c1f2e",
    deadline_ms=round((_AT + timedelta(seconds=5)).timestamp() * 1000),
    caller="web-1",
)
REQUESTS = {
    "words": SearchRequest(text="a dog on the beach", k=3),
    "combined": SearchRequest(
        clauses=(Clause(text="beach"), Clause(text="people", weight=-0.5), Clause(image_id=_IMAGE, weight=0.8)),
        lexical="sylt",
        filters=SearchFilters(
            classes=ClassFilter(any=("dog",)),
            min_confidence=0.6,
            captured_from=_AT - timedelta(days=60),
            metadata=(MetadataFilter(field="gps.lat", at_least=54.0, below=55.0),),
        ),
        facets=("tags",),
        pages=True,
    ),
}
REPLIES = {
    "found": SearchReply(
        hits=(
            Hit(
                image_id=_IMAGE,
                object_id=object_id(_IMAGE, 0),
                class_name="dog",
                confidence=0.91,
                score=0.83,
                relevance=0.83,
                cosine=0.31,
                source="s3://uploads/beach.jpg",
                box=_BOX,
                width=1200,
                height=800,
                tags=UPLOADED.tags,
                captured_at=UPLOADED.capturedat,
                uploaded_at=_AT,
                metadata=UPLOADED.metadata,
            ),
        ),
        facets={"tags": (FacetCount(value="holiday", count=1),)},
        model_digest=_DIGEST,
        took_ms=7.2,
    ),
    "refused": SearchReply(error=SearchError(code="bad_request", message="k: Input should be greater than 0")),
}
