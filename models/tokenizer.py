"""Text to CLIP token ids without torch: the byte-pair encoding that OpenAI CLIP and open_clip share."""

from __future__ import annotations

import gzip
import html
from collections.abc import Iterator, Sequence
from functools import lru_cache
from heapq import heappop, heappush
from itertools import islice
from pathlib import Path

import ftfy
import numpy as np
import numpy.typing as npt
import regex

VOCABULARY_FILE = Path(__file__).parent / "vocabulary" / "bpe_simple_vocab_16e6.txt.gz"

SOT = 49406  #: start of text
EOT = 49407  #: end of text; the text tower reads its output at this token, so it must survive truncation
PAD = 0  #: a tokenizer that pads with EOT instead makes a tower that attends to padding give wrong vectors

_MERGE_COUNT = 49152 - 256 - 2  # the vocabulary file lists more merges than the published towers know
_SPECIAL = {"<start_of_text>": SOT, "<end_of_text>": EOT}
_WORDS = regex.compile(
    r"<start_of_text>|<end_of_text>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+",
    regex.IGNORECASE,
)
_WORD_CACHE = 16_384  # words; an unbounded cache would grow with every typo that is ever searched


class ClipTokenizer:
    """Byte-pair encoder for CLIP text towers; gives the same ids as open_clip's `SimpleTokenizer`."""

    def __init__(self, context_length: int = 77) -> None:
        """`context_length`: ids a text, SOT and EOT counted.

        Raises ValueError where a text could not hold SOT and EOT.
        """
        if context_length < 2:
            raise ValueError(f"context_length is {context_length}; give at least 2, for SOT and EOT")
        self.context_length = context_length
        self._byte_symbols = _byte_symbols()
        self._ranks, self._ids = _vocabulary()
        self._word_ids = lru_cache(maxsize=_WORD_CACHE)(self._encode_word)

    def encode(self, texts: Sequence[str]) -> npt.NDArray[np.int64]:
        """Token ids, int64 [len(texts), context_length]: SOT, the text, EOT, then PAD.

        A text that is too long loses its end, never its EOT.
        """
        tokens = np.full((len(texts), self.context_length), PAD, dtype=np.int64)
        for row, text in zip(tokens, texts, strict=True):
            ids = [SOT, *islice(self._text_ids(text), self.context_length - 2), EOT]
            row[: len(ids)] = ids
        return tokens

    def _text_ids(self, text: str) -> Iterator[int]:
        for match in _WORDS.finditer(_clean(text)):
            yield from self._word_ids(match.group())

    def _encode_word(self, word: str) -> tuple[int, ...]:
        if word in _SPECIAL:
            return (_SPECIAL[word],)
        symbols = [self._byte_symbols[byte] for byte in word.encode("utf-8")]
        symbols[-1] += "</w>"
        return tuple(self._ids[symbol] for symbol in self._merge(symbols))

    def _merge(self, symbols: list[str]) -> list[str]:
        """Joins neighbours, each time the leftmost pair that the vocabulary ranks first, until it knows no pair.

        A heap holds the known pairs, so that a word of ten thousand letters takes no seconds. No pair outranks those
        that its symbols come from, so this gives what joining in rounds, rank by rank, gives.
        """
        end = len(symbols)
        before, after = list(range(-1, end)), list(range(1, end + 1))  # neighbours by place; joined places drop out
        ranked: list[tuple[int, int]] = []

        def rank(place: int) -> int | None:
            """Of the pair that begins here."""
            if place < 0 or not symbols[place] or after[place] == end:
                return None
            return self._ranks.get((symbols[place], symbols[after[place]]))

        def note(place: int) -> None:
            if (found := rank(place)) is not None:
                heappush(ranked, (found, place))

        for place in range(end):
            note(place)
        while ranked:
            best, place = heappop(ranked)
            if rank(place) != best:  # a neighbour was joined first
                continue
            second = after[place]
            symbols[place] += symbols[second]
            symbols[second] = ""
            after[place] = after[second]
            before[after[place]] = place
            note(before[place])
            note(place)
        return [symbol for symbol in symbols if symbol]


def _clean(text: str) -> str:
    """Repairs broken unicode and (doubly) escaped HTML, folds whitespace, lowers the case.

    The order is CLIP's own: another order changes the ids of texts with entities or control characters.
    """
    text = html.unescape(html.unescape(ftfy.fix_text(text)))
    return " ".join(text.split()).lower()


@lru_cache(maxsize=1)
def _byte_symbols() -> dict[int, str]:
    """A printable character for each byte value, in the order that fixes the first 256 token ids."""
    printable = [
        *range(ord("!"), ord("~") + 1),
        *range(ord("¡"), ord("¬") + 1),
        *range(ord("®"), ord("ÿ") + 1),
    ]
    others = [byte for byte in range(256) if byte not in printable]
    symbols = {byte: chr(byte) for byte in printable}
    symbols.update({byte: chr(256 + index) for index, byte in enumerate(others)})
    return symbols


@lru_cache(maxsize=1)
def _vocabulary() -> tuple[dict[tuple[str, str], int], dict[str, int]]:
    """Merge ranks by pair, and token ids by symbol."""
    with gzip.open(VOCABULARY_FILE, "rt", encoding="utf-8") as lines:
        next(lines)  # version line
        merges = [(first, second) for first, second in (line.split() for line in islice(lines, _MERGE_COUNT))]
    singles = list(_byte_symbols().values())
    symbols = [
        *singles,
        *(single + "</w>" for single in singles),
        *(first + second for first, second in merges),
    ]
    return (
        {pair: rank for rank, pair in enumerate(merges)},
        {symbol: index for index, symbol in enumerate(symbols)},
    )
