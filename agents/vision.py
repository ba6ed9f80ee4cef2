"""The vision agent: image events in, what is seen in them out, dead letters for what cannot be seen."""

from __future__ import annotations

import functools

import faust
import numpy as np
from faust.streams import Stream

from agents.app import attach, model_identity, new_app, new_outbox
from agents.delivery.failures import ItemBroken, NotYet
from agents.delivery.outbox import Outbox
from agents.delivery.records import Record
from agents.delivery.window import drain
from agents.index.connection import connect
from agents.index.known import KnownImages
from agents.inference.client import TritonClient
from agents.inference.pixels import PixelBound
from agents.inference.quarantine import Quarantine, Seer
from agents.inference.results import ImageInference
from agents.inference.seen import SeenPictures
from agents.settings import AgentSettings
from agents.sources.reader import SourceReader
from models.manifest import ModelManifest, load_manifest
from sightlog.documents import Detection, EmbeddingDocument, ImageChange, ImageDeletion, ImageUpdate, ModelRef
from sightlog.errors import ContractError
from sightlog.events import ImageDeleted, ImageUpdated, ImageUploaded, parse_event


def vision_app(settings: AgentSettings) -> faust.App:
    """The Faust app of the consumer group `sightlog-vision`."""
    manifest = load_manifest(settings.model_folder)

    async def vision(stream: Stream[bytes]) -> None:
        triton = TritonClient(
            settings.triton, manifest.digest, concurrency=settings.vision_concurrency, heal=settings.triton_heal
        )
        sources = SourceReader(settings.folders, settings.max_image_bytes, settings.sources)
        opensearch = connect(settings.opensearch)
        async with triton, sources, opensearch, new_outbox("vision", settings, linger_ms=5) as outbox:
            known = KnownImages(opensearch, settings.index, model_identity(manifest))
            seen = SeenPictures(settings.reuse_bytes, known.find if settings.reuse_lookup else None)
            seer = PixelBound(Quarantine(triton, settings.backoff), settings.vision_megapixels)
            agent = Vision(settings, manifest, seer, sources, seen, outbox)
            await drain(stream.noack(), agent.see, settings.vision_window)

    return attach(new_app("vision", settings), settings.topics.images, vision)


class Vision:
    """Sees one image after another; many run side by side, which is what fills Triton's batches."""

    def __init__(
        self,
        settings: AgentSettings,
        manifest: ModelManifest,
        seer: Seer,
        sources: SourceReader,
        seen: SeenPictures,
        outbox: Outbox,
    ) -> None:
        self._settings = settings
        self._manifest = manifest
        self._seer = seer
        self._sources = sources
        self._seen = seen
        self._outbox = outbox

    async def see(self, records: list[Record]) -> None:
        """Return when what every record says, or its dead letter or its next attempt, is in the log."""
        for record in records:
            image_id = None
            try:
                event = parse_event(record.value, record.headers)
                image_id = event.image_id(record.key)
                change = await self._change(record, event, image_id)
                await self._outbox.publish(self._settings.topics.embedded, change.to_kafka(), key=image_id.encode())
            except NotYet as cause:
                await self._outbox.postpone(record, cause, image_id)
            except (ItemBroken, ContractError) as cause:
                await self._outbox.bury(record, cause, image_id)

    async def _change(
        self, record: Record, event: ImageUploaded | ImageUpdated | ImageDeleted, image_id: str
    ) -> ImageChange:
        if isinstance(event, ImageUploaded):
            return await self._describe(record, event, image_id)
        at = event.time or record.origin.timestamp
        if isinstance(event, ImageUpdated):
            return ImageUpdate(
                image_id=image_id,
                version=record.version,
                event_id=event.id,
                event_source=event.source,
                updated_at=at,
                tags=event.tags,
                metadata=event.metadata,
            )
        return ImageDeletion(
            image_id=image_id, version=record.version, event_id=event.id, event_source=event.source, deleted_at=at
        )

    async def _describe(self, record: Record, event: ImageUploaded, image_id: str) -> EmbeddingDocument:
        file = await self._sources.read(event)
        infer = functools.partial(self._seer.infer_image, file.data, self._settings.inference_timeout)
        seen, reused = await self._seen.see(file.sha256, infer)
        return EmbeddingDocument(
            image_id=image_id,
            version=record.version,
            event_id=event.id,
            event_source=event.source,
            tenant=event.tenant,
            filename=event.filename,
            tags=event.tags,
            captured_at=event.capturedat,
            uploaded_at=event.time or record.origin.timestamp,
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
            reused=reused,
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
