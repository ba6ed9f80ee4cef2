"""The whole image pipeline in one process, without Triton: the ceiling of benchmarks and the truth of parity tests."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from models.manifest import ModelManifest
from models.preprocessing import DEFAULT_MAX_PIXELS
from triton_repo.contract import ImageInference
from triton_repo.sessions import Detector, ImageTower, TextTower
from triton_repo.steps import ImageSteps, StepFunctions


class InProcessPipeline:
    """Same functions and models as `image_pipeline` and `clip_text`; may be called from several threads at once."""

    def __init__(
        self,
        manifest: ModelManifest,
        functions: StepFunctions | None = None,
        *,
        threads: int = 1,
        max_pixels: int = DEFAULT_MAX_PIXELS,
    ) -> None:
        self._steps = ImageSteps(manifest, functions, max_pixels)
        self._detector = Detector(manifest, threads, self._steps)
        self._image_tower = ImageTower(manifest, threads, self._steps)
        self._text_tower = TextTower(manifest, threads, self._steps)

    def infer(self, data: bytes) -> ImageInference:
        """Encoded file bytes -> what the models see. Raises `ImageError`."""
        return self.infer_batch([data])[0]

    def infer_batch(self, batch: Sequence[bytes]) -> list[ImageInference]:
        """Several pictures, the models run once for all. Raises `ImageError` of the first bad one."""
        prepared = [self._steps.prepare(data) for data in batch]
        rows = zip(*self._detector([p.letterboxed for p in prepared]), prepared, strict=True)
        found = [
            self._steps.detections(int(count[0]), boxes, scores, classes, p.original, p.size)
            for count, boxes, scores, classes, p in rows
        ]
        views = self._steps.views(
            [p.centre for p in prepared], [p.original for p in prepared], [p.size for p in prepared], found
        )
        vectors = self._image_tower(views)
        results, row = [], 0
        for p, detections in zip(prepared, found, strict=True):
            end = row + 1 + len(detections.boxes)
            results.append(
                ImageInference(
                    width=int(p.size[0]),
                    height=int(p.size[1]),
                    embedding=vectors[row],
                    boxes=detections.boxes,
                    scores=detections.scores,
                    class_ids=detections.class_ids,
                    object_embeddings=vectors[row + 1 : end],
                )
            )
            row = end
        return results

    def embed_text(self, tokens: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        """int64 [n, context] -> float32 [n, dim], L2-normalised."""
        return self._text_tower(tokens)
