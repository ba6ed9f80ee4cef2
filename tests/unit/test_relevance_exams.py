"""Exams know what fits what: from the truth of generated scenes, and from altered copies of any pictures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import orjson
import pytest
from click.testing import CliRunner
from PIL import Image

from models.cli import models
from models.manifest import TINY_FOLDER, load_manifest
from models.photos import STREAM_SIZES, photos
from models.preprocessing import decode_upright
from models.relevance.exam import FITS, OTHER, UNCLEAR, Exam, Exams, calibrate
from models.relevance.fit import CalibrationError
from models.relevance.pictures import picture_exams, read_album
from models.relevance.scenes import scene_exams
from models.relevance.sight import altered, close_up
from models.store import ModelStore
from models.tokenizer import ClipTokenizer
from sightlog.errors import SightlogError
from triton_repo.inprocess import InProcessPipeline

SCENES = 9
PICTURES = 21


def nothing() -> None:
    """A tick that nobody watches."""


@pytest.fixture(scope="module")
def eye() -> InProcessPipeline:
    return InProcessPipeline(load_manifest())


@pytest.fixture(scope="module")
def exams(eye: InProcessPipeline) -> Exams:
    return scene_exams(eye, ClipTokenizer(77), SCENES, 1, ("a photo of {a}",), ("whale", "guitar"), nothing)


def words(exam: Exam, phrase: str) -> int:
    return exam.words.index(phrase)


def test_scenes_ask_every_kind_of_question_of_both_targets(exams: Exams) -> None:
    assert set(exams) == {(k, t) for k in ("text", "image", "object") for t in ("images", "objects")}
    for (_, target), exam in exams.items():
        assert exam.fits.shape == (len(exam.questions), len(exam.documents))
        assert (exam.fits == FITS).any()
        assert len(exam.documents) == len(exam.picture) > (0 if target == "images" else SCENES)
        assert np.allclose(np.linalg.norm(exam.questions, axis=1), 1, atol=1e-3)


def test_words_fit_the_objects_that_they_name_and_no_others(exams: Exams) -> None:
    exam = exams["text", "objects"]
    fits = {phrase: exam.fits[words(exam, phrase)] == FITS for phrase in exam.words}
    for wide, narrow in (("circle", "red circle"), ("red circle", "dotted red circle"), ("something red", "red star")):
        assert not (fits[narrow] & ~fits[wide]).any()
    shapes = np.stack([fits[shape] for shape in ("circle", "square", "triangle", "star", "cross", "ring")])
    assert (shapes.sum(0) == 1).all()
    assert not fits["whale"].any()
    assert not (exam.fits == UNCLEAR).any()
    assert exam.cosines[exam.fits == FITS].min() > exam.cosines[exam.fits == OTHER].mean()


def test_an_image_fits_words_for_what_its_centre_shows_and_is_unclear_for_the_rest_of_it(exams: Exams) -> None:
    of_objects, of_images = exams["text", "objects"], exams["text", "images"]
    assert not [phrase for phrase in of_images.words if "dotted" in phrase]
    for phrase in ("circle", "something red", "blue star"):
        held = set(of_objects.picture[of_objects.fits[words(of_objects, phrase)] == FITS])
        row = of_images.fits[words(of_images, phrase)]
        assert held <= set(np.flatnonzero(row != OTHER))
    assert (of_images.fits == UNCLEAR).any()
    assert (of_images.fits[words(of_images, "whale")] == OTHER).all()


def test_a_picture_fits_its_altered_copy_alone(exams: Exams) -> None:
    assert (exams["image", "images"].fits == np.eye(SCENES)).all()


def test_other_seeds_are_other_scenes(eye: InProcessPipeline, exams: Exams) -> None:
    again, other = (
        scene_exams(eye, ClipTokenizer(77), 2, seed, ("{}",), (), nothing)["image", "images"].documents
        for seed in (1, 2)
    )
    assert np.allclose(again, exams["image", "images"].documents[:2], atol=1e-5)
    assert not np.allclose(other, again, atol=0.1)


def test_boxes_are_followed_into_altered_copies() -> None:
    pixels = np.zeros((300, 400, 3), np.uint8)
    pixels[100:160, 150:250] = 255
    for seed in range(10):
        copy = altered(Image.fromarray(pixels), np.random.default_rng(seed))
        seen = np.asarray(decode_upright(copy.jpeg).pixels)[..., 0] > 100
        rows, columns = np.flatnonzero(seen.any(1)), np.flatnonzero(seen.any(0))
        found = [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
        assert copy.place([150, 100, 250, 160]) == pytest.approx(found, abs=2.5)


def test_a_close_up_holds_its_object_and_little_else() -> None:
    pixels = np.zeros((300, 400, 3), np.uint8)
    pixels[100:160, 150:250] = 255
    for seed in range(10):
        data = close_up(Image.fromarray(pixels), [150, 100, 250, 160], np.random.default_rng(seed))
        seen = np.asarray(decode_upright(data).pixels)[..., 0] > 100
        assert seen.sum() == pytest.approx(6000, rel=0.05)
        assert max(seen.shape) <= 204


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    (folder / "deeper").mkdir()
    for number, photo in enumerate(photos(PICTURES, 31, STREAM_SIZES[-1:])):
        (folder / ("deeper" if number % 2 else ".") / f"{number:02}.jpg").write_bytes(photo.jpeg)
    (folder / "again.jpg").write_bytes((folder / "00.jpg").read_bytes())
    (folder / "notes.txt").write_text("no picture")
    (folder / "half.jpg").write_bytes((folder / "00.jpg").read_bytes()[:5000])
    (folder / "captions.tsv").write_text(
        "".join(f"{path.relative_to(folder).as_posix()}\ta photo of {n}\n" for n, path in enumerate(in_order(folder)))
    )
    return folder


def in_order(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("[0-9]*.jpg"))


def test_an_album_is_every_readable_picture_once(folder: Path) -> None:
    album = read_album(folder, None, 300, 1, nothing)
    assert len(album.files) == len(list(album.pictures)) == PICTURES
    assert album.left_out == 2
    assert album.captions == ()
    assert len(read_album(folder, None, 20, 1, nothing).files) == 20
    assert read_album(folder, None, 20, 1, nothing) == read_album(folder, None, 20, 1, nothing)


def test_captions_go_with_their_pictures(folder: Path) -> None:
    album = read_album(folder, folder / "captions.tsv", 300, 1, nothing)
    assert len(album.captions) == PICTURES
    for number, text in album.captions:
        assert text == f"a photo of {in_order(folder).index(album.files[number])}"


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("00.jpg a circle\n", r"captions\.tsv:1 is not a file name, a tab"),
        ("00.jpg\ta circle\nnone.jpg\ta star\n", r"captions\.tsv:2 names none\.jpg"),
        ("\n\n", "holds no captions"),
        ("00.jpg\ta circle\n", "has 1 different, readable .* with captions"),
    ],
)
def test_captions_that_do_not_belong_are_one_sentence(folder: Path, tmp_path: Path, text: str, complaint: str) -> None:
    (tmp_path / "captions.tsv").write_text(text)
    with pytest.raises(CalibrationError, match=complaint):
        read_album(folder, tmp_path / "captions.tsv", 300, 1, nothing)


def test_a_folder_with_few_pictures_says_how_many_are_needed(tmp_path: Path) -> None:
    with pytest.raises(CalibrationError, match=r"has 0 different.*20 are the least"):
        read_album(tmp_path, None, 300, 1, nothing)


@pytest.fixture(scope="module")
def of_pictures(eye: InProcessPipeline, folder: Path) -> Exams:
    album = read_album(folder, folder / "captions.tsv", 300, 1, nothing)
    return picture_exams(eye, ClipTokenizer(77), album, ("whale",), 1, nothing)


def test_of_any_pictures_the_very_same_object_fits_and_its_neighbours_are_unclear(of_pictures: Exams) -> None:
    for kind in ("object", "image"):
        exam = of_pictures[kind, "objects"]
        assert ((exam.fits == FITS).sum(1) == 1).all()
        for row in exam.fits:
            own = exam.picture[row == FITS][0]
            assert (row[(exam.picture == own) & (row != FITS)] == UNCLEAR).all()
            assert (row[exam.picture != own] == OTHER).all()
    exam = of_pictures["object", "objects"]
    assert np.median(exam.cosines[exam.fits == FITS]) > np.quantile(exam.cosines[exam.fits == OTHER], 0.95)


def test_captions_fit_their_picture_and_say_nothing_of_its_objects(of_pictures: Exams) -> None:
    assert ((of_pictures["text", "images"].fits == FITS).sum(1) == 1).all()
    exam = of_pictures["text", "objects"]
    assert not (exam.fits == FITS).any()
    assert (exam.fits == UNCLEAR).any()
    curve = calibrate(of_pictures, "a test").curve("text", "objects")
    assert curve is not None
    assert curve.positives == 0


def test_pictures_without_objects_calibrate_images_alone(eye: InProcessPipeline, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for number in range(20):
        Image.fromarray(np.full((60, 80, 3), rng.integers(40, 220, 3), np.uint8)).save(tmp_path / f"{number}.png")
    exams = picture_exams(eye, ClipTokenizer(77), read_album(tmp_path, None, 300, 1, nothing), ("whale",), 1, nothing)
    assert set(exams) == {("text", "images"), ("image", "images")}
    assert (exams["text", "images"].fits == OTHER).all()


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModelStore:
    monkeypatch.setenv("SIGHTLOG_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setenv("SIGHTLOG_MODELS_DIR", str(tmp_path / "store"))
    return ModelStore(tmp_path / "store")


def test_the_command_measures_the_models_in_use_and_writes_it_into_their_manifest(
    store: ModelStore, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for file in [*load_manifest().files, "manifest.json"]:
        (tmp_path / file).write_bytes((TINY_FOLDER / file).read_bytes())
    monkeypatch.setenv("SIGHTLOG_MODELS", str(tmp_path))
    result = CliRunner().invoke(models, ["calibrate", "--images", str(folder), "--json"], catch_exceptions=False)
    assert result.exit_code == 0
    document = orjson.loads(result.stdout.splitlines()[-1])
    assert document["source"] == f"{PICTURES} pictures with no captions"
    manifest = load_manifest(tmp_path)
    assert manifest.calibration is not None
    assert manifest.calibration.to_document()["curves"] == document["curves"]
    assert store.calibration(manifest.digest) == manifest.calibration


@pytest.mark.parametrize("arguments", [["--captions", "captions.tsv"], ["--detector", "tiny"], ["--images", "none"]])
def test_arguments_that_make_no_sense_are_refused(
    store: ModelStore, folder: Path, arguments: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    assert CliRunner().invoke(models, ["calibrate", *arguments]).exit_code == 2


def test_models_that_know_no_scenes_ask_for_pictures(store: ModelStore) -> None:
    with store.adding("detector", "letters") as part:
        (part / "detector.onnx").write_bytes((TINY_FOLDER / "detector.onnx").read_bytes() + b" ")
        store.write_part(part, load_manifest().detector, {})
    with pytest.raises(SightlogError, match="--images"):
        CliRunner().invoke(models, ["calibrate", "tiny", "--detector", "letters"], catch_exceptions=False)
