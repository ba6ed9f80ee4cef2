"""The graphs that native backends load: tensors of the configs, answers of the python backend to the bit."""

from __future__ import annotations

import dataclasses
import io
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper
from PIL import Image

from models.manifest import ModelManifest, load_manifest
from models.photos import photos
from models.preprocessing import normalise
from triton_repo.configs import pipeline_models
from triton_repo.model_config import Model, TensorSpec
from triton_repo.serving_graph import PixelInput, ServingGraphError, pixel_input, serving_graph
from triton_repo.serving_settings import ServingSettings
from triton_repo.sessions import Detector, ImageTower, TextTower
from triton_repo.steps import ImageSteps

NETWORKS = ("detector", "clip_image", "clip_text")
OPENAI = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
KINDS = {"UINT8": "uint8", "INT32": "int32", "INT64": "int64", "FP32": "float"}


@pytest.fixture(scope="module")
def manifest() -> ModelManifest:
    """The committed models, fed as others may be: BGR in 0..255, another mean and std."""
    tiny = load_manifest()
    return dataclasses.replace(
        tiny,
        clip=dataclasses.replace(tiny.clip, mean=OPENAI[0], std=OPENAI[1]),
        detector=dataclasses.replace(tiny.detector, colour_order="bgr", value_range=(-1.0, 1.0)),
    )


def served(manifest: ModelManifest, name: str) -> Model:
    models = pipeline_models(manifest, ServingSettings(), "onnxruntime")
    return next(model for model in models if isinstance(model, Model) and model.name == name)


def session(manifest: ModelManifest, name: str) -> ort.InferenceSession:
    clip = manifest.clip
    file = {"detector": manifest.detector.onnx, "clip_image": clip.image_onnx, "clip_text": clip.text_onnx}[name]
    graph = onnx.load(str(manifest.path(file)))
    return opened(serving_graph(graph, served(manifest, name), pixel_input(manifest, name)))


def opened(graph: onnx.ModelProto) -> ort.InferenceSession:
    onnx.checker.check_model(graph, full_check=True)
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1  # as in the python backend: threads may change the order of sums
    return ort.InferenceSession(graph.SerializeToString(), options, providers=["CPUExecutionProvider"])


def pixels_only(side: int) -> onnx.ModelProto:
    """A graph whose output is its input."""
    shape = ["n", 3, side, side]
    graph = helper.make_graph(
        [helper.make_node("Identity", ["images"], ["embeddings"])],
        "pixels",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("embeddings", TensorProto.FLOAT, shape)],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


@pytest.mark.parametrize("bgr", [False, True])
@pytest.mark.parametrize("value_range", [(0.0, 1.0), (0.0, 255.0), (-1.0, 1.0)])
@pytest.mark.parametrize(("mean", "std"), [((0.0,) * 3, (1.0,) * 3), OPENAI])
def test_pixels_are_prepared_inside_the_graph_as_outside_to_the_bit(
    bgr: bool, value_range: tuple[float, float], mean: Any, std: Any
) -> None:
    side = 16
    model = Model(
        "clip_image",
        (TensorSpec("crops", "UINT8", (side, side, 3)),),
        (TensorSpec("embedding", "FP32", (3, side, side)),),
        8,
    )
    run = opened(serving_graph(pixels_only(side), model, PixelInput(mean, std, value_range, bgr)))
    pixels = np.random.default_rng(1).integers(0, 256, (2, side, side, 3), np.uint8)
    (found,) = run.run(["embedding"], {"crops": pixels})
    assert np.array_equal(found, normalise(pixels, mean, std, value_range, bgr=bgr))


def test_pixels_are_prepared_as_the_manifest_says(manifest: ModelManifest) -> None:
    assert pixel_input(manifest, "clip_image") == PixelInput(*OPENAI)
    assert pixel_input(manifest, "detector") == PixelInput(value_range=(-1.0, 1.0), bgr=True)
    assert pixel_input(manifest, "clip_text") is None


@pytest.mark.parametrize("name", NETWORKS)
def test_inputs_and_outputs_are_those_of_the_config(manifest: ModelManifest, name: str) -> None:
    run, model = session(manifest, name), served(manifest, name)
    for found, specs in ((run.get_inputs(), model.inputs), (run.get_outputs(), model.outputs)):
        assert [(t.name, t.type, t.shape) for t in found] == [
            (spec.name, f"tensor({KINDS[spec.dtype]})", ["batch", *spec.dims]) for spec in specs
        ]


def test_the_detector_finds_what_the_python_backend_finds_to_the_bit() -> None:
    tiny = load_manifest()
    steps = ImageSteps(tiny)
    pictures = [steps.prepare(photo.jpeg).letterboxed for photo in photos(3, 11, [(800, 600)])]
    expected = Detector(tiny)(pictures)
    assert expected[0].min() > 0
    outputs = ["num_dets", "det_boxes", "det_scores", "det_classes"]
    for row, picture in enumerate(pictures):
        found = session(tiny, "detector").run(outputs, {"letterboxed": picture[None]})
        for name, one, other in zip(outputs, found, expected, strict=True):
            assert np.array_equal(one[0], other[row]), name


def test_the_towers_give_what_the_python_backend_gives_to_the_bit(manifest: ModelManifest) -> None:
    side = manifest.clip.image_size
    crops = np.stack([_thumbnail(photo.jpeg, side) for photo in photos(5, 12, [(640, 480)])])
    (found,) = session(manifest, "clip_image").run(["embedding"], {"crops": crops})
    assert np.array_equal(found, ImageTower(manifest)(crops))
    tokens = np.random.default_rng(2).integers(1, 40_000, (3, manifest.clip.context_length))
    (found,) = session(manifest, "clip_text").run(["embedding"], {"tokens": tokens})
    assert np.array_equal(found, TextTower(manifest)(tokens))


def test_a_graph_with_other_tensors_is_refused_by_name(manifest: ModelManifest) -> None:
    graph = pixels_only(16)
    graph.graph.output[0].name = "features"
    with pytest.raises(ServingGraphError, match=r"clip_image.*features.*embeddings"):
        serving_graph(graph, served(manifest, "clip_image"), PixelInput())


def _thumbnail(jpeg: bytes, side: int) -> Any:
    return np.asarray(Image.open(io.BytesIO(jpeg)).convert("RGB").resize((side, side)))
