"""What the index writer promises, stated once for the fake and for the real OpenSearch.

Each behaviour is an async function (client, settings, model). The images have ids of their own, so that all behaviours
can run in the same two indices, which must exist.
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
import random
import uuid
from collections.abc import Awaitable, Callable, Iterable
from datetime import datetime, timezone
from typing import Any

import numpy as np
import orjson
from opensearchpy.exceptions import ConnectionError as OpenSearchConnectionError
from opensearchpy.exceptions import TransportError

from agents.delivery.failures import DependencyDown, ItemBroken
from agents.delivery.retry import Backoff
from agents.index.mappings import ModelIdentity, index_name
from agents.index.pace import BulkLimits
from agents.index.writer import IndexWriter, Written
from agents.settings import IndexSettings
from sightlog.documents import (
    Detection,
    EmbeddingDocument,
    ImageChange,
    ImageDeletion,
    ImageUpdate,
    ModelRef,
    object_id,
)

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


def update(image_id: str, version: int, **fields: Any) -> ImageUpdate:
    at = datetime(2024, 5, 1, tzinfo=timezone.utc)
    return ImageUpdate(
        image_id=image_id, version=version, event_id=f"event-{version}", event_source="/test", updated_at=at, **fields
    )


def deletion(image_id: str, version: int) -> ImageDeletion:
    at = datetime(2024, 5, 1, tzinfo=timezone.utc)
    return ImageDeletion(
        image_id=image_id, version=version, event_id=f"event-{version}", event_source="/test", deleted_at=at
    )


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


class _Torn:
    """A client that dies in a bulk: only the actions on one index have taken effect."""

    def __init__(self, client: Any, index: str) -> None:
        self.mget = client.mget
        self._client = client
        self._index = index
        self.lost = b""

    async def bulk(self, body: bytes, params: dict[str, Any]) -> Any:
        lines = iter(body.splitlines(keepends=True))
        kept = []
        for line in lines:
            ((verb, target),) = orjson.loads(line).items()
            pair = line if verb == "delete" else line + next(lines)
            if target["_index"].startswith(f"{self._index}-"):
                kept.append(pair)
            else:
                self.lost += pair
        if kept:
            await self._client.bulk(body=b"".join(kept), params=params)
        raise unreachable()


async def half_written(
    client: Any, settings: IndexSettings, model: ModelIdentity, change: ImageChange, *, index: str
) -> bytes:
    """Leave what a crash leaves in the middle of a bulk: one index has its documents; -> what the other lacks."""
    torn = _Torn(client, index)
    async with going_down():
        await IndexWriter(torn, settings, model).write([change])  # type: ignore[arg-type]
    return torn.lost


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
    await half_written(client, settings, model, older, index=settings.objects)
    await IndexWriter(client, settings, model).write([older, newer])
    await assert_holds(client, settings, newer)


async def half_written_version_redelivered_after_a_newer_one_leaves_no_orphans(
    client: Any, settings: IndexSettings, model: ModelIdentity
) -> None:
    image_id = new_id()
    older, newer = embedding(model, image_id, version=1, objects=5), embedding(model, image_id, version=2, objects=1)
    await half_written(client, settings, model, older, index=settings.objects)
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


async def failing_opensearch_is_a_dependency_that_is_down(
    client: Any, settings: IndexSettings, model: ModelIdentity
) -> None:
    document = embedding(model, new_id(), objects=2)

    failures = [raising(TransportError(status, "broken", {})) for status in (500, 503)]
    for failure in (*failures, raising(unreachable())):
        for name in ("bulk", "mget"):
            async with going_down():
                await IndexWriter(intercepted(client, **{name: [failure]}), settings, model).write([document])
    async with going_down():
        busy = intercepted(client, mget=[raising(TransportError(429, "too much", {}))])
        await IndexWriter(busy, settings, model).write([document])
    assert await IndexWriter(client, settings, model).write([document]) == [Written()]
    await assert_holds(client, settings, document)


async def refused_bulks_are_sent_again_and_smaller(client: Any, settings: IndexSettings, model: ModelIdentity) -> None:
    documents = [embedding(model, new_id(), objects=2) for _ in range(4)]

    async def one_item_refused(through: Callable[[], Awaitable[Any]]) -> Any:
        reply = await through()
        error = {"type": "rejected_execution_exception", "reason": "queue is full"}
        next(iter(reply["items"][0].values())).update(status=429, error=error)
        return {**reply, "errors": True}

    busy = intercepted(client, bulk=[raising(TransportError(429, "too much", {})), one_item_refused])
    writer = IndexWriter(busy, settings, model, BulkLimits(images=8, bulks=2), Backoff(0.001, 0.001))
    assert await writer.write(documents) == [Written()] * 4
    assert writer.pace.share < 0.5
    for document in documents:
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
        return {"errors": True, "items": [{verb: {"status": 404, "error": error}} for verb in ("create", "index")]}

    async with going_down():
        await IndexWriter(intercepted(client, bulk=[not_there]), settings, model).write([document])


async def refused_document_is_broken_alone_and_leaves_no_objects(
    client: Any, settings: IndexSettings, model: ModelIdentity
) -> None:
    good = [embedding(model, new_id(), objects=2) for _ in range(2)]
    # The first is found before, the second is refused with all its objects, the last after its objects were taken.
    for facts in ({"tags": (IMMENSE,)}, {"width": 2**40}, {"sha256": IMMENSE}):
        bad = embedding(model, new_id(), objects=3, **facts)
        outcomes = await IndexWriter(client, settings, model).write([good[0], bad, good[1]])
        assert [outcomes[0], outcomes[2]] == [Written(), Written()]
        assert isinstance(outcomes[1], ItemBroken)
        assert outcomes[1].code == "index_refused"
        await assert_absent(client, settings, bad.image_id)
        for document in good:
            await assert_holds(client, settings, document)


async def no_metadata_makes_an_image_unindexable(client: Any, settings: IndexSettings, model: ModelIdentity) -> None:
    deep: Any = "bottom"
    for _ in range(60):
        deep = {"d": [deep]}
    hostile: list[dict[str, Any]] = [
        {"a": [{"b": IMMENSE}], "k" * 40_000: 1, IMMENSE: IMMENSE},
        {f"key-{number}": number for number in range(5000)},
        {"list": [f"{number}-{'y' * 200}" for number in range(5000)]},
        {"": 1, ".": 2, "a..b": 3, "a": {"": [[], {}, None, True]}, "a.b": 4, "zero\0": "\0"},
        {"n": [2**63, -(2**63), 1e308, -0.0, 5e-324]},
        {"facts": "x", "vector": [1], "hidden": True, "deep": deep},
    ]
    documents = [embedding(model, new_id(), objects=1, metadata=metadata) for metadata in hostile]
    assert await IndexWriter(client, settings, model).write(documents) == [Written()] * len(hostile)
    for document in documents:
        await assert_holds(client, settings, document)
        (source,) = (await found(client, settings.images, document.image_id)).values()
        assert source["metadata"] == document.metadata


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


async def assert_state(client: Any, settings: IndexSettings, image_id: str, changes: Iterable[ImageChange]) -> None:
    """The indices hold what reading these changes of the image one by one, in log order, ends in."""
    upload: EmbeddingDocument | None = None
    tags: tuple[str, ...] = ()
    metadata: dict[str, Any] = {}
    for change in sorted(changes, key=lambda c: c.version):
        if isinstance(change, EmbeddingDocument):
            upload, tags, metadata = change, change.tags, change.metadata
        elif isinstance(change, ImageUpdate):
            tags = tags if change.tags is None else change.tags
            metadata = metadata if change.metadata is None else change.metadata
        else:
            upload, tags, metadata = None, (), {}
    if upload is None:
        await assert_absent(client, settings, image_id)
        return
    await assert_holds(client, settings, upload)
    images = await found(client, settings.images, image_id)
    objects = await found(client, settings.objects, image_id)
    for source in (*images.values(), *objects.values()):
        assert (tuple(source.get("tags", ())), source.get("metadata", {})) == (tags, metadata)
    for id_, detection in zip(sorted(objects), upload.detections, strict=True):
        assert np.array_equal(np.float32(objects[id_]["vector"]), detection.vector)
        assert objects[id_]["class"] == detection.class_name
    assert np.array_equal(np.float32(images[image_id]["vector"]), upload.vector)


async def update_changes_image_and_objects_and_leaves_the_rest(
    client: Any, settings: IndexSettings, model: ModelIdentity
) -> None:
    image_id = new_id()
    writer = IndexWriter(client, settings, model)
    changes: list[ImageChange] = [embedding(model, image_id, version=1, objects=3, tags=("a",), metadata={"n": 1})]
    await writer.write(changes)
    before = await found(client, settings.images, image_id)
    given: list[dict[str, Any]] = [
        {"tags": ("b", "c")},
        {"metadata": {"m": {"k": "v"}}},
        {"tags": (), "metadata": {}},
    ]
    for fields in given:
        changes.append(update(image_id, len(changes) + 1, **fields))
        assert await writer.write(changes[-1:]) == [Written()]
        await assert_state(client, settings, image_id, changes)
    after = await found(client, settings.images, image_id)
    changeable = {"tags", "metadata", "tags_version", "metadata_version"}
    assert {n: v for n, v in after[image_id].items() if n not in changeable} == {
        n: v for n, v in before[image_id].items() if n not in changeable
    }


async def update_before_its_upload_waits_unseen(client: Any, settings: IndexSettings, model: ModelIdentity) -> None:
    image_id = new_id()
    writer = IndexWriter(client, settings, model)
    early = update(image_id, 5, tags=("new",))
    upload = embedding(model, image_id, version=3, objects=2, tags=("old",), metadata={"n": 1})
    assert await writer.write([early]) == [Written()]
    await assert_absent(client, settings, image_id)
    assert await writer.write([upload]) == [Written()]
    await assert_state(client, settings, image_id, [upload, early])


async def deleted_image_is_gone_with_its_objects_and_never_comes_back(
    client: Any, settings: IndexSettings, model: ModelIdentity
) -> None:
    image_id = new_id()
    writer = IndexWriter(client, settings, model)
    upload = embedding(model, image_id, version=3, objects=3, tags=("a",))
    late = embedding(model, image_id, version=5, objects=5, tags=("a",))
    await writer.write([upload])
    assert await writer.write([deletion(image_id, 7)]) == [Written()]
    await assert_absent(client, settings, image_id)
    for change in (upload, late, update(image_id, 6, tags=("b",))):
        assert await writer.write([change]) == [NEWER]
        await assert_absent(client, settings, image_id)
    again = embedding(model, image_id, version=9, objects=1)
    assert await writer.write([again]) == [Written()]
    await assert_state(client, settings, image_id, [again])
    assert await writer.write([deletion(image_id, 8)]) == [NEWER]
    await assert_state(client, settings, image_id, [again])


async def hidden_documents_are_in_no_search_and_no_count(
    client: Any, settings: IndexSettings, model: ModelIdentity
) -> None:
    deleted, pending = new_id(), new_id()
    tag = f"tag-{deleted}"
    writer = IndexWriter(client, settings, model)
    await writer.write([embedding(model, deleted, tags=(tag,)), update(pending, 2, tags=(tag,))])
    await writer.write([deletion(deleted, 2), update(deleted, 3, tags=(tag,), metadata={"a": tag})])
    through_index = {index_name(alias, model) for alias in (settings.images, settings.objects)}
    for index in (settings.images, settings.objects, *through_index):
        body = {"query": {"term": {"tags": tag}}, "size": 10}
        assert (await client.search(index=index, body=body))["hits"]["hits"] == []
    for image_id in (deleted, pending):
        await assert_absent(client, settings, image_id)
        remembered = await found(client, index_name(settings.images, model), image_id)
        assert remembered[image_id]["hidden"]
        assert "vector" not in remembered[image_id]


def _history(model: ModelIdentity, image_id: str, rng: random.Random, length: int = 7) -> list[ImageChange]:
    """Changes of an image in log order."""
    changes: list[ImageChange] = []
    for version in range(1, length + 1):
        kind = rng.choice(["upload", "upload", "tags", "metadata", "both", "deletion"])
        tags, metadata = (f"tag-{version}",), {"version": version}
        if kind == "upload":
            objects = rng.randrange(5)
            changes.append(embedding(model, image_id, version=version, objects=objects, tags=tags, metadata=metadata))
        elif kind == "deletion":
            changes.append(deletion(image_id, version))
        else:
            given = {"tags": tags, "metadata": metadata}
            fields = given if kind == "both" else {kind: given[kind]}
            changes.append(update(image_id, version, **fields))
    return changes


async def every_order_and_repetition_ends_the_same(client: Any, settings: IndexSettings, model: ModelIdentity) -> None:
    rng = random.Random(11)
    histories = {image_id: _history(model, image_id, rng) for image_id in (new_id() for _ in range(12))}
    deliveries = [change for history in histories.values() for change in history + rng.choices(history, k=3)]
    rng.shuffle(deliveries)
    writer = IndexWriter(client, settings, model)
    batches = [deliveries[start : start + 40] for start in range(0, len(deliveries), 40)]
    for batch in batches:
        await writer.write(batch)
    for image_id, history in histories.items():
        await assert_state(client, settings, image_id, history)


async def workers_that_write_the_same_images_at_once_end_the_same(
    client: Any, settings: IndexSettings, model: ModelIdentity
) -> None:
    """As while partitions move: the old worker and the new one write the same records."""
    rng = random.Random(12)
    histories = {image_id: _history(model, image_id, rng) for image_id in (new_id() for _ in range(6))}
    deliveries = [change for history in histories.values() for change in history]

    async def work(seed: int) -> None:
        mine = random.Random(seed).sample(deliveries, len(deliveries))
        writer = IndexWriter(client, settings, model, backoff=Backoff(0.01, 0.1))
        await asyncio.gather(*(writer.write(mine[start : start + 5]) for start in range(0, len(mine), 5)))

    await asyncio.gather(*(work(seed) for seed in range(3)))
    for image_id, history in histories.items():
        await assert_state(client, settings, image_id, history)


async def whoever_loses_the_comparison_joins_again(client: Any, settings: IndexSettings, model: ModelIdentity) -> None:
    async def lose(steps: int, version: int) -> None:
        image_id = new_id()
        first = embedding(model, image_id, version=1, objects=4, tags=("a",))
        theirs = embedding(model, image_id, version=2, objects=2, metadata={"n": 1})
        mine = update(image_id, version, tags=("b",))
        await IndexWriter(client, settings, model).write([first])

        async def overtaken(through: Callable[[], Awaitable[Any]]) -> Any:
            stored = await through()
            await IndexWriter(client, settings, model).write([theirs])
            return stored

        paused = intercepted(client, mget=[*[None] * steps, overtaken])
        assert await IndexWriter(paused, settings, model).write([mine]) == [Written()]
        await assert_state(client, settings, image_id, [first, theirs, mine])

    # The loser's revision is smaller than the winner's, or greater: neither may decide.
    await asyncio.gather(*(lose(steps, version) for steps in (0, 1) for version in (3, 9)))


async def racing_changes_of_a_new_image_lose_nothing(
    client: Any, settings: IndexSettings, model: ModelIdentity
) -> None:
    """Whoever creates the document, and however revisions compare: each is overtaken right before its first bulk."""

    async def race(winner: list[ImageChange], loser: list[ImageChange]) -> None:
        async def overtaken(through: Callable[[], Awaitable[Any]]) -> Any:
            assert await IndexWriter(client, settings, model).write(winner)
            return await through()

        await IndexWriter(intercepted(client, bulk=[overtaken]), settings, model).write(loser)
        await assert_state(client, settings, winner[0].image_id, winner + loser)

    def sides(image_id: str) -> list[list[ImageChange]]:
        return [
            [embedding(model, image_id, version=10, objects=4)],
            [embedding(model, image_id, version=20, objects=2, tags=("b",))],
            [embedding(model, image_id, version=12, objects=3), update(image_id, 300, tags=("c",))],
            [embedding(model, image_id, version=13, objects=5), deletion(image_id, 11)],
            [update(image_id, 400, metadata={"n": 1}), update(image_id, 5, tags=("d",))],
            [deletion(image_id, 15)],
        ]

    count = len(sides(""))
    pairs = [(new_id(), one, other) for one in range(count) for other in range(count) if one != other]
    await asyncio.gather(*(race(sides(id_)[one], sides(id_)[other]) for id_, one, other in pairs))


async def racing_changes_of_a_known_image_lose_nothing(
    client: Any, settings: IndexSettings, model: ModelIdentity
) -> None:
    """As before, but of an image whose tags and metadata are newer than its picture."""

    async def race(image_id: str, one: int, other: int) -> None:
        base: list[ImageChange] = [
            embedding(model, image_id, version=5, objects=3),
            update(image_id, 100, tags=("a",), metadata={"n": 1}),
        ]
        sides: list[ImageChange] = [
            embedding(model, image_id, version=10, objects=4),
            embedding(model, image_id, version=12, objects=1),
            deletion(image_id, 11),
            update(image_id, 200, tags=("b",)),
            update(image_id, 150, metadata={"old": 1}),
        ]
        await IndexWriter(client, settings, model).write(base)

        async def overtaken(through: Callable[[], Awaitable[Any]]) -> Any:
            await IndexWriter(client, settings, model).write([sides[one]])
            return await through()

        await IndexWriter(intercepted(client, bulk=[overtaken]), settings, model).write([sides[other]])
        await assert_state(client, settings, image_id, [*base, sides[one], sides[other]])

    await asyncio.gather(*(race(new_id(), one, other) for one in range(5) for other in range(5) if one != other))


async def update_waits_for_an_upload_that_is_being_written(
    client: Any, settings: IndexSettings, model: ModelIdentity
) -> None:
    """Until then its objects are missing, or those of an older upload that lost the race are in their places."""

    async def wait(older: bool) -> None:
        image_id = new_id()
        upload, newer = embedding(model, image_id, version=5, objects=3), update(image_id, 6, tags=("b",))
        if older:
            lost = embedding(model, image_id, version=3, objects=3)
            await half_written(client, settings, model, lost, index=settings.objects)
        rest = await half_written(client, settings, model, upload, index=settings.images)

        async def the_rest_arrives(through: Callable[[], Awaitable[Any]]) -> Any:
            await client.bulk(body=rest, params={"refresh": "wait_for"})
            return await through()

        waiting = intercepted(client, mget=[None, None, the_rest_arrives])
        writer = IndexWriter(waiting, settings, model, backoff=Backoff(0.001, 0.001))
        assert await writer.write([newer]) == [Written()]
        await assert_state(client, settings, image_id, [upload, newer])

    await asyncio.gather(wait(older=False), wait(older=True))


async def crash_before_or_after_any_request_is_mended_by_redelivery(
    client: Any, settings: IndexSettings, model: ModelIdentity
) -> None:
    def stages(image_id: str) -> list[ImageChange]:
        return [
            embedding(model, image_id, version=1, objects=4, tags=("a",)),
            embedding(model, image_id, version=3, objects=2, tags=("b",)),
            update(image_id, 4, tags=("c",)),
            update(image_id, 2, metadata={"late": 1}),
            deletion(image_id, 6),
            embedding(model, image_id, version=5, objects=5),
            update(image_id, 7, tags=("d",)),
            embedding(model, image_id, version=8, objects=1),
        ]

    crashes: list[dict[str, list[Any]]] = [
        {name: [None] * number + [raising(unreachable(), after=after)]}
        for name, number in (("mget", 0), ("mget", 1), ("bulk", 0), ("bulk", 1))
        for after in (False, True)
    ]
    ways = [*crashes, settings.images, settings.objects]
    images = {new_id(): way for way in ways}
    for number in range(len(stages(""))):

        async def crash_and_redeliver(image_id: str, way: Any, number: int = number) -> None:
            change = stages(image_id)[number]
            torn: Any = _Torn(client, way) if isinstance(way, str) else intercepted(client, **copy.deepcopy(way))
            with contextlib.suppress(DependencyDown):
                await IndexWriter(torn, settings, model).write([change])
            await IndexWriter(client, settings, model).write([change])
            await assert_state(client, settings, image_id, stages(image_id)[: number + 1])

        await asyncio.gather(*(crash_and_redeliver(image_id, way) for image_id, way in images.items()))


async def half_written_upload_is_mended_when_updates_come_first(
    client: Any, settings: IndexSettings, model: ModelIdentity
) -> None:
    for index in (settings.images, settings.objects):
        image_id = new_id()
        upload, newer = embedding(model, image_id, version=1, objects=3), update(image_id, 2, tags=("b",))
        await half_written(client, settings, model, upload, index=index)
        writer = IndexWriter(client, settings, model, backoff=Backoff(0.001, 0.001))
        assert await writer.write([newer]) == [Written()]
        await writer.write([upload])
        await assert_state(client, settings, image_id, [upload, newer])


async def version_that_opensearch_refuses_leaves_the_one_before_as_it_is(
    client: Any, settings: IndexSettings, model: ModelIdentity
) -> None:
    async def refuse(image_id: str, batches: list[list[ImageChange]], good: list[ImageChange]) -> None:
        outcomes = [one for batch in batches for one in await IndexWriter(client, settings, model).write(batch)]
        assert [isinstance(one, ItemBroken) for one in outcomes].count(True) == 1
        await assert_state(client, settings, image_id, good)

    def versions(image_id: str, **facts: Any) -> list[ImageChange]:
        return [
            embedding(model, image_id, version=1, objects=4, tags=("a",)),
            embedding(model, image_id, version=2, objects=2, **facts),
            update(image_id, 3, tags=("b",)),
        ]

    races = []
    for facts in ({"width": 2**40}, {"sha256": IMMENSE}):
        for cuts in ((3,), (1, 3), (1, 2, 3), (2, 3)):
            changes = versions(new_id(), **facts)
            batches = [changes[start:stop] for start, stop in zip((0, *cuts), cuts, strict=False)]
            races.append(refuse(changes[0].image_id, batches, [changes[0], changes[2]]))
    await asyncio.gather(*races)


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
    crash_after_writing_repeats_without_effect,
    half_written_version_redelivered_with_a_newer_one_leaves_no_orphans,
    half_written_version_redelivered_after_a_newer_one_leaves_no_orphans,
    worker_that_lost_its_partition_leaves_no_orphans,
    failing_opensearch_is_a_dependency_that_is_down,
    refused_bulks_are_sent_again_and_smaller,
    unreadable_versions_are_a_dependency_that_is_down,
    missing_index_is_a_dependency_that_is_down,
    refused_document_is_broken_alone_and_leaves_no_objects,
    no_metadata_makes_an_image_unindexable,
    bad_vectors_are_refused_before_anything_is_written,
    vectors_of_another_model_are_refused,
    refused_version_does_not_hide_a_good_one_of_the_batch,
    version_that_opensearch_refuses_leaves_the_one_before_as_it_is,
    concurrent_writes_of_one_image_end_with_the_newest,
    update_changes_image_and_objects_and_leaves_the_rest,
    update_before_its_upload_waits_unseen,
    deleted_image_is_gone_with_its_objects_and_never_comes_back,
    hidden_documents_are_in_no_search_and_no_count,
    every_order_and_repetition_ends_the_same,
    workers_that_write_the_same_images_at_once_end_the_same,
    whoever_loses_the_comparison_joins_again,
    racing_changes_of_a_new_image_lose_nothing,
    racing_changes_of_a_known_image_lose_nothing,
    update_waits_for_an_upload_that_is_being_written,
    crash_before_or_after_any_request_is_mended_by_redelivery,
    half_written_upload_is_mended_when_updates_come_first,
)
