"""Exported pairs give the vectors of open_clip's models, and their specs say how to feed them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import open_clip
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from timm.utils import reparameterize_model

from models.cli import models
from models.export import clip, towers
from models.export.architectures import picture_input
from models.export.clip import ClipRequest, export
from models.export.errors import ExportError, ParityError
from models.export.parity import FLOOR, Probe, check_parity, original_vectors, pictures
from models.manifest import ClipSpec
from models.scenes import generate_scene
from models.store import ModelStore, Part, StoreError
from models.tokenizer import ClipTokenizer
from tests.export.texts import texts

ROOT = Path(__file__).parents[2]
SMALL, LARGE = "MobileCLIP2-S0", "MobileCLIP2-S3"
OPENAI_MEAN, OPENAI_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
BATCHES = (1, 2, 5)

FloatArray = npt.NDArray[np.float32]
Checkpoints = Callable[[str], Path]


def run(part: Part, tower: str, batch: npt.NDArray[Any]) -> FloatArray:
    file, name = {"image": ("clip_image.onnx", "images"), "text": ("clip_text.onnx", "tokens")}[tower]
    session = onnxruntime.InferenceSession(str(part.folder / file), providers=["CPUExecutionProvider"])
    found: FloatArray = session.run(["embeddings"], {name: batch})[0]
    return found


def cosines(a: FloatArray, b: FloatArray) -> FloatArray:
    """Of rows that belong together."""
    lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return np.asarray((a * b).sum(1) / lengths, np.float32)


def spec_of(part: Part) -> ClipSpec:
    assert isinstance(part.spec, ClipSpec)
    return part.spec


def unseen(part: Part) -> tuple[FloatArray, npt.NDArray[np.int64]]:
    """Images and tokens that neither calibration nor the export's own comparison had."""
    spec = spec_of(part)
    picture = picture_input(part.source["architecture"], "dfndr2b", {})
    return pictures(4, 1, spec.image_size, picture, seed=77), ClipTokenizer().encode(texts(27, seed=5)[16:21])


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModelStore]:
    store = ModelStore(tmp_path_factory.mktemp("store"))
    yield store
    shutil.rmtree(store.folder)


@pytest.fixture(scope="module")
def small(store: ModelStore, checkpoint_of: Checkpoints) -> Part:
    """Exported by the command line."""
    arguments = ["export-clip", SMALL.lower(), "--checkpoint", str(checkpoint_of(SMALL))]
    result = CliRunner().invoke(models, arguments, env={"SIGHTLOG_MODELS_DIR": str(store.folder)})
    assert result.exit_code == 0, result.output
    for shown in ("load weights", "reparameterise", "export the image tower", "export the text tower", "compare"):
        assert shown in result.output
    assert f"sightlog models use {SMALL}" in result.output
    return store.part("clip", SMALL)


@pytest.fixture(scope="module")
def large(store: ModelStore, checkpoint_of: Checkpoints) -> Part:
    export(ClipRequest(LARGE, checkpoint=checkpoint_of(LARGE)), store)
    return store.part("clip", LARGE)


@pytest.fixture(scope="module")
def half(store: ModelStore, checkpoint_of: Checkpoints) -> Part:
    export(ClipRequest(SMALL, checkpoint=checkpoint_of(SMALL), precision="fp16", name="half"), store)
    return store.part("clip", "half")


@pytest.fixture(scope="module", params=["small", "large"])
def part(request: pytest.FixtureRequest) -> Part:
    found: Part = request.getfixturevalue(request.param)
    return found


def test_the_spec_says_the_true_dimension_and_how_pictures_are_prepared(small: Part, large: Part) -> None:
    expected = ClipSpec(
        name=SMALL,
        image_onnx="clip_image.onnx",
        text_onnx="clip_text.onnx",
        dim=512,
        image_size=256,
        mean=(0.0, 0.0, 0.0),
        std=(1.0, 1.0, 1.0),
        interpolation="bilinear",
        tokenizer="clip-bpe",
        context_length=77,
        pad_id=0,
    )
    assert small.spec == expected
    assert large.spec == replace(expected, name=LARGE, dim=768, mean=OPENAI_MEAN, std=OPENAI_STD)


