"""What every search must answer, in NumPy over plain documents: written from the contract, without the code it judges.

Nothing is fast and nothing is approximate here: each document is looked at by itself, one condition after the other.
"""

from __future__ import annotations

import math
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from agents.index.question import VectorQuestion
from sightlog.documents import (
    Detection,
    EmbeddingDocument,
    ImageChange,
    ImageDeletion,
    ImageUpdate,
    object_id,
)
from sightlog.filters import ClassFilter, MetadataFilter, SearchFilters
from sightlog.search import GOOD, MAX_RESULTS, SearchRequest

#: Hits that facets count.
FACET_HITS = 1000
_RANK_CONSTANT = 60
_BM25_K1 = 1.2


@dataclass(frozen=True)
class Thing:
    """An image, or one object of it."""

    image: EmbeddingDocument
    detection: Detection | None = None

    @property
    def id(self) -> str:
        return object_id(self.image.image_id, self.detection.ordinal) if self.detection else self.image.image_id

    @property
    def detections(self) -> tuple[Detection, ...]:
        """What filters for classes and boxes look at."""
        return (self.detection,) if self.detection else self.image.detections

    @cached_property
    def words(self) -> Counter[str]:
        """What `lexical` is compared with, and how often it is there."""
        image = self.image
        texts = [image.filename or "", *image.tags, *(str(value) for _, value in leaves(image.metadata))]
        if self.detection is not None:
            texts.append(self.detection.class_name)
        return Counter(word for text in texts for word in split_words(text))

    @cached_property
    def direction(self) -> npt.NDArray[np.float64]:
        """The vector, in float64 of unit length."""
        return _unit((self.detection or self.image).vector)

    def cosine(self, question: VectorQuestion) -> float:
        """Between the question and the vector."""
        return float(self.direction @ _unit(question.vector))


@dataclass(frozen=True)
class Expected:
    """A hit as it must be."""

    thing: Thing
    score: float
    cosine: float | None
    relevance: float | None
    lexical: float | None

    @property
    def id(self) -> str:
        return self.thing.id


@dataclass(frozen=True)
class Answer:
    """All hits in their order, not only those of one page."""

    hits: tuple[Expected, ...]
    facets: dict[str, dict[str, int]]
    no_good_match: bool


class Oracle:
    """The images as they are after all changes, and what searches must find in them."""

    def __init__(self, changes: Iterable[ImageChange]) -> None:
        images = list(_images(changes))
        self._things: dict[str, list[Thing]] = {
            "images": [Thing(image) for image in images],
            "objects": [Thing(image, detection) for image in images for detection in image.detections],
        }

    def answer(self, request: SearchRequest, question: VectorQuestion | None) -> Answer:
        """Every hit of a request, to the last page; `question`: None for words alone."""
        wanted = [thing for thing in self._things[request.target] if fulfils(thing, request.filters)]
        cosines: dict[str, float] = {}
        if question is not None:
            cosines = {thing.id: thing.cosine(question) for thing in wanted}
            if request.min_relevance is not None:
                wanted = [t for t in wanted if (question.relevance(cosines[t.id]) or 0.0) >= request.min_relevance]
        words = self._bm25(request, wanted) if request.lexical is not None else {}
        scores = _scores(request, question, {thing.id: cosines[thing.id] for thing in wanted if cosines}, words)
        hits = [
            Expected(
                thing,
                scores[thing.id],
                cosines.get(thing.id),
                question.relevance(cosines[thing.id]) if question else None,
                words.get(thing.id),
            )
            for thing in wanted
            if thing.id in scores
        ]
        hits.sort(key=lambda hit: (-hit.score, hit.id))
        if request.group == "image":
            hits = list({hit.thing.image.image_id: hit for hit in reversed(hits)}.values())
            hits.sort(key=lambda hit: (-hit.score, hit.id))
        hits = hits[:MAX_RESULTS]
        return Answer(tuple(hits), _facets(request, hits[:FACET_HITS]), self._no_good_match(request, question))

    def _no_good_match(self, request: SearchRequest, question: VectorQuestion | None) -> bool:
        if question is None or question.slope is None:
            return False
        wanted = [thing for thing in self._things[request.target] if fulfils(thing, request.filters)]
        return not any((question.relevance(thing.cosine(question)) or 0.0) >= GOOD for thing in wanted)

    def _bm25(self, request: SearchRequest, wanted: Sequence[Thing]) -> dict[str, float]:
        """Scores of those with at least one of the words; how rare a word is, is counted over the whole index."""
        everything = [thing.words for thing in self._things[request.target]]
        documents = sum(1 for words in everything if words)
        scores: dict[str, float] = {}
        for word in dict.fromkeys(split_words(request.lexical or "")):
            holding = sum(1 for words in everything if word in words)
            rarity = math.log(1 + (documents - holding + 0.5) / (holding + 0.5))
            for thing in wanted:
                if times := thing.words[word]:
                    scores[thing.id] = scores.get(thing.id, 0.0) + rarity * times / (times + _BM25_K1)
        return scores


