"""The committed tiny models keep the contract of the ONNX files and know what they were taught."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime
import pytest

from models.manifest import load_manifest
from models.photos import QUALITY_SIZES
from models.photos import photos as photos_of
from models.scenes import Kind, generate_scene
from models.tiny.captions import Claim, Seen, caption_for, frame, with_article
from models.tiny.evaluate import FAULTS, Chain, detection_figures, retrieval
from models.tokenizer import EOT, ClipTokenizer

TEXTS = ["a photo of a striped red circle", "something blue", "", "plain white star " * 40]


def session(file: str) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    path = str(load_manifest().path(file))
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


@pytest.fixture(scope="module")
def text_tower() -> onnxruntime.InferenceSession:
    return session("clip_text.onnx")


@pytest.fixture(scope="module")
def image_tower() -> onnxruntime.InferenceSession:
    return session("clip_image.onnx")


@pytest.fixture(scope="module")
def chain() -> Chain:
    return Chain(load_manifest())


def embed(tower: onnxruntime.InferenceSession, values: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    result: npt.NDArray[np.float32] = tower.run(["embeddings"], {tower.get_inputs()[0].name: values})[0]
    return result


def test_a_text_has_the_same_vector_alone_and_in_a_batch(text_tower: onnxruntime.InferenceSession) -> None:
    tokens = ClipTokenizer().encode(TEXTS)
    alone = np.concatenate([embed(text_tower, row[None]) for row in tokens])
    np.testing.assert_allclose(embed(text_tower, tokens), alone, atol=1e-5)


def test_what_follows_the_end_token_does_not_matter(text_tower: onnxruntime.InferenceSession) -> None:
    tokens = ClipTokenizer().encode(TEXTS[:2])
    filled = tokens.copy()
    for row in filled:
        row[row.argmax() + 1 :] = 320
    np.testing.assert_allclose(embed(text_tower, filled), embed(text_tower, tokens), atol=1e-5)
    lost = np.where(tokens == EOT, 0, tokens)
    assert (embed(text_tower, lost) * embed(text_tower, tokens)).sum(1).max() < 0.9


def test_embeddings_have_length_one(
    text_tower: onnxruntime.InferenceSession, image_tower: onnxruntime.InferenceSession
) -> None:
    images = np.random.default_rng(0).uniform(0, 1, (3, 3, 128, 128)).astype(np.float32)
    images[1] = 0
    for embeddings in (embed(text_tower, ClipTokenizer().encode(TEXTS)), embed(image_tower, images)):
        assert embeddings.shape[1] == 512
        assert embeddings.dtype == np.float32
        np.testing.assert_allclose(np.linalg.norm(embeddings, axis=1), 1, atol=1e-4)


def test_an_image_has_the_same_vector_alone_and_in_a_batch(image_tower: onnxruntime.InferenceSession) -> None:
    images = np.random.default_rng(0).uniform(0, 1, (4, 3, 128, 128)).astype(np.float32)
    alone = np.concatenate([embed(image_tower, image[None]) for image in images])
    np.testing.assert_allclose(embed(image_tower, images), alone, atol=1e-5)


def test_the_detector_finds_nothing_on_an_empty_scene(chain: Chain) -> None:
    from PIL import Image

    empty = generate_scene(np.random.default_rng(4), 640, 400, 0)
    boxes, scores, classes = chain.detect(Image.fromarray(empty.image))
    assert boxes.shape == (0, 4)
    assert len(scores) == len(classes) == 0


def test_the_whole_chain_finds_objects_by_words_and_a_lost_end_token_shows(chain: Chain) -> None:
    photos = photos_of(8, 11, QUALITY_SIZES)
    gallery = chain.index(photos)
    found = detection_figures(photos, gallery, load_manifest().detector.classes)
    assert found["recall"] >= 0.95
    assert found["precision"] >= 0.95
    assert found["iou"] >= 0.9

    def sentence(kind: Kind) -> str:
        return f"a photo of a {kind.pattern} {kind.colour} {kind.shape}"

    first, mean, _ = retrieval(chain, photos, gallery, sentence)
    assert first >= 0.95
    assert mean >= 0.92
    (lost,) = (fault for fault in FAULTS if fault.eot_lost)
    assert retrieval(chain, photos, gallery, sentence, lost)[0] < 0.5


def test_captions_never_speak_of_a_pattern_that_cannot_be_seen() -> None:
    rng = np.random.default_rng(0)
    hidden = Seen(Claim(0, 0, 1), 10, 10, pattern_visible=False)
    for _ in range(300):
        caption = caption_for(rng, [hidden])
        assert caption.first.pattern == -1
        assert not any(word in caption.text for word in ("strip", "dot", "spot", "plain", "solid", "pattern"))


@pytest.mark.parametrize(
    ("phrase", "expected"),
    [("red circle", "a red circle"), ("orange star", "an orange star"), ("something blue", "something blue")],
)
def test_articles_are_those_that_people_use(phrase: str, expected: str) -> None:
    assert with_article(phrase) == expected
    assert frame("a photo of {a}", phrase) == f"a photo of {expected}"
