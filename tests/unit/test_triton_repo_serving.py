"""What the Python models ask of Triton and refuse, with a stand-in for the module that only Triton has."""

from __future__ import annotations

import hashlib
import json
import os
import sys
import types
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from models.manifest import ModelManifest, load_manifest
from tests.pictures import encoded, photo, truncated_jpeg
from triton_repo.contract import refused_item_code, serving_version
from triton_repo.dali_inputs import dali_ready


@dataclass
class Tensor:
    name: str
    value: Any

    def as_numpy(self) -> Any:
        return self.value


@dataclass
class Response:
    tensors: list[Tensor] = field(default_factory=list)
    error: Any = None

    def __getitem__(self, name: str) -> Any:
        return next(tensor.value for tensor in self.tensors if tensor.name == name)

    def has_error(self) -> bool:
        return self.error is not None


class Tower:
    """Answers calls to `clip_image`: the vector of a crop is its mean, twice."""

    def __init__(self) -> None:
        self.calls: list[dict[str, Any]] = []
        self.failing = False

    def request(self, **call: Any) -> types.SimpleNamespace:
        self.calls.append(call)
        rows = call["inputs"][0].value.reshape(len(call["inputs"][0].value), -1).mean(axis=1)
        failure = types.SimpleNamespace(message=lambda: "out of memory")
        reply = Response(
            [Tensor("embedding", np.stack([rows, rows], axis=1).astype(np.float32))],
            error=(lambda: failure) if self.failing else None,
        )
        return types.SimpleNamespace(exec=lambda: reply)


@pytest.fixture
def tower() -> Tower:
    return Tower()


@pytest.fixture
def serving(tower: Tower) -> Iterator[Any]:
    class TritonError(Exception):
        INVALID_ARG = "invalid argument"

    utils = types.ModuleType("triton_python_backend_utils")
    vars(utils).update(
        Tensor=Tensor,
        InferenceResponse=Response,
        InferenceRequest=tower.request,
        TritonError=TritonError,
        TritonModelException=RuntimeError,
        PreferredMemory=lambda *_: None,
        TRITONSERVER_MEMORY_CPU=0,
        get_input_tensor_by_name=lambda request, name: Tensor(name, request[name]),
        get_output_tensor_by_name=lambda reply, name: Tensor(name, reply[name]),
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, utils.__name__, utils)
        patch.delitem(sys.modules, "triton_repo.serving", raising=False)
        import triton_repo.serving

        yield triton_repo.serving
    sys.modules.pop("triton_repo.serving", None)


@pytest.fixture(scope="module")
def manifest() -> ModelManifest:
    return load_manifest()


def started(model: Any, manifest: ModelManifest, **parameters: Any) -> Any:
    """As Triton starts it: from a version folder that holds the manifest."""
    config = {"parameters": {"sightlog": {"string_value": json.dumps(parameters)}}}
    folder = manifest.folder
    model.initialize(
        {
            "model_config": json.dumps(config),
            "model_repository": str(folder.parent),
            "model_version": folder.name,
            "model_instance_device_id": "0",
        }
    )
    return model


def found_in(side: int, objects: int, shade: int) -> dict[str, Any]:
    """Inputs of `box_embedder`: one grey picture with that many boxes."""
    boxes = np.zeros((1, 100, 4), np.float32)
    boxes[0, :objects] = [200, 200, 400, 400]
    return {
        "centre": np.full((1, side, side, 3), shade, np.uint8),
        "original": np.full((1, 640, 640, 3), shade, np.uint8),
        "image_size": np.array([[640, 640]], np.int32),
        "num_dets": np.array([[objects]], np.int32),
        "det_boxes": boxes,
        "det_scores": np.linspace(1, 0.5, 100, dtype=np.float32)[None],
        "det_classes": np.zeros((1, 100), np.int32),
    }


