"""What Triton's python backend runs in the profile `ensemble`: the pipeline of a GPU in steps, each in own processes.

Pictures go from step to step in the memory of the GPU; only detections and vectors come to the host. What a step
answers with is done before it answers: the server hands it on without looking at the CUDA stream of the step.
"""

from __future__ import annotations

import functools
import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import triton_python_backend_utils as pb  # exists only inside a Triton stub
from PIL import Image
from torch import Tensor
from torch.utils.dlpack import to_dlpack

from models.decoding import ImageError
from triton_repo import contract
from triton_repo.contract import StepTensors
from triton_repo.dali_inputs import dali_picture
from triton_repo.gpu.boxes import detections_of
from triton_repo.gpu.crops import Cropper
from triton_repo.gpu.decoding import Decoder, Views
from triton_repo.gpu.networks import Detector, ImageTower, unpacked
from triton_repo.gpu.streams import Stream, device_of
from triton_repo.gpu_settings import GpuSettings
from triton_repo.serving import RequestError, ServedModel, answer, embedded, failure, one_picture, seen_answer, tensor
from triton_repo.serving_gpu import end_process
from triton_repo.steps import Detections


class GpuStep(ServedModel):
    """One step: its batches run on a stream of their own, in halves where memory does not suffice."""

    settings: GpuSettings
    on: torch.device
    stream: Stream

    def load(self) -> None:
        """What the instance needs, run once, so that nothing is built or allocated for the first request."""
        raise NotImplementedError

    def answers(self, requests: Sequence[Any]) -> list[Any]:
        """One response for each request; every tensor of it is done. May raise `torch.OutOfMemoryError`."""
        raise NotImplementedError

    def start(self) -> None:
        self.settings = GpuSettings.from_json(self.parameters["gpu"])
        self.on = device_of(self.settings, self.device)
        self.stream = Stream(self.on)
        with self.stream.entered():
            self.load()

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        try:
            with self.stream.entered():
                return self._in_parts(requests)
        except Exception as error:
            if self._is_broken():
                end_process(error)
            raise

    def given(self, request: Any, name: str) -> Tensor:
        """An input [1, ...] on the device, not copied unless the server's own pool was full and it lies on the host."""
        return torch.from_dlpack(pb.get_input_tensor_by_name(request, name).to_dlpack()).to(self.on)

    def progress(self, line: str) -> None:
        """For the log."""
        print(line, flush=True)

    def _in_parts(self, requests: Sequence[Any]) -> list[Any]:
        try:
            return self.answers(requests)
        except torch.OutOfMemoryError as error:
            torch.cuda.empty_cache()
            if len(requests) == 1:
                return [failure(error)]
        middle = len(requests) // 2
        return [*self._in_parts(requests[:middle]), *self._in_parts(requests[middle:])]

    def _is_broken(self) -> bool:
        """Whether the CUDA context is lost: then every call fails from now on."""
        if self.on.type != "cuda":
            return False
        try:
            torch.cuda.synchronize(self.on)
        except RuntimeError:
            return True
        return False


@dataclass(frozen=True, eq=False)
class _Picture:
    ready: bytes
    pixels: int
    reply: Callable[[Any], None]


class GpuPreprocessModel(GpuStep):
    """`preprocess`: encoded bytes to letterbox, global view and capped original on the GPU."""

    def load(self) -> None:
        settings = self.settings
        self._max_pixels = int(self.parameters["max_pixels"])
        self._decoder: Decoder[_Picture] = Decoder(
            self.manifest,
            self.on,
            settings.batch,
            # Another instance works while this one waits for DALI.
            ahead=1,
            threads=settings.dali_threads,
            refused=lambda picture, error: picture.reply(failure(error)),
        )
        sample, pixels = dali_picture(_sample())
        self._decode([_Picture(sample, pixels, lambda _: None)] * settings.batch)

    def answers(self, requests: Sequence[Any]) -> list[Any]:
        replies: dict[int, Any] = {}
        pictures = []
        for place, request in enumerate(requests):
            try:
                ready, pixels = dali_picture(one_picture(request), self._max_pixels)
            except (ImageError, RequestError) as error:
                replies[place] = failure(error)
            else:
                pictures.append(_Picture(ready, pixels, functools.partial(replies.__setitem__, place)))
        self._decode(pictures)
        return [replies[place] for place in range(len(requests))]

    def _decode(self, pictures: Sequence[_Picture]) -> None:
        for batch in _batches(pictures, self.settings.batch_pixels):
            self._decoder.feed(batch)
        while len(self._decoder):
            if taken := self._decoder.take():
                self._reply(*taken)
        self.stream.mark().wait()

    @staticmethod
    def _reply(pictures: Sequence[_Picture], views: Views) -> None:
        for row, picture in enumerate(pictures):
            tensors = {
                StepTensors.LETTERBOXED: views.letterboxed[row : row + 1],
                StepTensors.CENTRE: views.centre[row : row + 1],
                StepTensors.ORIGINAL: views.originals[row][None],
            }
            size = pb.Tensor(contract.IMAGE_SIZE, views.sizes[row : row + 1])
            picture.reply(pb.InferenceResponse([*(_shared(name, value) for name, value in tensors.items()), size]))


