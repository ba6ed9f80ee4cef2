"""`bench recall`: what the searcher finds of the nearest neighbours, with and without filters, beside exact NumPy."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
from opensearchpy import AsyncOpenSearch
from rich.console import Console
from rich.progress import track

from agents.app import model_identity
from agents.index.bulk import Action
from agents.index.connection import connect, ensure_indices
from agents.index.cursors import Cursors
from agents.index.documents import object_documents
from agents.index.mappings import ModelIdentity, index_name
from agents.index.question import VectorQuestion
from agents.index.searcher import IndexSearcher
from agents.index.state import state_of
from agents.settings import AgentSettings, IndexSettings
from load_tests.running import machine, stack_for_bench
from load_tests.scene_vectors import SHARES, UNSEEN_SEED, kept_vectors, scene_documents, scene_vectors
from models.manifest import ModelManifest, load_manifest
from models.scenes import KINDS, SHAPES, caption_of
from models.tokenizer import ClipTokenizer
from sightlog.documents import EmbeddingDocument, object_id
from sightlog.fields import FloatArray
from sightlog.filters import ClassFilter, SearchFilters, TagFilter
from sightlog.search import SearchRequest
from triton_repo.sessions import TextTower

K = 10
#: Objects of unseen scenes that are asked for, beside the 144 texts.
_SCENES = 200
_WARM_UP = 10
_TIMEOUT_S = 60.0
_MERGE_S = 3600
#: Images in a bulk request, and requests at a time.
_BULK_IMAGES, _BULKS = 100, 4
#: Of the table beside the defaults: beams for 10 hits, and how much wider than k the beam is for many.
_BEAMS = (10, 20, 50, 100, 200, 400)
_OVERSAMPLING = (1.0, 1.5, 2.0, 4.0)
_MANY = 100
#: float32 has about this much room between two orders of the same cosines.
_TIE = 1e-6

#: Nothing here is read page by page.
_NO_PAGES = Cursors(b"", 0, "")

Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class _Truth:
    """What is in the index, and what is asked."""

    vectors: FloatArray
    """float32 [objects, dim]."""
    queries: FloatArray
    """float32 [queries, dim]."""
    asked: Sequence[str]
    """Class of what each query shows or names."""
    rows: Mapping[str, int]
    """Where the vector of an object is, by its id."""
    tagged: Mapping[str, Mask]
    of_class: Mapping[str, Mask]
    cosines: FloatArray
    """float32 [queries, objects]."""


def _truth(
    vectors: FloatArray, documents: Sequence[EmbeddingDocument], queries: FloatArray, asked: Sequence[str]
) -> _Truth:
    members = [(document, detection) for document in documents for detection in document.detections]
    return _Truth(
        vectors=vectors,
        queries=queries,
        asked=asked,
        rows={object_id(document.image_id, one.ordinal): row for row, (document, one) in enumerate(members)},
        tagged={
            tag: np.array([tag in document.tags for document, _ in members])
            for tag in (f"share-{share:g}" for share in SHARES)
        },
        of_class={name: np.array([one.class_name == name for _, one in members]) for name in SHAPES},
        cosines=queries @ vectors.T,
    )


@dataclass(frozen=True)
class _Measured:
    recall: float
    p50_ms: float
    p99_ms: float


def measure(console: Console, count: int = 100_000) -> dict[str, Any]:
    """Recall over `count` objects of generated scenes; queries are objects of unseen scenes, and texts.

    `recall_at_10`: share of the ten nearest by exact cosine that the product's searcher finds with the settings as they
    are; of equally near ones any counts. `recall_filtered`: the same among objects with a tag that a share of the
    scenes has; `recall_other_class`: among those of a class that the query does not show, so nothing near passes.
    `beams` and `oversampling`: the choices that the defaults come from.
    """
    settings = AgentSettings.load()
    manifest, folder = load_manifest(settings.model_folder), kept_vectors()
    vectors, facts = scene_vectors(count, folder=folder, console=console, manifest=manifest)
    unseen, shown = scene_vectors(_SCENES, folder=folder, console=console, manifest=manifest, seed=UNSEEN_SEED)
    texts = _embedded(manifest, [f"a photo of a {caption_of(kind)}" for kind in KINDS])
    documents = list(scene_documents(vectors, facts, manifest))
    asked = [*(fact.objects[0].shape for fact in shown), *(kind.shape for kind in KINDS)]
    truth = _truth(vectors, documents, np.concatenate([unseen, texts]), asked)
    model = replace(model_identity(manifest), classes=SHAPES)  # whatever the detector knows; none looks here
    with stack_for_bench(console, components=("opensearch",)) as (_stack, settings):
        return asyncio.run(_figures(console, settings, model, documents, truth))


async def _figures(
    console: Console,
    settings: AgentSettings,
    model: ModelIdentity,
    documents: Sequence[EmbeddingDocument],
    truth: _Truth,
) -> dict[str, Any]:
    index = settings.index.model_copy(update={"images": "bench-recall-images", "objects": "bench-recall-objects"})
    async with connect(settings.opensearch) as client:
        try:
            await _forget(client, index, model)
            await ensure_indices(client, index, model)
            started = time.monotonic()
            await _write(client, index_name(index.objects, model), console, documents)
            written_s = time.monotonic() - started

            async def recall(settings: IndexSettings, what: str, k: int = K, **filters: Any) -> _Measured:
                found = await _recall(IndexSearcher(client, settings, model, _NO_PAGES), truth, k, **filters)
                console.print(f"{what}: recall {found.recall:.4f}, {found.p50_ms:.1f} ms", style="dim")
                return found

            plain = await recall(index, "unfiltered")
            shares = {f"{share:g}": await recall(index, f"{share:.1%}", tag=f"share-{share:g}") for share in SHARES}
            other = await recall(index, "another class", other_class=True)
            beams = [
                _row(await recall(index.model_copy(update={"ef_search": beam}), f"beam {beam}"), ef_search=beam)
                for beam in _BEAMS
            ]
            wider = [
                _row(
                    await recall(index.model_copy(update={"oversampling": times}), f"{_MANY} hits, {times} x", k=_MANY),
                    oversampling=times,
                )
                for times in _OVERSAMPLING
            ]
        finally:
            await _forget(client, index, model)
    return {
        "objects": len(truth.vectors),
        "queries": len(truth.queries),
        "recall_at_10": round(plain.recall, 4),
        "recall_filtered": {share: round(found.recall, 4) for share, found in shares.items()},
        "recall_other_class": round(other.recall, 4),
        "p50_ms": round(plain.p50_ms, 2),
        "p99_ms": round(plain.p99_ms, 2),
        "filtered_p50_ms": {share: round(found.p50_ms, 2) for share, found in shares.items()},
        "ef_search": index.ef_search,
        "oversampling": index.oversampling,
        "beams": beams,
        f"oversampling_at_{_MANY}": wider,
        "graphs": index.shards,
        "written_s": round(written_s, 1),
        "machine": machine(),
    }


def _row(found: _Measured, **choice: float) -> dict[str, float]:
    return {
        **choice,
        "recall": round(found.recall, 4),
        "p50_ms": round(found.p50_ms, 2),
        "p99_ms": round(found.p99_ms, 2),
    }


async def _recall(
    searcher: IndexSearcher, truth: _Truth, k: int, tag: str | None = None, other_class: bool = False
) -> _Measured:
    """Of every query in turn, one at a time; some go before it counts, so that the graph is in memory."""
    recalls, spent = [], []
    for number in (*range(_WARM_UP), *range(len(truth.queries))):
        filters, among = SearchFilters(), np.ones(len(truth.vectors), bool)
        if tag is not None:
            filters, among = SearchFilters(tags=TagFilter(all=(tag,))), truth.tagged[tag]
        elif other_class:
            name = SHAPES[(SHAPES.index(truth.asked[number]) + 1) % len(SHAPES)]
            filters, among = SearchFilters(classes=ClassFilter(any=(name,))), truth.of_class[name]
        request = SearchRequest(text="stands for the vector", target="objects", k=k, filters=filters)
        started = time.perf_counter()
        found = await searcher.search(request, VectorQuestion(truth.queries[number]), _TIMEOUT_S)
        spent.append((time.perf_counter() - started) * 1000)
        rows = {truth.rows[hit.object_id or ""] for hit in found.hits}
        recalls.append(share_found(truth.cosines[number], among, rows, k))
    return _Measured(float(np.mean(recalls[_WARM_UP:])), *np.percentile(spent[_WARM_UP:], [50, 99]).tolist())


def share_found(cosines: FloatArray, among: Mask, found: Set[int], k: int) -> float:
    """Share of the `k` nearest of those `among` that were `found`; any that are as near as the last of them will do.

    cosines: float32 [n], of all; among: bool [n]; found: their numbers.
    """
    nearest = np.sort(cosines[among])[::-1][:k]
    if not len(nearest):
        return 1.0
    right = sum(bool(among[one]) and bool(cosines[one] >= nearest[-1] - _TIE) for one in found)
    return min(right / len(nearest), 1.0)


def _embedded(manifest: ModelManifest, texts: Sequence[str]) -> FloatArray:
    tower, tokenizer = TextTower(manifest, threads=2), ClipTokenizer(manifest.clip.context_length)
    return np.concatenate([tower(tokenizer.encode(texts[start : start + 16])) for start in range(0, len(texts), 16)])


async def _write(client: AsyncOpenSearch, index: str, console: Console, documents: Sequence[EmbeddingDocument]) -> None:
    """The objects of all documents, as the indexer makes them, some bulks at a time; then they are merged."""
    turns = asyncio.Semaphore(_BULKS)

    async def send(part: Sequence[EmbeddingDocument]) -> None:
        actions = [
            Action(
                document.image_id,
                "index",
                {"_index": index, "_id": object_id(document.image_id, source["ordinal"])},
                source,
            )
            for document in part
            for source in object_documents(state_of(document))
        ]
        answer = await client.bulk(body=b"".join(action.lines() for action in actions))
        if answer["errors"]:
            raise RuntimeError(f"OpenSearch refused documents: {answer['items'][0]}")
        turns.release()

    sending = []
    for start in track(range(0, len(documents), _BULK_IMAGES), "writing", console=console):
        await turns.acquire()
        sending.append(asyncio.create_task(send(documents[start : start + _BULK_IMAGES])))
    await asyncio.gather(*sending)
    # One graph a shard is the hardest case; in many small segments nearly every vector is compared.
    with console.status("merging"):
        await client.indices.forcemerge(index=index, params={"max_num_segments": 1, "request_timeout": _MERGE_S})
    await client.indices.refresh(index=index)


async def _forget(client: AsyncOpenSearch, index: IndexSettings, model: ModelIdentity) -> None:
    for alias in (index.images, index.objects):
        await client.indices.delete(index=index_name(alias, model), params={"ignore_unavailable": "true"})
