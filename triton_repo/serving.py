"""What Triton's python backend runs around the models: decoding in front, crops and answers behind. No ONNX here."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb  # exists only inside a Triton stub

from models.decoding import ImageError
from models.manifest import ModelManifest, load_manifest
from sightlog.errors import SightlogError
from triton_repo import contract
from triton_repo.contract import PARAMETERS, ImageInference, StepTensors
from triton_repo.dali_inputs import dali_picture, dali_ready
from triton_repo.steps import Detections, ImageSteps, Prepared


class RequestError(SightlogError):
    """A request that no client of ours sends."""


class ServedModel:
    """One instance: knows its manifest (beside its model.py) and the settings that `build` wrote into its config."""

    manifest: ModelManifest
    parameters: dict[str, Any]
    device: int  #: number of the GPU that the instance is on

    def initialize(self, args: dict[str, str]) -> None:
        """Called once by Triton."""
        config = json.loads(args["model_config"])
        self.parameters = json.loads(config["parameters"][PARAMETERS]["string_value"])
        self.device = int(args["model_instance_device_id"])
        self.manifest = load_manifest(Path(args["model_repository"]) / args["model_version"])
        self.start()

    def start(self) -> None:
        """Load what the instance needs. Triton then runs it once, as its config says, before anybody may ask."""
        raise NotImplementedError

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """Answer a dynamic batch; an unexpected error fails the batch with INTERNAL, which callers may retry."""
        raise NotImplementedError


class PictureModel(ServedModel):
    """Works on the file that a request carries, and refuses a bad one alone."""

    def tensors(self, data: bytes) -> dict[str, Any]:
        """Encoded file bytes -> the answer. Raises `ImageError`."""
        raise NotImplementedError

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        return [self._answer(request) for request in requests]

    def _answer(self, request: Any) -> Any:
        try:
            return answer(self.tensors(one_picture(request)))
        except (ImageError, RequestError) as error:
            return refusal(str(error))


class PreprocessModel(PictureModel):
    """`preprocess`: encoded bytes to letterbox, global view and capped original."""

    def start(self) -> None:
        self._steps = ImageSteps(self.manifest, max_pixels=int(self.parameters["max_pixels"]))
        #: For fault tests alone.
        self._crash_on = frozenset(self.parameters.get("crash_on", ()))

    def tensors(self, data: bytes) -> dict[str, Any]:
        if self._crash_on and hashlib.sha256(data).hexdigest() in self._crash_on:
            os.abort()  # as a decoder that writes where it must not
        prepared = self._steps.prepare(data)
        return {
            StepTensors.LETTERBOXED: prepared.letterboxed[None],
            StepTensors.CENTRE: prepared.centre[None],
            StepTensors.ORIGINAL: prepared.original[None],
            contract.IMAGE_SIZE: prepared.size[None],
        }


class DaliReadyModel(PictureModel):
    """`dali_ready`: encoded bytes to those that DALI decodes as `preprocess` would."""

    def start(self) -> None:
        self._max_pixels = int(self.parameters["max_pixels"])

    def tensors(self, data: bytes) -> dict[str, Any]:
        return {StepTensors.DALI_IMAGE: np.frombuffer(dali_ready(data, self._max_pixels), np.uint8)[None]}


class SizedDaliReadyModel(DaliReadyModel):
    """The same, and how many pixels the picture has."""

    def tensors(self, data: bytes) -> dict[str, Any]:
        ready, pixels = dali_picture(data, self._max_pixels)
        return {
            StepTensors.DALI_IMAGE: np.frombuffer(ready, np.uint8)[None],
            StepTensors.DALI_PIXELS: np.array([[pixels]]),
        }


class BoxEmbedderModel(ServedModel):
    """`box_embedder`: boxes back to original pixels, crops of a whole batch, one call to the image tower."""

    def start(self) -> None:
        self._steps = ImageSteps(self.manifest)
        self._max_crops = int(self.parameters["max_crops"])

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        prepared = [self._prepared(request) for request in requests]
        found = [self._detections(request, p) for request, p in zip(requests, prepared, strict=True)]
        views = self._steps.views(
            [p.centre for p in prepared], [p.original for p in prepared], [p.size for p in prepared], found
        )
        starts = range(0, len(views), self._max_crops)
        parts = [pb.Tensor(contract.CROPS, views[start : start + self._max_crops]) for start in starts]
        return self._answers(found, np.concatenate([embedded(self.manifest, part) for part in parts]))

    def _prepared(self, request: Any) -> Prepared:
        return Prepared(
            letterboxed=np.empty((0, 0, 3), np.uint8),
            centre=tensor(request, StepTensors.CENTRE)[0],
            original=tensor(request, StepTensors.ORIGINAL)[0],
            size=tensor(request, contract.IMAGE_SIZE)[0],
        )

    def _detections(self, request: Any, prepared: Prepared) -> Detections:
        return self._steps.detections(
            int(tensor(request, StepTensors.NUM_DETS)[0, 0]),
            tensor(request, StepTensors.DET_BOXES)[0],
            tensor(request, StepTensors.DET_SCORES)[0],
            tensor(request, StepTensors.DET_CLASSES)[0],
            prepared.original,
            prepared.size,
        )

    @staticmethod
    def _answers(found: Sequence[Detections], vectors: np.ndarray[Any, Any]) -> list[Any]:
        answers, row = [], 0
        for detections in found:
            end = row + 1 + len(detections.boxes)
            answers.append(seen_answer(detections, vectors[row : row + 1], vectors[row + 1 : end]))
            row = end
        return answers


def tensor(request: Any, name: str) -> Any:
    """An input of a request as the array that lies in shared memory (not copied)."""
    return pb.get_input_tensor_by_name(request, name).as_numpy()


def one_picture(request: Any) -> bytes:
    """The file that a request carries. Raises `RequestError`."""
    images = tensor(request, contract.IMAGE)
    if len(images) != 1:
        # Originals differ in size, so several pictures in one request would have no common shape.
        raise RequestError(f"a request carries one picture, this one {len(images)}; send them one by one")
    return bytes(images[0].tobytes())


def embedded(manifest: ModelManifest, crops: Any) -> Any:
    """Ask the image tower of the same models: a tensor [n, S, S, 3] of the server -> float32 [n, dim]."""
    tower = pb.InferenceRequest(
        model_name=contract.CLIP_IMAGE,
        model_version=contract.serving_version(manifest.digest),
        requested_output_names=[contract.EMBEDDING],
        inputs=[crops],
        preferred_memory=pb.PreferredMemory(pb.TRITONSERVER_MEMORY_CPU, 0),
    )
    reply = tower.exec()
    if reply.has_error():
        raise pb.TritonModelException(f"the image tower failed: {reply.error().message()}")
    # Copied, because the array lies in the reply, which ends here.
    return pb.get_output_tensor_by_name(reply, contract.EMBEDDING).as_numpy().copy()


def seen_answer(found: Detections | ImageInference, vector: Any, object_vectors: Any, size: Any = None) -> Any:
    """What the models see in one picture; vector: float32 [1, dim], object_vectors: float32 [n, dim].

    size: int32 [1, 2] where the response is that of the whole pipeline, None where it is that of `box_embedder`.
    """
    tensors = {
        contract.IMAGE_EMBEDDING: vector,
        contract.BOXES: found.boxes[None],
        contract.SCORES: found.scores[None],
        contract.CLASS_IDS: found.class_ids[None],
        contract.OBJECT_EMBEDDINGS: object_vectors[None],
    }
    return answer(tensors if size is None else tensors | {contract.IMAGE_SIZE: size})


def answer(tensors: dict[str, Any]) -> Any:
    """A good response."""
    return pb.InferenceResponse([pb.Tensor(name, np.ascontiguousarray(value)) for name, value in tensors.items()])


def refusal(message: str) -> Any:
    """A response that fails this request alone, for good: raising instead would fail its whole dynamic batch."""
    return pb.InferenceResponse(error=pb.TritonError(message, pb.TritonError.INVALID_ARG))


def failure(error: Exception) -> Any:
    """A response by whose fault it is: a refusal, or UNAVAILABLE, which makes callers ask again, here or elsewhere."""
    if isinstance(error, (ImageError, RequestError)):
        return refusal(str(error))
    return pb.InferenceResponse(error=pb.TritonError(str(error), pb.TritonError.UNAVAILABLE))
