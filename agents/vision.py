"""The vision agent: image events in, embedding documents out, dead letters for what cannot be seen."""

from __future__ import annotations

import faust
import numpy as np
from faust.streams import Stream

from agents.app import attach, new_app, new_outbox
from agents.delivery.failures import ItemBroken
from agents.delivery.outbox import Outbox
from agents.delivery.records import Record
from agents.delivery.retry import until_up
from agents.delivery.window import drain
from agents.inference.client import TritonClient
from agents.inference.results import ImageInference
from agents.settings import AgentSettings
from agents.sources.reader import SourceReader
from models.manifest import ModelManifest, load_manifest
from sightlog.documents import Detection, EmbeddingDocument, ModelRef, log_version
from sightlog.errors import ContractError
from sightlog.events import ImageUploaded, parse_event


def vision_app(settings: AgentSettings) -> faust.App:
    """The Faust app of the consumer group `sightlog-vision`."""
    manifest = load_manifest(settings.model_folder)

    async def vision(stream: Stream[bytes]) -> None:
        triton = TritonClient(settings.triton, manifest.digest, concurrency=settings.vision_concurrency)
        async with triton, new_outbox("vision", settings, linger_ms=5) as outbox:
            agent = Vision(settings, manifest, triton, outbox)
            await drain(stream.noack(), agent.see, settings.vision_window)

    return attach(new_app("vision", settings), settings.topics.images, vision)


class Vision:
    """Sees one image after another; many run side by side, which is what fills Triton's batches."""

    def __init__(self, settings: AgentSettings, manifest: ModelManifest, triton: TritonClient, outbox: Outbox) -> None:
        self._settings = settings
        self._manifest = manifest
        self._triton = triton
        self._outbox = outbox
        self._sources = SourceReader(settings.folders, settings.max_image_bytes)

    async def see(self, records: list[Record]) -> None:
        """Return when every record's embedding document, or its dead letter, is in the log."""
        for record in records:
            image_id = None
            try:
                event = parse_event(record.value, record.headers)
                image_id = event.image_id(record.key)
                document = await self._describe(record, event, image_id)
                await self._outbox.publish(self._settings.topics.embedded, document.to_kafka(), key=image_id.encode())
            except (ItemBroken, ContractError) as cause:
                await self._outbox.bury(record, cause, image_id)

    async def _describe(self, record: Record, event: ImageUploaded, image_id: str) -> EmbeddingDocument:
        file = await self._sources.read(event)
        timeout = self._settings.inference_timeout
        seen = await until_up("vision", lambda: self._triton.infer_image(file.data, timeout), self._settings.backoff)
        return EmbeddingDocument(
            image_id=image_id,
            version=log_version(record.timestamp_ms, record.offset),
            event_id=event.id,
            event_source=event.source,
            tenant=event.tenant,
            filename=event.filename,
            tags=event.tags,
            captured_at=event.capturedat,
            uploaded_at=event.time or record.time,
            metadata=event.metadata,
            dataref=event.dataref,
            content_type=event.datacontenttype,
            sha256=file.sha256,
            size_bytes=len(file.data),
            width=seen.width,
            height=seen.height,
            model=ModelRef(name=self._manifest.name, digest=self._manifest.digest),
            vector=seen.embedding,
            detections=_detections(seen, self._manifest.detector.classes),
        )


def _detections(seen: ImageInference, classes: tuple[str, ...]) -> tuple[Detection, ...]:
    highest = int(seen.class_ids.max(initial=0))
    if highest >= len(classes):
        # Detectors that end in rows do not tell how many classes they have, so an import cannot always notice it.
        raise ItemBroken(
            "unknown_class",
            f"the detector found class {highest}, {len(classes)} have names; import it with all of them",
        )
    boxes = seen.boxes.tolist()
    normalised = (seen.boxes / np.array([seen.width, seen.height] * 2, dtype=np.float32)).tolist()
    return tuple(
        Detection(
            ordinal=ordinal,
            class_name=classes[seen.class_ids[ordinal]],
            confidence=float(seen.scores[ordinal]),
            box=boxes[ordinal],
            box_normalised=normalised[ordinal],
            vector=seen.object_embeddings[ordinal],
        )
        for ordinal in range(len(boxes))
    )
