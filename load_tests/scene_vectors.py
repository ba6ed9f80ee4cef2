"""Many real embeddings: scenes drawn small, seen by the image tower in several processes, and kept on disk."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from itertools import groupby
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from PIL import Image
from rich.console import Console
from rich.progress import Progress

from models.manifest import ModelManifest, load_manifest
from models.preprocessing import centre_crop, square_crop
from models.scenes import COLOURS, PATTERNS, SHAPES, Kind, SceneObject, generate_scene
from sightlog.documents import Detection, EmbeddingDocument, ModelRef
from sightlog.fields import FloatArray
from sightlog.settings import default_data_dir
from triton_repo.sessions import ImageTower

#: Of scenes that neither training nor any other benchmark has seen.
INDEXED_SEED = 31_000
UNSEEN_SEED = 32_000
#: Objects are 80 to 130 pixels wide in these, as wide as the tiny image tower sees them: nothing is drawn in vain.
_WIDTH, _HEIGHT, _RADIUS = 480, 360, (0.1, 0.16)
#: Scenes that a process draws with one generator, so that the vectors do not depend on how many processes there are.
_CHUNK = 16
_SHAPES, _COLOURS, _PATTERNS = tuple(SHAPES), tuple(COLOURS), tuple(PATTERNS)

What = Literal["objects", "images"]


@dataclass(frozen=True)
class SceneFact:
    """What a vector shows: one object, or all of an image. Boxes are pixels of the scene that has this number."""

    scene: int
    objects: tuple[SceneObject, ...]


def kept_vectors() -> Path:
    """The folder where benchmarks keep vectors from one run to the next, whatever stack they start."""
    return default_data_dir() / "bench"


def scene_vectors(
    count: int,
    *,
    kind: What = "objects",
    folder: Path,
    console: Console,
    manifest: ModelManifest | None = None,
    seed: int = INDEXED_SEED,
) -> tuple[FloatArray, list[SceneFact]]:
    """`count` unit vectors, float32 [count, dim], and what each shows; the same arguments, the same vectors.

    `manifest`: the tiny models if not given. `folder`: where they are kept for the next time; of a larger number that
    is there already, the first are taken. Objects are cut out by the boxes that they were drawn in; no detector looks.
    About 4 ms of CPU an object and 10 an image of the tiny models.
    """
    manifest = manifest or load_manifest()
    stem = f"scenes-{kind}-{manifest.digest[:12]}-{seed}-"
    kept = sorted((int(path.stem.removeprefix(stem)), path) for path in folder.glob(f"{stem}*.npz"))
    path = next((path for size, path in kept if size >= count), None)
    if path is None:
        path = folder / f"{stem}{count}.npz"
        vectors, rows = _draw(count, kind, manifest, seed, console)
        folder.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_suffix(f".{os.getpid()}")
        with unfinished.open("wb") as file:
            np.savez(file, vectors=vectors, rows=rows)
        unfinished.replace(path)
    with np.load(path) as stored:
        vectors, rows = stored["vectors"][:count], stored["rows"]
    return vectors, _facts(rows[rows[:, 0] < count])


def scene_documents(
    vectors: FloatArray, facts: Sequence[SceneFact], manifest: ModelManifest, *, kind: What = "objects"
) -> Iterator[EmbeddingDocument]:
    """Documents that hold these vectors, as the vision worker would publish them.

    Of objects one document a scene, with all its objects as detections, whose mean is the image's vector; of images one
    document each, without detections. Facts vary with the number of the scene.
    """
    for scene, group in groupby(zip(facts, vectors, strict=True), key=lambda pair: pair[0].scene):
        members = list(group)
        mean = np.mean([vector for _, vector in members], axis=0)
        rng = np.random.default_rng([INDEXED_SEED, scene])
        yield EmbeddingDocument(
            image_id=f"scene-{scene:07}",
            version=1,
            event_id=f"event-{scene:07}",
            event_source="/bench",
            filename=f"{scene:07}.jpg",
            tags=(*_shares(rng), *sorted({thing.colour for fact, _ in members for thing in fact.objects})),
            uploaded_at=_BEGIN + timedelta(minutes=scene),
            captured_at=_BEGIN - timedelta(hours=int(rng.integers(10_000))),
            metadata={"camera": f"camera-{scene % 20}", "height": float(rng.integers(100))},
            content_type="image/jpeg",
            sha256=f"{scene:064x}",
            size_bytes=100_000,
            width=_WIDTH,
            height=_HEIGHT,
            model=ModelRef(name=manifest.name, digest=manifest.digest),
            vector=(mean / np.linalg.norm(mean)).astype(np.float32),
            detections=tuple(
                _detection(ordinal, fact.objects[0], vector, float(rng.uniform(0.65, 1)))
                for ordinal, (fact, vector) in enumerate(members)
                if kind == "objects"
            ),
        )


_BEGIN = datetime(2026, 1, 1, tzinfo=timezone.utc)

#: Shares of the scenes that have the tag `share-<share>`, each for itself by chance.
SHARES = (0.5, 0.05, 0.001)


def _shares(rng: np.random.Generator) -> tuple[str, ...]:
    return tuple(f"share-{share:g}" for share in SHARES if rng.random() < share)


def _detection(ordinal: int, thing: SceneObject, vector: FloatArray, confidence: float) -> Detection:
    x1, y1, x2, y2 = thing.box
    return Detection(
        ordinal=ordinal,
        class_name=thing.shape,
        confidence=confidence,
        box=thing.box,
        box_normalised=(x1 / _WIDTH, y1 / _HEIGHT, x2 / _WIDTH, y2 / _HEIGHT),
        vector=vector,
    )


def _draw(
    count: int, kind: What, manifest: ModelManifest, seed: int, console: Console
) -> tuple[FloatArray, npt.NDArray[np.float32]]:
    """Vectors and rows, as they are kept: vector number, scene, shape, colour, pattern, x1, y1, x2, y2 of an object."""
    vectors: list[FloatArray] = []
    rows: list[npt.NDArray[np.float32]] = []
    made = 0
    # Not forked: a thread of the caller could hold a lock for ever in the child.
    context = get_context("spawn")
    workers = os.cpu_count() or 1
    with (
        ProcessPoolExecutor(workers, context, initializer=_start, initargs=(manifest.folder,)) as pool,
        Progress(console=console) as progress,
    ):
        bar = progress.add_task(f"drawing and embedding {kind}", total=count)
        chunk = 0
        waiting: list[Future[tuple[FloatArray, npt.NDArray[np.float32]]]] = []
        while made < count:
            while len(waiting) < 2 * workers:
                waiting.append(pool.submit(_chunk, kind, seed, chunk))
                chunk += 1
            found, described = waiting.pop(0).result()
            described[:, 0] += made
            vectors.append(found)
            rows.append(described)
            made += len(found)
            progress.update(bar, completed=min(made, count))
        for future in waiting:
            future.cancel()
    every = np.concatenate(rows)
    return np.concatenate(vectors)[:count], every[every[:, 0] < count]


_tower: ImageTower
_manifest: ModelManifest


def _start(folder: Path) -> None:
    """In a process of the pool: load the model once."""
    global _tower, _manifest
    _manifest = load_manifest(folder)
    _tower = ImageTower(_manifest, threads=1)


def _chunk(kind: What, seed: int, chunk: int) -> tuple[FloatArray, npt.NDArray[np.float32]]:
    rng = np.random.default_rng([seed, chunk])
    clip = _manifest.clip
    crops: list[npt.NDArray[np.uint8]] = []
    rows: list[tuple[float, ...]] = []
    for scene in range(chunk * _CHUNK, (chunk + 1) * _CHUNK):
        drawn = generate_scene(rng, _WIDTH, _HEIGHT, int(rng.integers(2, 6)), radius=_RADIUS)
        if kind == "images":
            rows += [_row(len(crops), scene, thing) for thing in drawn.objects]
            crops.append(centre_crop(Image.fromarray(drawn.image), clip.image_size, interpolation=clip.interpolation))
            continue
        for thing in drawn.objects:
            rows.append(_row(len(crops), scene, thing))
            crops.append(
                square_crop(
                    drawn.image,
                    thing.box,
                    clip.image_size,
                    margin=_manifest.preprocessing.crop_margin,
                    pad_value=_manifest.detector.pad_value,
                    interpolation=clip.interpolation,
                )
            )
    return _tower(np.stack(crops)), np.array(rows, np.float32)


def _row(number: int, scene: int, thing: SceneObject) -> tuple[float, ...]:
    kind = (_SHAPES.index(thing.shape), _COLOURS.index(thing.colour), _PATTERNS.index(thing.pattern))
    return (number, scene, *kind, *thing.box)


def _facts(rows: npt.NDArray[np.float32]) -> list[SceneFact]:
    facts = []
    for _, group in groupby(rows.tolist(), key=lambda row: row[0]):
        members: list[list[Any]] = list(group)
        objects = tuple(
            SceneObject(
                *Kind(_SHAPES[int(shape)], _COLOURS[int(colour)], _PATTERNS[int(pattern)]), box=(x1, y1, x2, y2)
            )
            for _, _, shape, colour, pattern, x1, y1, x2, y2 in members
        )
        facts.append(SceneFact(int(members[0][1]), objects))
    return facts