def test_the_part_says_where_it_comes_from_and_how_equal_it_is(part: Part) -> None:
    assert set(part.weights) == {"clip_image.onnx", "clip_text.onnx"}
    assert part.source["architecture"] == part.name
    assert part.source["weights"] == f"{part.name}.safetensors"
    assert len(part.source["weights_sha256"]) == 64
    assert part.source["precision"] == "fp32"
    assert min(float(part.source["image_cosine"]), float(part.source["text_cosine"])) >= FLOOR["fp32"]


def test_vectors_of_unseen_inputs_equal_those_of_the_original_at_any_batch_size(
    part: Part, checkpoint_of: Checkpoints
) -> None:
    model = open_clip.create_model(part.name, pretrained=str(checkpoint_of(part.name))).eval()
    images, tokens = unseen(part)
    with torch.inference_mode():
        original = model.encode_image(torch.from_numpy(images)), model.encode_text(torch.from_numpy(tokens))
    for tower, batch, expected in (("image", images, original[0]), ("text", tokens, original[1])):
        for size in BATCHES:
            found = run(part, tower, batch[:size])
            assert found.shape == (size, spec_of(part).dim)
            assert cosines(found, expected.numpy()[:size]).min() >= FLOOR["fp32"]
            np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)


def test_vectors_tell_inputs_apart_so_that_equality_means_something(part: Part) -> None:
    images, tokens = unseen(part)
    for found in (run(part, "image", images), run(part, "text", tokens)):
        others = (found @ found.T)[~np.eye(len(found), dtype=bool)]
        assert others.max() < 0.96


def test_the_image_tower_is_reparameterised(small: Part) -> None:
    def convolutions(model: torch.nn.Module) -> int:
        return sum(isinstance(module, torch.nn.Conv2d) for module in model.modules())

    original = open_clip.create_model(SMALL).visual
    graph = onnx.load(str(small.folder / "clip_image.onnx")).graph
    found = sum(node.op_type == "Conv" for node in graph.node)
    assert found == convolutions(reparameterize_model(original)) < convolutions(original)


def test_half_precision_halves_the_files_and_keeps_the_vectors(small: Part, half: Part) -> None:
    assert 0.49 < half.size_bytes / small.size_bytes < 0.52
    assert half.source["precision"] == "fp16"
    images, tokens = unseen(small)
    for found, full in (
        (run(half, "image", images), run(small, "image", images)),
        (run(half, "text", tokens), run(small, "text", tokens)),
    ):
        assert found.dtype == np.float32
        assert cosines(found, full).min() >= FLOOR["fp16"]
        assert not np.array_equal(found, full)


def test_open_clip_itself_prepares_pictures_wrongly_for_a_local_file_and_the_export_does_not(
    small: Part, checkpoint_of: Checkpoints
) -> None:
    path = str(checkpoint_of(SMALL))
    model, _, wrong = open_clip.create_model_and_transforms(SMALL, pretrained=path)
    preprocess = model.visual.preprocess_cfg
    assert (preprocess["interpolation"], preprocess["mean"]) == ("bicubic", OPENAI_MEAN)
    spec = spec_of(small)
    given = {"image_mean": spec.mean, "image_std": spec.std, "image_interpolation": spec.interpolation}
    _, _, right = open_clip.create_model_and_transforms(SMALL, pretrained=path, **given)
    scene = Image.fromarray(generate_scene(np.random.default_rng(3), 400, 300, 4).image)
    vectors = [run(small, "image", transform(scene)[None].numpy()) for transform in (wrong, right)]
    assert cosines(*vectors)[0] < 0.9


