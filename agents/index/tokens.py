"""What filters and words compare: tokens of a document, each made so that one term, or one range of terms, asks for it.

They are made where documents are made, and the same functions turn a request into what it asks for.
"""

from __future__ import annotations

import itertools
import math
import re
import struct
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

#: Between the parts of a token; no name holds it, so no part can look like two.
_SEPARATOR = "\0"
#: The end of a range over all tokens that begin alike.
_BEYOND = "\1"

#: Detections of a class, and of all, that can be counted; no filter asks for more.
_MOST_RANKS = 100
#: In place of a class: all of them.
_ANY_CLASS = ""

#: Values of a metadata, and bytes of their tokens, that filters can ask for; what comes after is not indexed. A
#: document of an object holds those of its image, so hostile metadata is multiplied by the objects.
_MOST_FACTS = 1024
_MOST_FACT_BYTES = 64 * 1024
#: Characters of a path, as much as a filter can name.
_MOST_PATH = 256
#: Characters of a string: one more than a filter can give, so that a longer one neither equals one nor sorts wrongly.
_MOST_VALUE = 257

#: Words of a document, of a question, and characters of one.
_MOST_WORDS = 1024
_MOST_WORDS_ASKED = 64
_MOST_LETTERS = 100

#: Ideographs and kana stand without spaces; each is a word.
_LONE = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_WORD = re.compile(rf"[{_LONE}]|[^\W_{_LONE}]+")


def ranked(detections: Iterable[tuple[str, float]]) -> list[str]:
    """Tokens of detections (class, confidence): the how manieth of its class, and of all, it is, and how sure.

    "At least n of a class with at least that confidence" is then a range of terms: `ranked_range`.
    """
    counts: dict[str, int] = {}
    tokens = []
    for name, confidence in sorted(detections, key=lambda one: -one[1]):
        for group in (name, _ANY_CLASS):
            counts[group] = counts.get(group, 0) + 1
            if counts[group] <= _MOST_RANKS:
                tokens.append(f"{_rank(group, counts[group])}{confidence:.6f}")
    return tokens


def ranked_range(class_name: str | None, count: int, min_confidence: float) -> dict[str, str]:
    """Limits of `ranked` for at least `count` detections of a class (None: of any) that are at least that sure."""
    rank = _rank(class_name or _ANY_CLASS, count)
    return {"gte": f"{rank}{min_confidence:.6f}", "lt": f"{rank[:-1]}{_BEYOND}"}


def _rank(class_name: str, count: int) -> str:
    return f"{class_name}{_SEPARATOR}{count:03}{_SEPARATOR}"


def facts(metadata: Mapping[str, Any]) -> list[str]:
    """Tokens of all values in a metadata that filters can ask for, in their order; bounded in number and bytes."""
    tokens: dict[str, None] = {}
    size = 0
    for path, value in _values(metadata, ""):
        token = _fact(path, value)
        if token is None or token in tokens:
            continue
        size += len(token.encode("utf-8", "replace"))
        if size > _MOST_FACT_BYTES or len(tokens) == _MOST_FACTS:
            break
        tokens[token] = None
    return list(tokens)


def fact(path: str, value: str | float | bool) -> str:
    """The token of a value at a path."""
    kind = f"{path}{_SEPARATOR}"
    if isinstance(value, bool):
        return f"{kind}b{value:d}"
    if isinstance(value, str):
        return f"{kind}s{value[:_MOST_VALUE]}"
    return f"{kind}n{_ordered(value)}"


def fact_range(path: str, at_least: str | float | None, below: str | float | None) -> dict[str, str]:
    """Limits of `facts` for a value at a path, of the same kind as the limits given; at least one of them is."""
    kind = "s" if isinstance(below if at_least is None else at_least, str) else "n"
    first = f"{path}{_SEPARATOR}{kind}"
    return {
        "gte": first if at_least is None else fact(path, at_least),
        "lt": f"{path}{_SEPARATOR}{chr(ord(kind) + 1)}" if below is None else fact(path, below),
    }


def _fact(path: str, value: Any) -> str | None:
    if value is None or len(path) > _MOST_PATH:
        return None
    if isinstance(value, int) and not isinstance(value, bool):
        try:
            value = float(value)
        except OverflowError:
            return None
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return fact(path, value) if isinstance(value, (str, float, bool)) else None


def _ordered(number: float) -> str:
    """Sixteen hex digits that sort as the numbers do."""
    (bits,) = struct.unpack(">Q", struct.pack(">d", number + 0.0))  # -0.0 + 0.0 is 0.0
    return f"{bits ^ (0xFFFF_FFFF_FFFF_FFFF if bits >> 63 else 1 << 63):016x}"


def _values(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    """All values below one, with their paths; those of an array have the path of the array."""
    if isinstance(value, Mapping):
        for name, below in value.items():
            yield from _values(below, f"{path}.{name}" if path else str(name))
    elif isinstance(value, (list, tuple)):
        for below in value:
            yield from _values(below, path)
    else:
        yield path, value


def words(filename: str | None, tags: Sequence[str], metadata: Mapping[str, Any]) -> str:
    """What `lexical` is compared with: the words of filename, tags and metadata values, parted by spaces."""
    values = (str(value) for _, value in _values(metadata, "") if isinstance(value, (str, int, float)))
    found = itertools.chain.from_iterable(map(_words, itertools.chain([filename or ""], tags, values)))
    return " ".join(itertools.islice(found, _MOST_WORDS))


def words_of_object(of_image: str, class_name: str) -> str:
    """The words of an object: those of its image, and its class."""
    return " ".join([*filter(None, [of_image]), *_words(class_name)])


def words_asked(lexical: str) -> list[str]:
    """The different words of a request, in their order."""
    return list(itertools.islice(dict.fromkeys(_words(lexical)), _MOST_WORDS_ASKED))


def _words(text: str) -> Iterator[str]:
    """Letters and digits, without case; everything else parts words, `_` and `.` in filenames too."""
    for match in _WORD.finditer(unicodedata.normalize("NFKC", text).casefold()):
        yield match[0][:_MOST_LETTERS]