def test_crops_go_to_the_tower_of_the_same_models_never_more_than_it_takes(
    serving: Any, tower: Tower, manifest: ModelManifest
) -> None:
    embedder = started(serving.BoxEmbedderModel(), manifest, max_crops=4)
    side = manifest.clip.image_size
    answers = embedder.execute([found_in(side, 2, 10), found_in(side, 0, 20), found_in(side, 5, 30)])
    assert [len(call["inputs"][0].value) for call in tower.calls] == [4, 4, 2]
    assert {call["model_name"] for call in tower.calls} == {"clip_image"}
    assert {call["model_version"] for call in tower.calls} == {serving_version(manifest.digest)}
    for answer, shade, objects in zip(answers, (10, 20, 30), (2, 0, 5), strict=True):
        assert answer["image_embedding"].tolist() == [[shade, shade]]
        assert answer["object_embeddings"].tolist() == [[[shade, shade]] * objects]
        assert answer["boxes"].shape == (1, objects, 4)


def test_a_failure_of_the_tower_fails_the_batch_with_its_words(
    serving: Any, tower: Tower, manifest: ModelManifest
) -> None:
    tower.failing = True
    embedder = started(serving.BoxEmbedderModel(), manifest, max_crops=4)
    with pytest.raises(RuntimeError, match="image tower failed: out of memory"):
        embedder.execute([found_in(manifest.clip.image_size, 1, 10)])


@pytest.mark.parametrize("name", ["PreprocessModel", "DaliReadyModel"])
def test_a_bad_picture_is_refused_alone(serving: Any, manifest: ModelManifest, name: str) -> None:
    model = started(getattr(serving, name)(), manifest, max_pixels=10_000_000)
    good = encoded(photo("coffee.png").convert("RGB"), "JPEG")
    files = [good, truncated_jpeg(), b"", b"no picture", good]
    answers = model.execute([{"image": np.frombuffer(file, np.uint8)[None]} for file in files])
    codes = [None if answer.error is None else refused_item_code(str(answer.error.args[0])) for answer in answers]
    assert [code and code[0] for code in codes] == [None, "undecodable", "empty", "unsupported_format", None]
    assert all(answer.error.args[1] == "invalid argument" for answer in answers if answer.error)


def test_a_request_with_two_pictures_is_refused(serving: Any, manifest: ModelManifest) -> None:
    model = started(serving.PreprocessModel(), manifest, max_pixels=10_000_000)
    (answer,) = model.execute([{"image": np.zeros((2, 9), np.uint8)}])
    assert "one picture" in str(answer.error)


def test_dali_gets_the_bytes_that_were_made_ready_for_it(serving: Any, manifest: ModelManifest) -> None:
    model = started(serving.DaliReadyModel(), manifest, max_pixels=100_000_000)
    for file in (encoded(photo("coffee.png").convert("RGB"), kind) for kind in ("JPEG", "PNG", "WEBP")):
        (answer,) = model.execute([{"image": np.frombuffer(file, np.uint8)[None]}])
        assert answer["dali_image"].dtype == np.uint8
        assert answer["dali_image"].shape[0] == 1
        assert answer["dali_image"][0].tobytes() == dali_ready(file, 100_000_000)


def test_only_a_file_that_a_fault_test_names_ends_the_process_that_decodes(
    serving: Any, manifest: ModelManifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended: list[bool] = []
    monkeypatch.setattr(os, "abort", lambda: ended.append(True))
    killer, good = encoded(photo("coffee.png").convert("RGB"), "JPEG"), encoded(photo("coffee.png"), "PNG")
    model = started(
        serving.PreprocessModel(), manifest, max_pixels=10**8, crash_on=[hashlib.sha256(killer).hexdigest()]
    )
    model.tensors(good)
    assert ended == []
    model.tensors(killer)
    assert ended == [True]
    model = started(serving.PreprocessModel(), manifest, max_pixels=10**8)
    model.tensors(killer)
    assert ended == [True], "nothing ends it by default"
