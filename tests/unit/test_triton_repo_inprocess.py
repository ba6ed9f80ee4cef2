"""The pipeline without Triton: what comes out, and that each of its steps can be swapped."""

from __future__ import annotations

import io
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from PIL import Image

from models.manifest import load_manifest
from models.preprocessing import map_boxes, normalise, plan_letterbox, square_crop
from models.tokenizer import EOT, ClipTokenizer
from tests.pictures import encoded, photo
from tests.scripted_detector import BOXES, CLASS_IDS, SCORES, scripted_manifest
from triton_repo.contract import ImageInference
from triton_repo.inprocess import InProcessPipeline
from triton_repo.steps import StepFunctions


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return scripted_manifest(tmp_path_factory.mktemp("scripted"))


@pytest.fixture(scope="module")
def pipeline(manifest: Any) -> InProcessPipeline:
    return InProcessPipeline(manifest)


@pytest.fixture(scope="module")
def bright() -> bytes:
    return encoded(photo("coffee.png").convert("RGB"), "PNG")


@pytest.fixture(scope="module")
def seen(pipeline: InProcessPipeline, bright: bytes) -> ImageInference:
    return pipeline.infer(bright)


def test_objects_are_sorted_by_score_and_lie_in_original_pixels(seen: ImageInference) -> None:
    order = [1, 2, 0]
    plan = plan_letterbox(600, 400, 640)
    assert (seen.width, seen.height) == (600, 400)
    assert seen.scores.tolist() == SCORES[order].tolist()
    assert seen.class_ids.tolist() == CLASS_IDS[order].tolist()
    assert seen.boxes == pytest.approx(map_boxes(BOXES, plan, (600, 400))[order])


def test_vectors_have_length_one_and_belong_to_their_rows(
    seen: ImageInference, pipeline: InProcessPipeline, bright: bytes
) -> None:
    vectors = np.vstack([seen.embedding, seen.object_embeddings])
    assert vectors.shape == (4, 512)
    assert vectors.dtype == np.float32
    assert np.linalg.norm(vectors, axis=1) == pytest.approx(np.ones(4), abs=1e-4)
    pixels = np.asarray(Image.open(io.BytesIO(bright)))
    for box, vector in zip(seen.boxes, seen.object_embeddings, strict=True):
        crop = square_crop(pixels, box, 128, margin=0.12, pad_value=114)
        assert pipeline.infer(encoded(Image.fromarray(crop), "PNG")).embedding == pytest.approx(vector, abs=1e-4)


def test_a_picture_without_objects_has_empty_arrays_of_the_right_shape(pipeline: InProcessPipeline) -> None:
    dark = pipeline.infer(encoded(Image.new("RGB", (40, 40)), "PNG"))
    assert (dark.boxes.shape, dark.scores.shape, dark.class_ids.shape) == ((0, 4), (0,), (0,))
    assert dark.object_embeddings.shape == (0, 512)


def test_a_batch_gives_what_its_pictures_give_alone(
    pipeline: InProcessPipeline, bright: bytes, seen: ImageInference
) -> None:
    dark = encoded(Image.new("RGB", (40, 90)), "PNG")
    batch = pipeline.infer_batch([dark, bright, dark])
    assert [len(result.boxes) for result in batch] == [0, 3, 0]
    assert batch[1].object_embeddings == pytest.approx(seen.object_embeddings, abs=1e-5)
    assert batch[1].embedding == pytest.approx(seen.embedding, abs=1e-5)


def test_a_box_on_the_letterbox_bars_alone_is_dropped(pipeline: InProcessPipeline) -> None:
    wide = pipeline.infer(encoded(Image.new("RGB", (640, 20), "white"), "PNG"))
    assert len(wide.boxes) == 2  # the picture covers rows 310 to 330, the first box ends at 240


MISTAKES = {
    "axes swapped": {"map_boxes": lambda *a: map_boxes(*a)[:, [1, 0, 3, 2]]},
    "no letterbox offset": {
        "map_boxes": lambda boxes, plan, size: map_boxes(boxes + np.tile(plan.offset, 2), plan, size)
    },
    "bgr": {"normalise_clip": lambda *a, **k: normalise(*a, **k, bgr=True)},
    "0..255": {"normalise_clip": lambda images, mean, std, out: normalise(images, mean, std, (0, 255), out=out)},
    "blurred crops": {"square_crop": lambda pixels, *a, **k: square_crop(_blurred(pixels), *a, **k)},
}


@pytest.mark.parametrize("mistake", sorted(MISTAKES))
def test_a_swapped_step_changes_the_result(manifest: Any, bright: bytes, seen: ImageInference, mistake: str) -> None:
    wrong = InProcessPipeline(manifest, StepFunctions(**MISTAKES[mistake])).infer(bright)
    changed = np.einsum("nd,nd->n", wrong.object_embeddings, seen.object_embeddings)
    assert changed.min() < 0.9999


def test_swapped_tokens_change_the_query(manifest: Any, pipeline: InProcessPipeline) -> None:
    tokens = ClipTokenizer().encode(["a striped red circle"])
    without_eot = InProcessPipeline(manifest, StepFunctions(tokens=lambda t: np.where(t == EOT, 0, t)))
    right, wrong = pipeline.embed_text(tokens)[0], without_eot.embed_text(tokens)[0]
    assert np.linalg.norm(right) == pytest.approx(1, abs=1e-4)
    assert right @ wrong < 0.9999


def test_the_committed_models_run() -> None:
    result = InProcessPipeline(load_manifest()).infer(encoded(photo("astronaut.png").convert("RGB"), "JPEG"))
    assert result.embedding.shape == (load_manifest().clip.dim,)


def test_serving_needs_neither_torch_nor_a_stream_processor() -> None:
    program = "import sys, triton_repo.inprocess; print({'torch', 'faust', 'onnx', 'tritonclient'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def _blurred(pixels: Any) -> Any:
    height, width = pixels.shape[:2]
    small = Image.fromarray(pixels).resize((width // 8, height // 8))
    return np.asarray(small.resize((width, height)))
