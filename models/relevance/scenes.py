"""Exams of the tiny models over generated scenes, where it is known what each object is."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import numpy as np

from models.calibration import QueryKind, Target
from models.detectors.nms import overlap
from models.photos import QUALITY_SIZES, STREAM_SIZES, Photo, take_photo
from models.preprocessing import decode_upright
from models.relevance.exam import FITS, OTHER, UNCLEAR, Exam, Exams, Fits
from models.relevance.sight import Eye, Float32, Gallery, Ints, Tick, altered, close_up, look, views
from models.scenes import PATTERNS, SHAPES
from models.tiny.captions import ANY, COLOUR_NAMES, Claim, frame
from models.tiny.samples import claim_of, share_inside
from models.tokenizer import ClipTokenizer

SIZES = QUALITY_SIZES + STREAM_SIZES
#: Calls of `tick` for each of the `count` scenes.
TICKS = 6

#: A detection that is no object of the scene, and a question for what no scene shows; neither is any claim.
_NO_OBJECT, _NOWHERE = -2, -3
_SAME_BOX = 0.5
#: The part of an object in the centre square from which on the image shows it.
_SHOWN = 0.75


def scene_exams(
    eye: Eye,
    tokenizer: ClipTokenizer,
    count: int,
    seed: int,
    sentences: Sequence[str],
    absent: Sequence[str],
    tick: Tick,
) -> Exams:
    """Every kind of question for both targets, over `count` scenes to ask about and `count` others to search.

    Of objects, those of the kind that is asked for fit. Of images, those that show it in their centre square, which is
    all that the vector of an image is made of; an object beyond it, or cut by its edge, is unclear. A whole image shows
    no patterns at the size it is embedded at, so they are not asked of images. A picture is to be found by an altered
    copy of itself.
    `sentences`: frames of the words, as `models.tiny.captions.frame` takes them; `absent`: words for what scenes do not
    show, asked besides.
    """
    rng = np.random.default_rng(seed)
    asking, searched = (_draw(np.random.default_rng([seed, part]), count, tick) for part in (0, 1))
    pictures = [photo.jpeg for photo in searched]
    mine, shown = look(eye, [photo.jpeg for photo in asking], tick), look(eye, pictures, tick)
    chosen = [photo.objects[rng.integers(len(photo.objects))] for photo in asking]
    closer = [
        close_up(decode_upright(photo.jpeg, cap=0).pixels, thing.box, rng)
        for photo, thing in zip(asking, chosen, strict=True)
    ]
    copies = [altered(decode_upright(jpeg, cap=0).pixels, rng).jpeg for jpeg in pictures]
    close_claims = np.array([claim_of(thing) for thing in chosen], np.int64)
    labels, things = _labels(asking, mine), _labels(searched, shown)
    known = labels[:, 0] >= 0
    exams: dict[tuple[QueryKind, Target], Exam] = {}
    for target in ("objects", "images"):
        phrases, texts, claims = _texts(target, sentences, absent)
        asked: dict[QueryKind, tuple[Float32, Ints]] = {
            "text": (eye.embed_text(tokenizer.encode(texts)), claims),
            "object": (mine.objects[known], labels[known]),
        }
        if target == "objects":
            asked["image"] = (views(eye, closer, tick), close_claims)
        for kind, (questions, wanted) in asked.items():
            words = tuple(phrases) if kind == "text" else ()
            if target == "objects":
                fits = _holds(wanted, things).astype(np.int8)
                exams[kind, target] = Exam(questions, shown.objects, fits, shown.owner, words)
            else:
                fits = _image_fits(wanted, searched)
                exams[kind, target] = Exam(questions, shown.views, fits, np.arange(count), words)
    same = np.eye(count, dtype=np.int8)
    exams["image", "images"] = Exam(views(eye, copies, tick), shown.views, same, np.arange(count))
    return exams


def _draw(rng: np.random.Generator, count: int, tick: Tick) -> list[Photo]:
    photos: list[Photo] = []
    for number in range(count):
        photos.append(take_photo(rng, *SIZES[number % len(SIZES)]))
        tick()
    return photos


def _phrases(target: Target) -> list[tuple[str, Claim]]:
    """All that can be asked for by shape, and by colour or pattern alone; no patterns of images."""
    patterns = PATTERNS if target == "objects" else ()
    asked = [(ANY, *numbers) for numbers in product(range(-1, len(COLOUR_NAMES)), range(-1, len(patterns)))]
    asked = [one for one in asked if (one[1] == ANY) != (one[2] == ANY)]
    asked += product(range(len(SHAPES)), range(-1, len(COLOUR_NAMES)), range(-1, len(patterns)))
    return [(phrase(Claim(*one)), Claim(*one)) for one in asked]


def phrase(claim: Claim) -> str:
    """ "dotted red circle", "red circle", "something red"."""
    shape, colour, pattern = claim
    words = ["" if shape != ANY else "something", "" if pattern == ANY else PATTERNS[pattern]]
    words += ["" if colour == ANY else COLOUR_NAMES[colour], "" if shape == ANY else SHAPES[shape]]
    return " ".join(word for word in words if word)


def _texts(target: Target, sentences: Sequence[str], absent: Sequence[str]) -> tuple[list[str], list[str], Ints]:
    """Phrases, the same in sentences, and what they claim: int64 [n, 3]."""
    asked = [(words, claim, sentence) for words, claim in _phrases(target) for sentence in sentences]
    nowhere = Claim(_NOWHERE, _NOWHERE, _NOWHERE)
    asked += [(words, nowhere, sentences[number % len(sentences)]) for number, words in enumerate(absent)]
    phrases = [words for words, _, _ in asked]
    return phrases, [frame(row[2], row[0]) for row in asked], np.array([claim for _, claim, _ in asked], np.int64)


def _labels(photos: Sequence[Photo], gallery: Gallery) -> Ints:
    """What each detected object is: int64 [n, 3]."""
    labels = np.full((len(gallery.objects), 3), _NO_OBJECT, np.int64)
    for number, (picture, box) in enumerate(zip(gallery.owner, gallery.boxes, strict=True)):
        truths = photos[picture].objects
        shared = overlap(box, np.array([truth.box for truth in truths], np.float32).reshape(-1, 4))
        if len(shared) and shared.max() > _SAME_BOX:
            labels[number] = claim_of(truths[int(shared.argmax())])
    return labels


def _holds(claims: Ints, labels: Ints) -> np.ndarray[tuple[int, ...], np.dtype[np.bool_]]:
    """Which claims int64 [q, 3] hold of which objects int64 [d, 3]: bool [q, d]."""
    said = claims[:, None]
    return np.asarray(((said == ANY) | (said == labels)).all(-1))


def _image_fits(claims: Ints, photos: Sequence[Photo]) -> Fits:
    """int8 [q, photos]; what claims say of patterns is left out."""
    claims = np.where([True, True, False], claims, ANY)
    fits = np.full((len(claims), len(photos)), OTHER, np.int8)
    for number, photo in enumerate(photos):
        upright = decode_upright(photo.jpeg, cap=0)
        inside = np.array([share_inside(thing, upright.width, upright.height) for thing in photo.objects])
        holds = _holds(claims, np.array([claim_of(thing) for thing in photo.objects], np.int64))
        fits[holds.any(1), number] = UNCLEAR
        fits[(holds & (inside >= _SHOWN)).any(1), number] = FITS
    return fits
