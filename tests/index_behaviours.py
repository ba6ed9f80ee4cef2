"""What the index writer promises, stated once for the fake and for the real OpenSearch.

Each behaviour is an async function (client, settings, model). The images have ids of their own, so that all behaviours
can run in the same two indices, which must exist.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import uuid
from collections.abc import Awaitable, Callable
from datetime import datetime, timezone
from typing import Any

import numpy as np
from opensearchpy.exceptions import ConnectionError as OpenSearchConnectionError
from opensearchpy.exceptions import TransportError

from agents.delivery.failures import DependencyDown, ItemBroken
from agents.index.mappings import ModelIdentity
from agents.index.writer import IndexWriter, Written
from agents.settings import IndexSettings
from sightlog.documents import Detection, EmbeddingDocument, ModelRef, object_id

Step = Callable[[Callable[[], Awaitable[Any]]], Awaitable[Any]]
Behaviour = Callable[[Any, IndexSettings, ModelIdentity], Awaitable[None]]

IMMENSE = "x" * 40_000
NEWER = Written(superseded=True)


def new_id() -> str:
    return f"image-{uuid.uuid4().hex}"


def embedding(
    identity: ModelIdentity, image_id: str, *, version: int = 1, objects: int = 1, **facts: Any
) -> EmbeddingDocument:
    """An embedding document with as many objects; its vectors differ between versions."""
    rng = np.random.default_rng([version, objects])
    detections = tuple(
        Detection(
            ordinal=ordinal,
            class_name=identity.classes[ordinal % len(identity.classes)],
            confidence=0.9 - ordinal / 100,
            box=(10.0, 20.0, 30.0, 60.0),
            box_normalised=(0.1, 0.1, 0.3, 0.3),
            vector=_unit(rng, identity.dim),
        )
        for ordinal in range(objects)
    )
    described: dict[str, Any] = {
        "event_id": f"event-{version}",
        "event_source": "/test",
        "uploaded_at": datetime(2024, 5, 1, tzinfo=timezone.utc),
        "sha256": "0" * 64,
        "size_bytes": 1000,
        "width": 100,
        "height": 200,
        "model": ModelRef(name=identity.name, digest=identity.digest),
        "vector": _unit(rng, identity.dim),
        "detections": detections,
    }
    return EmbeddingDocument(image_id=image_id, version=version, **(described | facts))


def _unit(rng: np.random.Generator, dim: int) -> Any:
    vector = rng.standard_normal(dim).astype(np.float32)
    return vector / np.linalg.norm(vector)


async def found(client: Any, index: str, image_id: str) -> dict[str, dict[str, Any]]:
    """Sources of an image's documents by id, as a search sees them."""
    reply = await client.search(index=index, body={"query": {"term": {"image_id": image_id}}, "size": 1000})
    return {hit["_id"]: hit["_source"] for hit in reply["hits"]["hits"]}


async def assert_holds(client: Any, settings: IndexSettings, document: EmbeddingDocument) -> None:
    """The indices hold this version of the image, all its objects and nothing else of it."""
    images = await found(client, settings.images, document.image_id)
    assert {id_: source["version"] for id_, source in images.items()} == {document.image_id: document.version}
    assert images[document.image_id]["object_count"] == len(document.detections)
    objects = await found(client, settings.objects, document.image_id)
    expected = {object_id(document.image_id, d.ordinal): document.version for d in document.detections}
    assert {id_: source["version"] for id_, source in objects.items()} == expected


async def assert_absent(client: Any, settings: IndexSettings, image_id: str) -> None:
    """Neither index holds anything of the image."""
    assert await found(client, settings.images, image_id) == {}
    assert await found(client, settings.objects, image_id) == {}


class _Intercepted:
    """A client whose next bulk or mget calls are met by `steps`, in order; afterwards it is the client itself.

    A step takes the original call and returns its reply; it may act before or after, change the reply, or raise.
    """

    def __init__(self, client: Any, steps: dict[str, list[Step | None]]) -> None:
        self._client = client
        self._steps = steps

    def __getattr__(self, name: str) -> Any:
        original = getattr(self._client, name)
        waiting = self._steps.get(name)
        if waiting is None:
            return original

        async def call(*args: Any, **kwargs: Any) -> Any:
            step = waiting.pop(0) if waiting else None
            return await (original(*args, **kwargs) if step is None else step(lambda: original(*args, **kwargs)))

        return call


def intercepted(client: Any, **steps: Any) -> Any:
    """The client with `bulk=[step, ...]` and `mget=[step, ...]` in the way."""
    return _Intercepted(client, steps)