def _images(changes: Iterable[ImageChange]) -> Iterator[EmbeddingDocument]:
    """Images that are there in the end: each with its last upload, and tags and metadata of what came last."""
    history: dict[str, list[ImageChange]] = {}
    for change in changes:
        history.setdefault(change.image_id, []).append(change)
    for changed in history.values():
        upload: EmbeddingDocument | None = None
        for change in sorted(changed, key=lambda one: one.version):
            if isinstance(change, EmbeddingDocument):
                upload = change
            elif isinstance(change, ImageDeletion):
                upload = None
            elif isinstance(change, ImageUpdate) and upload is not None:
                fields = {"tags": change.tags, "metadata": change.metadata}
                upload = upload.model_copy(update={name: v for name, v in fields.items() if v is not None})
        if upload is not None:
            yield upload


def fulfils(thing: Thing, filters: SearchFilters) -> bool:
    """Whether all conditions hold."""
    image = thing.image
    tags = set(image.tags)
    return (
        _classes(thing, filters.classes, filters.min_confidence)
        and (not filters.tags.any or bool(tags & set(filters.tags.any)))
        and tags >= set(filters.tags.all)
        and not tags & set(filters.tags.none)
        and _between(image.captured_at, filters.captured_from, filters.captured_to)
        and _between(image.uploaded_at, filters.uploaded_from, filters.uploaded_to)
        and all(_metadata(image.metadata, condition) for condition in filters.metadata)
        and _within(image.width, filters.min_width, filters.max_width)
        and _within(image.height, filters.min_height, filters.max_height)
        and _areas(thing, filters.min_area, filters.max_area)
    )


def _classes(thing: Thing, asked: ClassFilter, min_confidence: float | None) -> bool:
    sure = [d.class_name for d in thing.detections if round(d.confidence, 6) >= round(min_confidence or 0.0, 6)]
    counts = Counter(sure)
    if thing.detection is not None and not sure:
        return False
    if any(counts[name] for name in asked.none):
        return False
    if any(counts[name] < asked.min_count for name in asked.all):
        return False
    if asked.any:
        return any(counts[name] >= asked.min_count for name in asked.any)
    if asked.all:
        return True
    if asked.min_count > 1:
        return len(sure) >= asked.min_count
    # A confidence alone asks for some detection; where classes are unwanted, it says how sure those must be.
    return min_confidence is None or bool(asked.none) or bool(sure)


def _between(moment: datetime | None, start: datetime | None, end: datetime | None) -> bool:
    if start is None and end is None:
        return True
    return moment is not None and (start is None or moment >= start) and (end is None or moment < end)


def _within(value: float, low: float | None, high: float | None) -> bool:
    return (low is None or value >= low) and (high is None or value <= high)


