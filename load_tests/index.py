"""`bench index`: documents a second through the indexer beside raw bulks of opensearch-py, into the same OpenSearch."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from datetime import datetime, timezone
from types import SimpleNamespace
from typing import Any

import numpy as np
from faust.types import TP
from opensearchpy import OpenSearch, helpers
from rich.console import Console

from agents.delivery.window import drain
from agents.index.connection import connect, ensure_indices
from agents.index.documents import image_document, object_documents
from agents.index.mappings import ModelIdentity, index_name
from agents.index.state import state_of
from agents.index.writer import IndexWriter
from agents.indexer import Indexer
from agents.settings import AgentSettings, IndexSettings
from load_tests.running import cpu_seconds, machine, stack_for_bench
from sightlog.documents import Detection, EmbeddingDocument, ModelRef, object_id
from stack.local import LocalStack

#: As MobileCLIP has it; objects an image as in street scenes.
_DIM = 512
_OBJECTS = 4
_CLASSES = tuple(f"class-{number}" for number in range(80))
_MODEL = ModelIdentity("bench", "b" * 64, _DIM, _CLASSES)
#: Rounds of each way, in turns: ABBA, so that a drift of the machine falls on both alike.
_ROUNDS = 2
#: Threads and documents in a raw bulk, as opensearch-py has them by default; of 16 threads a small node refuses bulks.
_RAW_THREADS = 4
_RAW_CHUNK = 500


def measure(console: Console, count: int = 2000) -> dict[str, Any]:
    """Documents a second, of images and objects together, from bytes of the log until a search finds all of them.

    Ours is the whole indexer but for Kafka: records in, window, batches, parsing, versions, compare-and-set, receipts.
    Each of its bulks waits for a refresh. The raw way sends finished Python dicts with `parallel_bulk` as it comes,
    with one refresh at the end, or (`raw_waiting`) waiting for one with each bulk, as ours does. `ratio` is beside
    the faster of the two.
    """
    with stack_for_bench(console, components=("opensearch",)) as (stack, settings):
        documents = list(_documents(count))
        records = [document.to_kafka() for document in documents]
        finished = [list(_finished(document)) for document in documents]
        ways: dict[str, Callable[[], None]] = {
            "indexer": lambda: asyncio.run(_ours(settings, records)),
            "raw": lambda: _raw(settings, finished, refresh=False),
            "raw_waiting": lambda: _raw(settings, finished, refresh="wait_for"),
        }
        rates: dict[str, list[float]] = {name: [] for name in ways}
        cpu: dict[str, float] = dict.fromkeys(ways, 0.0)
        order = list(itertools.islice(itertools.cycle([list(ways), list(ways)[::-1]]), _ROUNDS + 1))
        for number, turn in enumerate(order):
            for name in turn:
                asyncio.run(_fresh(settings))
                seconds, spent = _timed(stack, ways[name])
                asyncio.run(_check(settings, documents))
                if number:  # the first round warms up the virtual machine
                    rates[name].append(count * (1 + _OBJECTS) / seconds)
                    cpu[name] += spent
        asyncio.run(_forget(settings))
    mean = {name: float(np.mean(found)) for name, found in rates.items()}
    docs = count * (1 + _OBJECTS) * _ROUNDS
    return {
        "images": count,
        "docs": count * (1 + _OBJECTS),
        "dim": _DIM,
        "docs_per_s": round(mean["indexer"], 1),
        "raw_docs_per_s": round(mean["raw"], 1),
        "raw_waiting_docs_per_s": round(mean["raw_waiting"], 1),
        "ratio": round(mean["indexer"] / max(mean["raw"], mean["raw_waiting"]), 3),
        "rounds": {name: [round(rate, 1) for rate in found] for name, found in rates.items()},
        "opensearch_cpu_ms_per_doc": {name: round(spent * 1000 / docs, 3) for name, spent in cpu.items()},
        "machine": machine(),
    }


def _timed(stack: LocalStack, work: Callable[[], None]) -> tuple[float, float]:
    """Seconds, and CPU-seconds of OpenSearch."""
    spent, started = cpu_seconds(stack, "opensearch"), time.monotonic()
    work()
    return time.monotonic() - started, cpu_seconds(stack, "opensearch") - spent


def _index(settings: AgentSettings) -> IndexSettings:
    return settings.index.model_copy(update={"images": "bench-images", "objects": "bench-objects"})


async def _ours(settings: AgentSettings, values: Sequence[bytes]) -> None:
    async with connect(settings.opensearch) as client:
        writer = IndexWriter(client, _index(settings), _MODEL, settings.bulk_limits, settings.backoff)
        log = _Log(values)
        agent = Indexer(settings, writer, _Receipts())  # type: ignore[arg-type]
        draining = asyncio.create_task(drain(log, agent.index, settings.indexer_window))
        await log.read
        draining.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await draining


class _Log:
    """Records as a Faust stream hands them out; `read` is done when all are acknowledged."""

    def __init__(self, values: Sequence[bytes]) -> None:
        self._values = values
        self._left = len(values)
        self.read: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def events(self) -> AsyncIterator[Any]:
        place = {"topic": "images.embedded", "partition": 0, "tp": TP("images.embedded", 0), "timestamp": time.time()}
        for offset, value in enumerate(self._values):
            message = SimpleNamespace(**place, offset=offset, key=b"key", value=value, headers=())
            yield SimpleNamespace(message=message)
            # As a consumer does, and others then get their turn.
            await asyncio.sleep(0)
        await asyncio.get_running_loop().create_future()

    async def ack(self, event: Any) -> bool:
        self._left -= 1
        if not self._left:
            self.read.set_result(None)
        return True


class _Receipts:
    """An outbox that has its records confirmed at once."""

    async def publish(self, topic: str, value: bytes, *, key: bytes | None = None) -> None:
        """Nothing: Kafka is not measured here."""

    async def bury(self, record: Any, cause: Exception, image_id: str | None = None) -> None:
        raise cause


def _raw(settings: AgentSettings, images: Sequence[Sequence[dict[str, Any]]], refresh: Any) -> None:
    with OpenSearch(hosts=[settings.opensearch], timeout=60, max_retries=0, pool_maxsize=_RAW_THREADS) as client:
        actions = itertools.chain.from_iterable(images)
        sent = helpers.parallel_bulk(client, actions, thread_count=_RAW_THREADS, chunk_size=_RAW_CHUNK, refresh=refresh)
        for taken, answer in sent:
            assert taken, answer
        if not refresh:
            client.indices.refresh(index="bench-images,bench-objects")


def _documents(count: int) -> Iterator[EmbeddingDocument]:
    rng = np.random.default_rng(7)
    at = datetime(2026, 1, 1, tzinfo=timezone.utc)
    for number in range(count):
        vectors = rng.standard_normal((1 + _OBJECTS, _DIM)).astype(np.float32)
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        yield EmbeddingDocument(
            image_id=f"image-{number:08}",
            version=number + 1,
            event_id=f"event-{number:08}",
            event_source="/bench",
            filename=f"{number:08}.jpg",
            tags=(f"tag-{number % 50}", "bench"),
            uploaded_at=at,
            captured_at=at,
            metadata={"camera": {"name": f"camera-{number % 20}", "height": number % 7}},
            content_type="image/jpeg",
            sha256=f"{number:064x}",
            size_bytes=100_000 + number,
            width=1920,
            height=1080,
            model=ModelRef(name=_MODEL.name, digest=_MODEL.digest),
            vector=vectors[0],
            detections=tuple(
                Detection(
                    ordinal=ordinal,
                    class_name=_CLASSES[(number + ordinal) % len(_CLASSES)],
                    confidence=0.9 - ordinal / 10,
                    box=(10.5, 20.25, 300.125, 400.0),
                    box_normalised=(0.005, 0.018, 0.156, 0.37),
                    vector=vectors[1 + ordinal],
                )
                for ordinal in range(_OBJECTS)
            ),
        )


def _finished(document: EmbeddingDocument) -> Iterator[dict[str, Any]]:
    """The same documents as actions of opensearch-py, nothing left to compute."""
    state = state_of(document)
    image = image_document(document.image_id, state)
    yield {"_index": _name("bench-images"), "_id": document.image_id, "_source": _plain(image)}
    for source in object_documents(state):
        id_ = object_id(document.image_id, source["ordinal"])
        yield {"_index": _name("bench-objects"), "_id": id_, "_source": _plain(source)}


def _name(alias: str) -> str:
    return index_name(alias, _MODEL)


def _plain(source: dict[str, Any]) -> dict[str, Any]:
    return {
        name: value.tolist() if isinstance(value, np.ndarray) else value.isoformat() if name.endswith("_at") else value
        for name, value in source.items()
    }


async def _fresh(settings: AgentSettings) -> None:
    await _forget(settings)
    async with connect(settings.opensearch) as client:
        await ensure_indices(client, _index(settings), _MODEL)


async def _forget(settings: AgentSettings) -> None:
    async with connect(settings.opensearch) as client:
        for alias in ("bench-images", "bench-objects"):
            await client.indices.delete(index=_name(alias), params={"ignore_unavailable": "true"})


async def _check(settings: AgentSettings, documents: Sequence[EmbeddingDocument]) -> None:
    """Without a refresh: all of them must be there for searches by now."""
    async with connect(settings.opensearch) as client:
        for alias, expected in (("bench-images", len(documents)), ("bench-objects", len(documents) * _OBJECTS)):
            found = (await client.count(index=alias))["count"]
            if found != expected:
                raise RuntimeError(f"{alias} has {found} documents, {expected} were written")
