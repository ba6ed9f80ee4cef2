"""A small world of images with real embeddings and varied facts, and random searches in it; all of it from seeds."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from agents.index.question import VectorQuestion
from load_tests.scene_vectors import UNSEEN_SEED, SceneFact, scene_vectors
from models.manifest import ModelManifest
from models.scenes import COLOURS, PATTERNS, SHAPES, SceneObject
from models.tokenizer import ClipTokenizer
from sightlog.documents import Detection, EmbeddingDocument, ImageChange, ImageDeletion, ImageUpdate, ModelRef
from sightlog.fields import FloatArray
from sightlog.filters import SearchFilters
from sightlog.search import SearchRequest
from triton_repo.sessions import TextTower

TAGS = ("beach", "city at night", "Küste", "東京", "red-eye", "x")
CAMERAS = ("front door", "Back_Door", "roof 2")
SIZES = ((640, 480), (1280, 960), (960, 1280), (1920, 1080))
_BEGIN = datetime(2025, 11, 1, tzinfo=timezone.utc)
_QUIET = Console(quiet=True)


def changes(count: int, folder: Path, manifest: ModelManifest) -> tuple[list[ImageChange], list[ImageChange]]:
    """Uploads of `count` scenes with all their objects, and what happened to some of them later."""
    images, shown = scene_vectors(count, kind="images", folder=folder, console=_QUIET, manifest=manifest)
    objects, facts = scene_vectors(6 * count, folder=folder, console=_QUIET, manifest=manifest)
    members: dict[int, list[tuple[SceneObject, FloatArray]]] = {}
    for fact, vector in zip(facts, objects, strict=True):
        members.setdefault(fact.scene, []).append((fact.objects[0], vector))
    rng = np.random.default_rng(5)
    uploads = [
        _upload(rng, manifest, fact, vector, members[fact.scene]) for fact, vector in zip(shown, images, strict=True)
    ]
    # The same picture again, under another name: equal vectors, so only ids tell which comes first.
    for number in range(0, count, 25):
        again = uploads[number].model_copy(update={"image_id": f"again-{number}", "filename": "copy of it.jpg"})
        uploads.append(again)
    uploads.append(uploads[0].model_copy(update={"image_id": "empty", "detections": (), "vector": -uploads[0].vector}))
    return list(uploads), list(_later(rng, uploads))


def _upload(
    rng: np.random.Generator,
    manifest: ModelManifest,
    fact: SceneFact,
    vector: FloatArray,
    members: Sequence[tuple[SceneObject, FloatArray]],
) -> EmbeddingDocument:
    width, height = SIZES[rng.integers(len(SIZES))]
    captured, uploaded = (_BEGIN + timedelta(days=int(rng.integers(120)), milliseconds=ms) for ms in (250, 0))
    return EmbeddingDocument(
        image_id=f"scene-{fact.scene:04}",
        version=10,
        event_id="event",
        event_source="/camera/7",
        filename=None
        if rng.random() < 0.1
        else f"{rng.choice(['IMG', 'beach', 'Night.city'])}_{fact.scene % 50:03}.jpg",
        tags=_tags(rng),
        captured_at=None if rng.random() < 0.2 else captured,
        uploaded_at=uploaded,
        metadata=_metadata(rng),
        sha256="0" * 64,
        size_bytes=1000,
        width=width,
        height=height,
        model=ModelRef(name=manifest.name, digest=manifest.digest),
        vector=vector,
        detections=tuple(
            Detection(
                ordinal=ordinal,
                class_name=thing.shape,
                confidence=round(float(rng.uniform(0.3, 1)), 2),
                box=thing.box,
                box_normalised=(thing.box[0] / 480, thing.box[1] / 360, thing.box[2] / 480, thing.box[3] / 360),
                vector=its,
            )
            for ordinal, (thing, its) in enumerate(members)
        ),
    )


def _later(rng: np.random.Generator, uploads: Sequence[EmbeddingDocument]) -> Iterator[ImageChange]:
    rest: dict[str, Any] = {"event_id": "later", "event_source": "/test"}
    for upload in uploads:
        fate = rng.random()
        if fate < 0.05:
            yield ImageDeletion(image_id=upload.image_id, version=20, deleted_at=_BEGIN, **rest)
        elif fate < 0.15:
            new: dict[str, Any] = {"tags": _tags(rng)} if fate < 0.1 else {"metadata": _metadata(rng)}
            yield ImageUpdate(image_id=upload.image_id, version=20, updated_at=_BEGIN, **new, **rest)
        elif fate < 0.18:
            yield upload.model_copy(
                update={"version": 20, "tags": ("seen again",), "detections": upload.detections[:1]}
            )
    yield ImageUpdate(image_id="not there yet", version=20, updated_at=_BEGIN, tags=TAGS[:1], **rest)


def _tags(rng: np.random.Generator) -> tuple[str, ...]:
    return tuple(rng.choice(TAGS, size=int(rng.integers(4)), replace=False).tolist())


def _metadata(rng: np.random.Generator) -> dict[str, Any]:
    held: dict[str, Any] = {
        "camera": {"name": str(rng.choice(CAMERAS)), "height": float(rng.integers(-3, 8)) / 2},
        "flash": bool(rng.random() < 0.5),
        "level": [0, -0.0, 1, 2.5, -7, 1e300, "2", "high", True][int(rng.integers(9))],
        "marks": rng.integers(0, 10, int(rng.integers(4))).tolist(),
        "people": [{"name": str(name)} for name in rng.choice(["Ana", "Bo", "Çelik"], int(rng.integers(3)))],
        "note": "z" * 300 if rng.random() < 0.05 else None,
    }
    return {name: held[name] for name in held if rng.random() < 0.8}


class Searches:
    """Random requests, each with the question that the query worker would have made of its text."""

    def __init__(self, manifest: ModelManifest, folder: Path, seed: int) -> None:
        self._rng = np.random.default_rng(seed)
        self._classes = manifest.detector.classes
        self._unseen, _ = scene_vectors(40, folder=folder, console=_QUIET, manifest=manifest, seed=UNSEEN_SEED)
        captions = [f"a photo of a {p} {c} {s}" for p in PATTERNS[:1] for c in COLOURS for s in SHAPES[:3]]
        self._texts = TextTower(manifest)(ClipTokenizer(manifest.clip.context_length).encode(captions))

    def next(self) -> tuple[SearchRequest, VectorQuestion | None]:
        """Some request."""
        rng = self._rng
        mode = str(rng.choice(["near", "near", "hybrid", "hybrid", "words"]))
        asked: dict[str, Any] = {"target": str(rng.choice(["images", "objects", "objects"])), "k": self._k()}
        question = None
        if mode != "words":
            asked["text"] = "stands for the question"
            question = self._question()
            if question.slope is not None and rng.random() < 0.5:
                asked["min_relevance"] = round(float(rng.random()), 3)
        if mode != "near":
            words = ["beach", "NIGHT", "city", "jpg", "Küste", "東京", "roof", "012", "ana", "circle", "unheard", "2"]
            asked["lexical"] = " ".join(rng.choice(words, int(rng.integers(1, 5))))
            asked["fusion"] = str(rng.choice(["rrf", "weighted"]))
            asked["lexical_weight"] = float(rng.choice([0, 0.2, 0.5, 0.9, 1]))
        if asked["target"] == "objects" and rng.random() < 0.4:
            asked["group"] = "image"
        if rng.random() < 0.4:
            names = ["classes", "tags", "captured_month", "uploaded_month"]
            asked["facets"] = tuple(rng.choice(names, int(rng.integers(1, 5)), replace=False).tolist())
        asked["pages"] = bool(rng.random() < 0.4)
        asked["exact"] = bool(rng.random() < 0.3)
        asked["include_vectors"] = bool(rng.random() < 0.1)
        asked["filters"] = self._filters(asked["target"])
        return SearchRequest.model_validate(asked), question

    def _k(self) -> int:
        return int(self._rng.choice([1, 3, 10, 50, 1000]))

    def _question(self) -> VectorQuestion:
        rng = self._rng
        vectors = self._texts if rng.random() < 0.5 else self._unseen
        vector = (
            vectors[rng.integers(len(vectors))]
            - 0.5 * (rng.random() < 0.3) * self._texts[rng.integers(len(self._texts))]
        )
        # A little of chance, so that no two requests ask the same.
        vector = vector + rng.normal(0, 0.01, len(vector))
        slope = None if rng.random() < 0.3 else float(rng.uniform(3, 30))
        intercept = float(rng.uniform(-8, 2)) if slope else 0.0
        return VectorQuestion((vector / np.linalg.norm(vector)).astype(np.float32), slope, intercept)

    def _filters(self, target: str) -> SearchFilters:
        rng = self._rng
        conditions = (
            self._class_filter,
            self._tag_filter,
            self._times,
            self._metadata_filter,
            self._sizes,
            self._areas,
        )
        chosen = rng.choice(len(conditions), int(rng.choice([0, 1, 1, 2, 3])), replace=False)
        found: dict[str, Any] = {}
        for number in chosen:
            found |= conditions[number](target)
        return SearchFilters.model_validate(found)

    def _class_filter(self, target: str) -> dict[str, Any]:
        rng = self._rng
        classes = rng.permutation(np.array(self._classes)).tolist()
        asked: dict[str, Any] = {}
        if rng.random() < 0.5:
            asked["any"] = classes[: int(rng.integers(1, 4))]
        if rng.random() < 0.5:
            asked["none"] = classes[4:5]
        if rng.random() < 0.3:
            asked["all"] = classes[3:4] if target == "objects" or rng.random() < 0.5 else classes[2:4]
        if target == "images" and rng.random() < 0.6:
            asked["min_count"] = int(rng.integers(2, 4))
        sure = {"min_confidence": round(float(rng.uniform(0.2, 0.9)), 2)} if rng.random() < 0.5 else {}
        return {"classes": asked, **sure}

    def _tag_filter(self, _: str) -> dict[str, Any]:
        rng = self._rng
        tags = rng.permutation(np.array(TAGS)).tolist()
        kinds = [
            {"any": tags[:2]},
            {"all": tags[:1]},
            {"all": tags[:2]},
            {"none": tags[:2]},
            {"any": tags[:3], "none": tags[3:4]},
        ]
        return {"tags": kinds[rng.integers(len(kinds))]}

    def _times(self, _: str) -> dict[str, Any]:
        rng = self._rng
        kind = str(rng.choice(["captured", "uploaded"]))
        # Whole days as in the uploads, so that limits are met exactly.
        start = _BEGIN + timedelta(days=int(rng.integers(90)), milliseconds=250 if kind == "captured" else 0)
        limits = {f"{kind}_from": start, f"{kind}_to": start + timedelta(days=int(rng.integers(1, 60)))}
        return {name: moment for name, moment in limits.items() if rng.random() < 0.7}

    def _metadata_filter(self, _: str) -> dict[str, Any]:
        rng = self._rng
        conditions: list[dict[str, Any]] = [
            {"field": "camera.name", "equals": str(rng.choice(CAMERAS))},
            {"field": "camera.name", "at_least": "a"},
            {"field": "camera.height", "at_least": float(rng.integers(-3, 4)) / 2},
            {"field": "camera.height", "at_least": -0.5, "below": 2},
            {"field": "camera.height", "equals": 0},
            {"field": "flash", "equals": bool(rng.random() < 0.5)},
            {"field": "level", "equals": [0, 1, "2", True][int(rng.integers(4))]},
            {"field": "level", "below": 0.5},
            {"field": "level", "at_least": 1, "below": 1e301},
            {"field": "marks", "equals": int(rng.integers(10))},
            {"field": "marks", "at_least": 3, "below": 5},
            {"field": "people.name", "equals": "Çelik"},
            {"field": "people.name", "at_least": "B", "below": "Ç"},
            {"field": "note", "at_least": "y"},
        ]
        return {"metadata": [conditions[number] for number in rng.choice(len(conditions), int(rng.integers(1, 3)))]}

    def _sizes(self, _: str) -> dict[str, Any]:
        rng = self._rng
        width, height = SIZES[rng.integers(len(SIZES))]
        kinds: list[dict[str, Any]] = [
            {"min_width": width}, {"max_width": width}, {"min_width": 900, "max_width": 1300},
            {"min_height": height}, {"min_height": 700, "max_height": 1100}, {"max_height": height, "min_width": width},
        ]  # fmt: skip
        return kinds[rng.integers(len(kinds))]

    def _areas(self, _: str) -> dict[str, Any]:
        rng = self._rng
        low = round(float(rng.uniform(0.02, 0.08)), 4)
        kinds: list[dict[str, Any]] = [{"min_area": low}, {"max_area": low}, {"min_area": low, "max_area": low + 0.005}]
        return kinds[rng.integers(len(kinds))]
