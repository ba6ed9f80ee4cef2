"""Exams over any pictures: nobody says what is in them, but it is known which belongs to which altered copy."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from models.calibration import QueryKind, Target
from models.decoding import ImageError, sniff_format
from models.detectors.nms import overlap
from models.preprocessing import decode_upright
from models.relevance.exam import FITS, OTHER, UNCLEAR, Exam, Exams, Fits
from models.relevance.fit import FEWEST, CalibrationError
from models.relevance.sight import Copy, Eye, Gallery, Ints, Tick, altered, close_up, look, views
from models.tokenizer import ClipTokenizer

#: Calls of `tick` for each picture.
TICKS = 3
_SAME_BOX = 0.5
_HEADER = 16  # bytes that tell a picture from another file


@dataclass(frozen=True)
class Album:
    """Picture files, with pairs of a picture's number and words that describe it."""

    files: tuple[Path, ...]
    captions: tuple[tuple[int, str], ...]
    left_out: int  #: files that are no readable pictures, or the same as another

    @property
    def pictures(self) -> Iterator[bytes]:
        """Read anew each time: hundreds of photographs would fill the memory."""
        return (file.read_bytes() for file in self.files)


def read_album(folder: Path, captions: Path | None, count: int, seed: int, tick: Tick) -> Album:
    """At most `count` pictures below `folder`, drawn by `seed`, with the lines of `captions` that speak of them.

    `captions`: UTF-8 lines of a file name relative to `folder`, a tab, and words; a name may come again. Raises
    CalibrationError for a folder with too few pictures, or captions that do not go with it.
    """
    said = {} if captions is None else _captions(folder, captions)
    files = sorted(path for path in folder.rglob("*") if path.is_file() and _is_picture(path))
    if said:
        files = [path for path in files if path.relative_to(folder).as_posix() in said]
    taken: dict[str, Path] = {}
    left_out = 0
    for number in np.random.default_rng(seed).permutation(len(files)):
        data = files[number].read_bytes()
        digest = hashlib.sha256(data).hexdigest()
        try:
            decode_upright(data)
        except ImageError:
            left_out += 1
            continue
        if digest in taken:
            left_out += 1
            continue
        taken[digest] = files[number]
        tick()
        if len(taken) == count:
            break
    if len(taken) < FEWEST:
        raise CalibrationError(
            f"{folder} has {len(taken)} different, readable JPEG, PNG or WebP files"
            f"{' with captions' if captions else ''}; {FEWEST} are the least, some hundreds are good"
        )
    names = [path.relative_to(folder).as_posix() for path in taken.values()]
    pairs = tuple((number, words) for number, name in enumerate(names) for words in said.get(name, ()))
    return Album(tuple(taken.values()), pairs, left_out)


def picture_exams(
    eye: Eye, tokenizer: ClipTokenizer, album: Album, absent: Sequence[str], seed: int, tick: Tick
) -> Exams:
    """Every kind of question for both targets; none for objects where hardly any are found.

    What fits a picture, or an object, is what an altered copy shows of it; everything in other pictures does not fit,
    other objects of its own picture are unclear. What fits words is the image they were written for. Without captions,
    the words `absent` are asked, and nothing fits them.
    """
    rng = np.random.default_rng(seed)
    shown = look(eye, album.pictures, tick)
    copies = [altered(decode_upright(data, cap=0).pixels, rng) for data in album.pictures]
    again = look(eye, [copy.jpeg for copy in copies], tick)
    everything = np.arange(len(copies))
    same = np.eye(len(copies), dtype=np.int8)
    words, of = [text for _, text in album.captions], np.array([number for number, _ in album.captions], np.int64)
    texts = eye.embed_text(tokenizer.encode(words or list(absent)))
    exams: dict[tuple[QueryKind, Target], Exam] = {
        ("text", "images"): Exam(texts, shown.views, _of_pictures(of, everything, len(texts), FITS), everything),
        ("image", "images"): Exam(again.views, shown.views, same, everything),
    }
    found, originals = _found_again(shown, again, copies)
    chosen = np.array([rng.choice(np.flatnonzero(shown.owner == one)) for one in np.unique(shown.owner)], np.int64)
    if len(originals) < FEWEST or len(chosen) < FEWEST:
        return exams
    closer = [
        close_up(decode_upright(album.files[shown.owner[thing]].read_bytes(), cap=0).pixels, shown.boxes[thing], rng)
        for thing in chosen
    ]
    owner = shown.owner
    exams["text", "objects"] = Exam(texts, shown.objects, _of_pictures(of, owner, len(texts), UNCLEAR), owner)
    exams["object", "images"] = Exam(again.objects[found], shown.views, same[owner[originals]], everything)
    exams["object", "objects"] = Exam(again.objects[found], shown.objects, _of_objects(originals, owner), owner)
    exams["image", "objects"] = Exam(views(eye, closer, tick), shown.objects, _of_objects(chosen, owner), owner)
    return exams


def _of_pictures(of: Ints, owner: Ints, questions: int, own: int) -> Fits:
    """int8 [questions, documents]: `own` where question and document are of one picture; nothing without captions."""
    if not len(of):
        return np.full((questions, len(owner)), OTHER, np.int8)
    return np.where(of[:, None] == owner, own, OTHER).astype(np.int8)


def _of_objects(originals: Ints, owner: Ints) -> Fits:
    """int8 [questions, documents]: the very object fits, others of its picture are unclear."""
    fits = _of_pictures(owner[originals], owner, len(originals), UNCLEAR)
    fits[np.arange(len(originals)), originals] = FITS
    return fits


def _found_again(shown: Gallery, again: Gallery, copies: Sequence[Copy]) -> tuple[Ints, Ints]:
    """Objects of the copies, and which object of the originals each is, by the place of their boxes."""
    pairs = []
    for number, (picture, box) in enumerate(zip(again.owner, again.boxes, strict=True)):
        own = np.flatnonzero(shown.owner == picture)
        places = np.array([copies[picture].place(shown.boxes[one]) for one in own], np.float32).reshape(-1, 4)
        shared = overlap(box, places)
        if len(own) and shared.max() > _SAME_BOX:
            pairs.append((number, own[int(shared.argmax())]))
    found = np.array(pairs, np.int64).reshape(-1, 2)
    return found[:, 0], found[:, 1]


def _is_picture(path: Path) -> bool:
    with path.open("rb") as file:
        return sniff_format(file.read(_HEADER)) is not None


def _captions(folder: Path, file: Path) -> Mapping[str, list[str]]:
    said: dict[str, list[str]] = {}
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise CalibrationError(
            f"cannot read {file} ({error}); give UTF-8 lines of a file name, a tab and words"
        ) from None
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        name, tab, words = line.partition("\t")
        if not tab or not words.strip():
            raise CalibrationError(f"{file}:{number} is not a file name, a tab and words; mend the line")
        if not (folder / name).is_file():
            raise CalibrationError(f"{file}:{number} names {name}, which is not in {folder}; mend or delete the line")
        said.setdefault(name, []).append(words.strip())
    if not said:
        raise CalibrationError(
            f"{file} holds no captions; leave --captions out, or give UTF-8 lines of name, tab, words"
        )
    return said