def raising(error: Exception, *, after: bool = False) -> Step:
    """A step that fails before the call, or after OpenSearch has carried it out."""

    async def step(through: Callable[[], Awaitable[Any]]) -> Any:
        if after:
            await through()
        raise error

    return step


def unreachable() -> OpenSearchConnectionError:
    return OpenSearchConnectionError("N/A", "connection refused", OSError("connection refused"))


@contextlib.asynccontextmanager
async def going_down() -> Any:
    """The block must end in DependencyDown."""
    try:
        yield
    except DependencyDown:
        return
    raise AssertionError("the failure was not reported as DependencyDown")


async def only_part_of_the_objects_was_written(
    client: Any, settings: IndexSettings, model: ModelIdentity, document: EmbeddingDocument
) -> None:
    """Leave what a crash leaves in the middle of a bulk: the objects are there, the image document is not."""
    body = []
    for action in IndexWriter(client, settings, model)._writes(document)[:-1]:
        body += list(action.lines())
    await client.bulk(body=(b"\n".join(body) + b"\n").decode(), params={"refresh": "wait_for"})


async def a_document_and_its_objects_can_be_found(client: Any, settings: IndexSettings, model: ModelIdentity) -> None:
    document = embedding(model, new_id(), objects=3)
    assert await IndexWriter(client, settings, model).write([document]) == [Written()]
    await assert_holds(client, settings, document)


async def redelivery_changes_nothing(client: Any, settings: IndexSettings, model: ModelIdentity) -> None:
    document = embedding(model, new_id(), version=7, objects=3)
    writer = IndexWriter(client, settings, model)
    await writer.write([document])
    before = await found(client, settings.objects, document.image_id)
    assert await writer.write([document]) == [Written()]
    await assert_holds(client, settings, document)
    assert await found(client, settings.objects, document.image_id) == before


async def stale_version_never_overwrites_and_leaves_no_objects(
    client: Any, settings: IndexSettings, model: ModelIdentity
) -> None:
    image_id = new_id()
    newer, stale = embedding(model, image_id, version=9, objects=1), embedding(model, image_id, version=8, objects=4)
    writer = IndexWriter(client, settings, model)
    await writer.write([newer])
    assert await writer.write([stale]) == [NEWER]
    await assert_holds(client, settings, newer)


async def fewer_detections_leave_no_orphans(client: Any, settings: IndexSettings, model: ModelIdentity) -> None:
    image_id = new_id()
    writer = IndexWriter(client, settings, model)
    for version, objects in enumerate((5, 2, 0, 3), 1):
        document = embedding(model, image_id, version=version, objects=objects)
        assert await writer.write([document]) == [Written()]
        await assert_holds(client, settings, document)


async def of_two_versions_in_a_batch_the_newer_stays(
    client: Any, settings: IndexSettings, model: ModelIdentity
) -> None:
    for flip in (False, True):
        image_id = new_id()
        older, newer = (
            embedding(model, image_id, version=1, objects=4),
            embedding(model, image_id, version=2, objects=1),
        )
        batch, outcomes = [older, newer], [NEWER, Written()]
        if flip:
            batch, outcomes = batch[::-1], outcomes[::-1]
        assert await IndexWriter(client, settings, model).write(batch) == outcomes
        await assert_holds(client, settings, newer)


async def crash_between_deleting_and_writing_leaves_no_orphans(
    client: Any, settings: IndexSettings, model: ModelIdentity
) -> None:
    image_id = new_id()
    first, second = embedding(model, image_id, version=1, objects=5), embedding(model, image_id, version=2, objects=2)
    await IndexWriter(client, settings, model).write([first])
    for crash in ([raising(unreachable(), after=True)], [None, raising(unreachable())]):
        async with going_down():
            await IndexWriter(intercepted(client, bulk=crash), settings, model).write([second])
        assert len(await found(client, settings.objects, image_id)) < 5, "surplus objects go first"
        images = await found(client, settings.images, image_id)
        assert images[image_id]["object_count"] == 5, "only the image document knows how many objects there were"
    assert await IndexWriter(client, settings, model).write([second]) == [Written()]
    await assert_holds(client, settings, second)


async def crash_after_writing_repeats_without_effect(
    client: Any, settings: IndexSettings, model: ModelIdentity
) -> None:
    document = embedding(model, new_id(), objects=2)
    crashing = intercepted(client, bulk=[raising(unreachable(), after=True)])
    async with going_down():
        await IndexWriter(crashing, settings, model).write([document])
    assert await IndexWriter(client, settings, model).write([document]) == [Written()]
    await assert_holds(client, settings, document)