class GpuDetectorModel(GpuStep):
    """`detector`: letterboxed pictures to rows, which come to the host in one copy."""

    def load(self) -> None:
        side, settings = self.manifest.detector.input_size, self.settings
        self._detector = Detector(self.manifest, self.on, settings, self.progress)
        self._pictures = torch.empty(settings.batch, side, side, 3, dtype=torch.uint8, device=self.on)

    def answers(self, requests: Sequence[Any]) -> list[Any]:
        pictures = self._pictures[: len(requests)]
        torch.stack([self.given(request, StepTensors.LETTERBOXED)[0] for request in requests], out=pictures)
        self._detector.start(pictures)
        self.stream.mark().wait()
        packed = self._detector.packed(len(requests))
        return [answer({StepTensors.DETECTIONS: packed[row : row + 1]}) for row in range(len(requests))]


class GpuBoxEmbedderModel(GpuStep):
    """`box_embedder`: boxes back to original pixels, crops of a whole batch in one launch, one call to the tower."""

    def load(self) -> None:
        most = self.settings.batch * self.manifest.detector.max_detections
        self._cropper = Cropper(self.manifest, self.on, self.settings.batch, most)
        box = Detections(np.array([[8, 8, 56, 56]], np.float32), np.ones(1, np.float32), np.zeros(1, np.int32))
        original = torch.zeros(64, 64, 3, dtype=torch.uint8, device=self.on)
        self._cropper([original], np.array([[64, 64]], np.int32), [box], self._empty(1))
        self.stream.mark().wait()

    def answers(self, requests: Sequence[Any]) -> list[Any]:
        count = len(requests)
        centres = [self.given(request, StepTensors.CENTRE)[0] for request in requests]
        originals = [self.given(request, StepTensors.ORIGINAL)[0] for request in requests]
        sizes = np.concatenate([tensor(request, contract.IMAGE_SIZE) for request in requests])
        packed = np.concatenate([tensor(request, StepTensors.DETECTIONS) for request in requests])
        capped = np.array([(original.shape[1], original.shape[0]) for original in originals])
        found = detections_of(self.manifest, unpacked(packed), capped, sizes)
        crops = self._empty(count + sum(len(detections.boxes) for detections in found))
        torch.stack(centres, out=crops[:count])
        self._cropper(originals, sizes, found, crops[count:])
        self.stream.mark().wait()
        # One call, unless there are more crops than the tower takes at once.
        parts = crops.split(self.settings.crops)
        vectors = np.concatenate([embedded(self.manifest, _shared(contract.CROPS, part)) for part in parts])
        ends = count + np.cumsum([len(detections.boxes) for detections in found])
        objects = np.split(vectors[count:], ends[:-1] - count)
        return [seen_answer(*seen) for seen in zip(found, vectors[:count, None], objects, strict=True)]

    def _empty(self, crops: int) -> Tensor:
        side = self.manifest.clip.image_size
        return torch.empty(crops, side, side, 3, dtype=torch.uint8, device=self.on)


class GpuImageModel(GpuStep):
    """`clip_image`: crops to vectors; a request brings those of a whole batch, so each runs by itself."""

    def load(self) -> None:
        self._tower = ImageTower(self.manifest, self.on, self.settings, self.progress)
        self._vectors = torch.empty(self.settings.crops, self.manifest.clip.dim, pin_memory=self.on.type == "cuda")

    def answers(self, requests: Sequence[Any]) -> list[Any]:
        crops = [self.given(request, contract.CROPS) for request in requests]
        vectors = self._vectors[: sum(map(len, crops))].split([len(part) for part in crops])
        for part, target in zip(crops, vectors, strict=True):
            self._tower.start(part, target)
        self.stream.mark().wait()
        return [answer({contract.EMBEDDING: part.numpy()}) for part in vectors]


def _shared(name: str, value: Tensor) -> Any:
    """A tensor for the server, not copied here. From a capsule: given the tensor itself, Triton would wait for each."""
    return pb.Tensor.from_dlpack(name, to_dlpack(value))


def _batches(pictures: Sequence[_Picture], most_pixels: int) -> Iterator[list[_Picture]]:
    """Runs of pictures that are decoded together."""
    batch: list[_Picture] = []
    pixels = 0
    for picture in pictures:
        if batch and pixels + picture.pixels > most_pixels:
            yield batch
            batch, pixels = [], 0
        batch.append(picture)
        pixels += picture.pixels
    if batch:
        yield batch


def _sample() -> bytes:
    """A JPEG as large as most that will come, so that DALI's buffers are."""
    file = io.BytesIO()
    Image.linear_gradient("L").resize((1920, 1080)).convert("RGB").save(file, "JPEG")
    return file.getvalue()