def _areas(thing: Thing, low: float | None, high: float | None) -> bool:
    if low is None and high is None:
        return True
    boxes = (detection.box_normalised for detection in thing.detections)
    return any(_within((x2 - x1) * (y2 - y1), low, high) for x1, y1, x2, y2 in boxes)


def _metadata(metadata: dict[str, Any], asked: MetadataFilter) -> bool:
    return any(_holds(value, asked) for path, value in leaves(metadata) if path == asked.field)


def _holds(value: Any, asked: MetadataFilter) -> bool:
    def kind(one: Any) -> type:
        return float if isinstance(one, (int, float)) and not isinstance(one, bool) else type(one)

    if asked.equals is not None:
        return kind(value) is kind(asked.equals) and value == asked.equals
    if asked.at_least is not None and not (kind(value) is kind(asked.at_least) and value >= asked.at_least):
        return False
    return asked.below is None or (kind(value) is kind(asked.below) and value < asked.below)


def leaves(value: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, Any]]:
    """Every value of a metadata with its path; the elements of an array have the array's."""
    if isinstance(value, dict):
        for name, child in value.items():
            yield from leaves(child, (*path, name))
    elif isinstance(value, (list, tuple)):
        for child in value:
            yield from leaves(child, path)
    elif value is not None:
        yield ".".join(path), value


def _unit(vector: npt.ArrayLike) -> npt.NDArray[np.float64]:
    held = np.asarray(vector, np.float64)
    return np.asarray(held / np.linalg.norm(held))


def split_words(text: str) -> list[str]:
    """Runs of letters and digits, without case; an ideograph or kana is a word by itself."""
    words: list[str] = [""]
    for letter in unicodedata.normalize("NFKC", text).casefold():
        if unicodedata.name(letter, "").startswith(("CJK UNIFIED", "HIRAGANA", "KATAKANA")):
            words += [letter, ""]
        elif letter.isalnum():
            words[-1] += letter
        else:
            words.append("")
    return [word for word in words if word]


def _scores(
    request: SearchRequest, question: VectorQuestion | None, cosines: dict[str, float], words: dict[str, float]
) -> dict[str, float]:
    """What hits are ordered by, of every document that is one."""
    if question is None:
        return words
    near = {id_: question.score(cosine) for id_, cosine in cosines.items()}
    if request.lexical is None:
        return near
    shares = ((1 - request.lexical_weight, near), (request.lexical_weight, words))
    fused: dict[str, float] = {}
    for share, leg in shares:
        for id_, part in (_reciprocal_ranks(leg) if request.fusion == "rrf" else _spread(leg)).items():
            fused[id_] = fused.get(id_, 0.0) + share * part
    return fused


def _reciprocal_ranks(leg: dict[str, float]) -> dict[str, float]:
    ordered = sorted(leg, key=lambda id_: (-leg[id_], id_))
    return {id_: 1 / (_RANK_CONSTANT + rank) for rank, id_ in enumerate(ordered, 1)}


def _spread(leg: dict[str, float]) -> dict[str, float]:
    """Scores brought to 0..1 by the least and the greatest; 1 where all are alike."""
    if not leg:
        return {}
    low, high = min(leg.values()), max(leg.values())
    return {id_: (score - low) / (high - low) if high > low else 1.0 for id_, score in leg.items()}


def _facets(request: SearchRequest, hits: Sequence[Expected]) -> dict[str, dict[str, int]]:
    def values(name: str, thing: Thing) -> set[str]:
        image = thing.image
        if name == "classes":
            return {detection.class_name for detection in thing.detections}
        if name == "tags":
            return set(image.tags)
        moment = image.captured_at if name == "captured_month" else image.uploaded_at
        return set() if moment is None else {f"{moment:%Y-%m}"}

    return {name: dict(Counter(value for hit in hits for value in values(name, hit.thing))) for name in request.facets}