async def half_written_version_redelivered_with_a_newer_one_leaves_no_orphans(
    client: Any, settings: IndexSettings, model: ModelIdentity
) -> None:
    image_id = new_id()
    older, newer = embedding(model, image_id, version=1, objects=5), embedding(model, image_id, version=2, objects=1)
    await only_part_of_the_objects_was_written(client, settings, model, older)
    await IndexWriter(client, settings, model).write([older, newer])
    await assert_holds(client, settings, newer)


async def half_written_version_redelivered_after_a_newer_one_leaves_no_orphans(
    client: Any, settings: IndexSettings, model: ModelIdentity
) -> None:
    image_id = new_id()
    older, newer = embedding(model, image_id, version=1, objects=5), embedding(model, image_id, version=2, objects=1)
    await only_part_of_the_objects_was_written(client, settings, model, older)
    writer = IndexWriter(client, settings, model)
    await writer.write([newer])
    await writer.write([older])
    await assert_holds(client, settings, newer)


async def worker_that_lost_its_partition_leaves_no_orphans(
    client: Any, settings: IndexSettings, model: ModelIdentity
) -> None:
    image_id = new_id()
    older, newer = embedding(model, image_id, version=1, objects=5), embedding(model, image_id, version=2, objects=1)

    async def overtaken(through: Callable[[], Awaitable[Any]]) -> Any:
        stored = await through()
        await IndexWriter(client, settings, model).write([newer])
        return stored

    paused = intercepted(client, mget=[overtaken])
    assert await IndexWriter(paused, settings, model).write([older]) == [NEWER]
    await assert_holds(client, settings, newer)


async def overload_is_a_dependency_that_is_down(client: Any, settings: IndexSettings, model: ModelIdentity) -> None:
    document = embedding(model, new_id(), objects=2)

    async def one_item_refused(through: Callable[[], Awaitable[Any]]) -> Any:
        reply = await through()
        error = {"type": "rejected_execution_exception", "reason": "queue is full"}
        reply["items"][0]["index"] |= {"status": 429, "error": error}
        return {**reply, "errors": True}

    failures = [raising(TransportError(status, "too much", {})) for status in (429, 500, 503)]
    for failure in (*failures, raising(unreachable()), one_item_refused):
        for name in ("bulk", "mget"):
            if failure is one_item_refused and name == "mget":
                continue
            async with going_down():
                await IndexWriter(intercepted(client, **{name: [failure]}), settings, model).write([document])
    assert await IndexWriter(client, settings, model).write([document]) == [Written()]
    await assert_holds(client, settings, document)


async def unreadable_versions_are_a_dependency_that_is_down(
    client: Any, settings: IndexSettings, model: ModelIdentity
) -> None:
    image_id = new_id()
    first, second = embedding(model, image_id, version=1, objects=3), embedding(model, image_id, version=2, objects=1)
    await IndexWriter(client, settings, model).write([first])

    async def no_shard(through: Callable[[], Awaitable[Any]]) -> Any:
        error = {"type": "no_shard_available_action_exception", "reason": "No shard available"}
        return {"docs": [{"_index": settings.images, "_id": image_id, "error": error}]}

    async with going_down():
        await IndexWriter(intercepted(client, mget=[no_shard]), settings, model).write([second])
    await IndexWriter(client, settings, model).write([second])
    await assert_holds(client, settings, second)


async def missing_index_is_a_dependency_that_is_down(
    client: Any, settings: IndexSettings, model: ModelIdentity
) -> None:
    document = embedding(model, new_id(), objects=1)

    async def not_there(through: Callable[[], Awaitable[Any]]) -> Any:
        error = {"type": "index_not_found_exception", "reason": "no such index"}
        return {"errors": True, "items": [{"index": {"status": 404, "error": error}} for _ in range(2)]}

    async with going_down():
        await IndexWriter(intercepted(client, bulk=[not_there]), settings, model).write([document])


async def refused_document_is_broken_alone_and_leaves_no_objects(
    client: Any, settings: IndexSettings, model: ModelIdentity
) -> None:
    good = [embedding(model, new_id(), objects=2) for _ in range(2)]
    # The first is refused with all its objects, the second's objects are taken before its image document is refused.
    for facts in ({"tags": (IMMENSE,)}, {"content_type": IMMENSE}):
        bad = embedding(model, new_id(), objects=3, **facts)
        outcomes = await IndexWriter(client, settings, model).write([good[0], bad, good[1]])
        assert [outcomes[0], outcomes[2]] == [Written(), Written()]
        assert isinstance(outcomes[1], ItemBroken)
        assert outcomes[1].code == "index_refused"
        await assert_absent(client, settings, bad.image_id)
        for document in good:
            await assert_holds(client, settings, document)


