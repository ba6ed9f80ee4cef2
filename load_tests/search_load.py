"""What `bench search` asks, of an index that it fills, and both ways of asking it."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from opensearchpy import AsyncOpenSearch
from rich.console import Console
from rich.progress import Progress

from agents.app import model_identity
from agents.index.connection import connect, ensure_indices
from agents.index.writer import IndexWriter
from agents.settings import AgentSettings
from load_tests.scene_vectors import kept_vectors, scene_documents, scene_vectors
from models.manifest import ModelManifest
from models.scenes import KINDS, caption_of
from sightlog.documents import EmbeddingDocument
from sightlog.search import SearchReply, SearchRequest

#: One thing a text. People ask for few of all things most of the time, so these are what a warm cache is about.
THINGS = [f"a {caption_of(kind)}" for kind in KINDS]
#: Different texts of the mix: ten times as many as a search worker remembers.
_TEXTS = 10_000
_BATCH, _BATCHES = 64, 4

Ask = Callable[[SearchRequest], Awaitable[SearchReply]]


def asking(text: str) -> SearchRequest:
    """What is searched for a text."""
    return SearchRequest(text=text, target="objects")


def zipf_mix(count: int, seed: int = 0) -> list[str]:
    """Texts as people ask them: the n-th most wanted of ten thousand is asked for 1/n as often as the first."""
    rng = np.random.default_rng(seed)
    pairs = [f"{one} beside {other}" for one, other in itertools.permutations(THINGS, 2)]
    texts = rng.choice(np.array(pairs), _TEXTS, replace=False)
    weights = 1 / np.arange(1, _TEXTS + 1)
    return [str(text) for text in texts[rng.choice(_TEXTS, count, p=weights / weights.sum())]]


async def fill(settings: AgentSettings, manifest: ModelManifest, vectors: int, tag: str, console: Console) -> None:
    """Index so many objects of scenes under a tag, as an indexer would, and wait until the index has come to rest."""
    embeddings, facts = scene_vectors(vectors, folder=kept_vectors(), console=console, manifest=manifest)
    documents = (
        document.model_copy(update={"image_id": f"{tag}-{document.image_id}", "tags": (*document.tags, tag)})
        for document in scene_documents(embeddings, facts, manifest)
    )
    model = model_identity(manifest)
    async with connect(settings.opensearch) as opensearch:
        await ensure_indices(opensearch, settings.index, model)
        writer = IndexWriter(opensearch, settings.index, model, settings.bulk_limits, settings.backoff)
        with Progress(console=console) as progress:
            task = progress.add_task("indexed", total=vectors)

            async def write(batches: Iterator[list[EmbeddingDocument]]) -> None:
                for batch in batches:
                    await writer.write(batch)
                    progress.advance(task, sum(len(document.detections) for document in batch))

            batches = _batches(documents)
            await asyncio.gather(*(write(batches) for _ in range(_BATCHES)))
        await _at_rest(opensearch)


def _batches(documents: Iterator[EmbeddingDocument]) -> Iterator[list[EmbeddingDocument]]:
    while batch := list(itertools.islice(documents, _BATCH)):
        yield batch


async def _at_rest(opensearch: AsyncOpenSearch) -> None:
    """Return when no merge is under way: one would share the machine with the searches."""
    while True:
        stats = await opensearch.indices.stats(metric="merge,refresh")
        if not stats["_all"]["total"]["merges"]["current"]:
            return
        await asyncio.sleep(1)


@dataclass(frozen=True)
class Rush:
    """What many callers at once got."""

    seconds: float
    replies: Sequence[SearchReply]

    @property
    def rate(self) -> float:
        """Replies a second."""
        return len(self.replies) / self.seconds


async def rush(ask: Ask, requests: Sequence[SearchRequest], callers: int) -> Rush:
    """All requests, by so many callers at once; each asks again when it has its reply."""
    left, replies = iter(requests), list[SearchReply]()

    async def caller() -> None:
        for request in left:
            replies.append(await ask(request))

    started = time.perf_counter()
    await asyncio.gather(*(caller() for _ in range(callers)))
    return Rush(time.perf_counter() - started, replies)