def test_weights_of_the_hub_by_their_tag_give_the_same_part_as_the_file(
    small: Part, checkpoint_of: Checkpoints, tmp_path: Path
) -> None:
    """The real client of the hub, in a process of its own since it reads its endpoint once, and a hub of ours."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Hub, checkpoint_of(SMALL)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        environment = {
            **os.environ,
            "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}",
            "HF_HOME": str(tmp_path / "hub"),
            "SIGHTLOG_MODELS_DIR": str(tmp_path / "store"),
        }
        command = [sys.executable, "-m", "sightlog", "models", "export-clip", SMALL, "--pretrained", "DFNDR2B"]
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    finally:
        server.shutdown()
        server.server_close()
    assert done.returncode == 0, done.stderr
    fetched = ModelStore(tmp_path / "store").part("clip", SMALL)
    assert fetched.spec == small.spec
    assert fetched.files == small.files
    assert fetched.source == {**small.source, "weights": "dfndr2b"}


class Hub(BaseHTTPRequestHandler):
    """Has one file, whatever the repository."""

    def __init__(self, file: Path, *arguments: Any) -> None:
        self.file = file
        super().__init__(*arguments)

    def do_HEAD(self) -> None:
        known = self.path.endswith("open_clip_model.safetensors")
        self.send_response(200 if known or self.path == "/" else 404)
        self.send_header("ETag", '"' + "0" * 40 + '"')
        self.send_header("X-Repo-Commit", "1" * 40)
        self.send_header("Content-Length", str(self.file.stat().st_size if known else 0))
        self.end_headers()

    def do_GET(self) -> None:
        self.do_HEAD()
        if self.path.endswith("open_clip_model.safetensors"):
            self.wfile.write(self.file.read_bytes())

    def log_message(self, format: str, *arguments: Any) -> None:
        pass


def test_a_name_that_exists_is_refused_before_anything_is_loaded(small: Part, store: ModelStore) -> None:
    with pytest.raises(StoreError, match="exists already"):
        export(ClipRequest(SMALL, checkpoint=Path("/not/there")), store)


def test_towers_that_differ_from_the_original_are_not_stored(
    small: Part, store: ModelStore, checkpoint_of: Checkpoints, monkeypatch: pytest.MonkeyPatch
) -> None:
    def exported_before(tower: Any, example: Any, name: str, file: Path, precision: str) -> None:
        shutil.copyfile(small.folder / file.name, file)

    def of_other_inputs(model: torch.nn.Module, inputs: Probe) -> tuple[FloatArray, FloatArray]:
        images, texts = original_vectors(model, inputs)
        return images[::-1], texts

    monkeypatch.setattr(clip, "write_tower", exported_before)
    monkeypatch.setattr(clip, "original_vectors", of_other_inputs)
    with pytest.raises(ParityError, match="image tower has a cosine"):
        export(ClipRequest(SMALL, checkpoint=checkpoint_of(SMALL), replace=True), store)
    assert store.part("clip", SMALL).files == small.files


@pytest.mark.parametrize(
    ("images", "texts", "precision", "message"),
    [
        (0.99989, 1.0, "fp32", "image tower .* 0.9999 is needed"),
        (1.0, 0.9989, "fp16", "text tower .* --precision fp32"),
        (float("nan"), 1.0, "fp32", "image tower"),
    ],
)
def test_a_low_cosine_is_an_error(images: float, texts: float, precision: Any, message: str) -> None:
    with pytest.raises(ParityError, match=message):
        check_parity(images, texts, precision)


def test_a_tower_above_the_limit_of_onnx_files_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(towers, "_LARGEST_BYTES", 4_000)
    with pytest.raises(ExportError, match="ONNX files end at 2"):
        towers.write_tower(torch.nn.Linear(32, 32), torch.zeros(2, 32), "images", tmp_path / "a.onnx", "fp32")