async def bad_vectors_are_refused_before_anything_is_written(
    client: Any, settings: IndexSettings, model: ModelIdentity
) -> None:
    zero, nan, infinite = (np.zeros(model.dim, np.float32) for _ in range(3))
    nan[1], infinite[2], infinite[0] = np.nan, np.inf, 1
    wrong = [zero, nan, infinite, np.ones(model.dim - 1, np.float32), np.zeros(0, np.float32)]
    good = embedding(model, new_id(), objects=1)
    bad = [embedding(model, new_id(), objects=2, vector=vector) for vector in wrong]
    for vector in wrong:
        document = embedding(model, new_id(), objects=2)
        second = document.detections[1].model_copy(update={"vector": vector})
        bad.append(document.model_copy(update={"detections": (document.detections[0], second)}))
    outcomes = await IndexWriter(client, settings, model).write([*bad, good])
    assert [getattr(outcome, "code", outcome) for outcome in outcomes] == ["bad_vector"] * len(bad) + [Written()]
    for document in bad:
        await assert_absent(client, settings, document.image_id)
    await assert_holds(client, settings, good)


async def vectors_of_another_model_are_refused(client: Any, settings: IndexSettings, model: ModelIdentity) -> None:
    other = embedding(model, new_id(), model=ModelRef(name=model.name, digest="f" * 64))
    (outcome,) = await IndexWriter(client, settings, model).write([other])
    assert isinstance(outcome, ItemBroken)
    assert outcome.code == "model_mismatch"
    await assert_absent(client, settings, other.image_id)


async def refused_version_does_not_hide_a_good_one_of_the_batch(
    client: Any, settings: IndexSettings, model: ModelIdentity
) -> None:
    image_id = new_id()
    good = embedding(model, image_id, version=1, objects=2)
    bad = embedding(model, image_id, version=2, vector=np.zeros(model.dim, np.float32))
    outcomes = await IndexWriter(client, settings, model).write([good, bad])
    assert outcomes[0] == Written()
    assert isinstance(outcomes[1], ItemBroken)
    await assert_holds(client, settings, good)


async def concurrent_writes_of_one_image_end_with_the_newest(
    client: Any, settings: IndexSettings, model: ModelIdentity
) -> None:
    image_ids = [new_id() for _ in range(3)]
    rng = random.Random(5)
    versions = [
        embedding(model, image_id, version=version, objects=(version * 3) % 7)
        for image_id in image_ids
        for version in range(1, 9)
    ]
    newest = {document.image_id: document for document in versions if document.version == 8}
    rng.shuffle(versions)
    writer = IndexWriter(client, settings, model)
    batches = [versions[start : start + 4] for start in range(0, len(versions), 4)]
    outcomes = await asyncio.gather(*(writer.write(batch) for batch in batches))
    said = {
        d.image_id: o
        for b, os in zip(batches, outcomes, strict=True)
        for d, o in zip(b, os, strict=True)
        if d.version == 8
    }
    assert said == {image_id: Written() for image_id in image_ids}
    for document in newest.values():
        await assert_holds(client, settings, document)


#: All of them; run each with the fake in tests/unit and with the real one in tests/stack.
BEHAVIOURS: tuple[Behaviour, ...] = (
    a_document_and_its_objects_can_be_found,
    redelivery_changes_nothing,
    stale_version_never_overwrites_and_leaves_no_objects,
    fewer_detections_leave_no_orphans,
    of_two_versions_in_a_batch_the_newer_stays,
    crash_between_deleting_and_writing_leaves_no_orphans,
    crash_after_writing_repeats_without_effect,
    half_written_version_redelivered_with_a_newer_one_leaves_no_orphans,
    half_written_version_redelivered_after_a_newer_one_leaves_no_orphans,
    worker_that_lost_its_partition_leaves_no_orphans,
    overload_is_a_dependency_that_is_down,
    unreadable_versions_are_a_dependency_that_is_down,
    missing_index_is_a_dependency_that_is_down,
    refused_document_is_broken_alone_and_leaves_no_objects,
    bad_vectors_are_refused_before_anything_is_written,
    vectors_of_another_model_are_refused,
    refused_version_does_not_hide_a_good_one_of_the_batch,
    concurrent_writes_of_one_image_end_with_the_newest,
)
