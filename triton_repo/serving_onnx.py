"""What Triton's python backend runs to serve the ONNX models themselves."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from triton_repo import contract
from triton_repo.contract import StepTensors
from triton_repo.serving import ServedModel, answer, tensor
from triton_repo.sessions import Detector, ImageTower, TextTower


class DetectorModel(ServedModel):
    """`detector`: letterboxed pictures to End2End rows (NMS inside the graph)."""

    def start(self) -> None:
        self._detector = Detector(self.manifest, int(self.parameters["model_threads"]))

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        pictures = [tensor(request, StepTensors.LETTERBOXED)[0] for request in requests]
        num_dets, boxes, scores, classes = self._detector(pictures)
        return [
            answer(
                {
                    StepTensors.NUM_DETS: num_dets[row : row + 1],
                    StepTensors.DET_BOXES: boxes[row : row + 1],
                    StepTensors.DET_SCORES: scores[row : row + 1],
                    StepTensors.DET_CLASSES: classes[row : row + 1],
                }
            )
            for row in range(len(requests))
        ]


class TowerModel(ServedModel):
    """A CLIP tower: the requests' rows run together, each request gets its own back."""

    _input: str
    _tower: Callable[[Any], Any]

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        inputs = [tensor(request, self._input) for request in requests]
        rows = inputs[0] if len(inputs) == 1 else np.concatenate(inputs)
        vectors = self._tower(rows)
        ends = np.cumsum([len(part) for part in inputs])
        return [answer({contract.EMBEDDING: part}) for part in np.split(vectors, ends[:-1])]


class ClipImageModel(TowerModel):
    """`clip_image`: crops to vectors."""

    _input = contract.CROPS

    def start(self) -> None:
        self._tower = ImageTower(self.manifest, int(self.parameters["model_threads"]))


class ClipTextModel(TowerModel):
    """`clip_text`: tokens to vectors."""

    _input = contract.TOKENS

    def start(self) -> None:
        self._tower = TextTower(self.manifest, int(self.parameters["model_threads"]))
