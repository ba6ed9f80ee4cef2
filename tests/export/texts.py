"""Generated texts in many scripts, tidy and untidy, for comparing tokenizers; the same seed, the same texts."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from itertools import cycle, islice

#: First and last code point of letters that occur together.
SCRIPTS = {
    "latin": ((0x41, 0x5A), (0x61, 0x7A), (0xC0, 0x24F)),
    "greek": ((0x391, 0x3A1), (0x3A3, 0x3C9), (0x1F00, 0x1F15)),
    "cyrillic": ((0x400, 0x4FF),),
    "armenian": ((0x531, 0x556), (0x561, 0x587)),
    "hebrew": ((0x5D0, 0x5EA), (0x5B0, 0x5BC)),
    "arabic": ((0x620, 0x652), (0x660, 0x669)),
    "devanagari": ((0x900, 0x97F),),
    "bengali": ((0x985, 0x9CC), (0x9E6, 0x9EF)),
    "tamil": ((0xB85, 0xBCD),),
    "thai": ((0xE01, 0xE3A), (0xE40, 0xE5B)),
    "georgian": ((0x10A0, 0x10FF),),
    "hangul": ((0xAC00, 0xD7A3), (0x1100, 0x1112)),
    "kana": ((0x3041, 0x3096), (0x30A1, 0x30FA), (0xFF66, 0xFF9D)),
    "han": ((0x4E00, 0x9FFF), (0x20000, 0x200FF)),
    "fullwidth": ((0xFF01, 0xFF5E),),
    "mathematical": ((0x1D400, 0x1D7FF),),
}
_PROSE = """
    a an the photo of red circle plain striped dog's don't we'll I'm they've you're SHE'D it's running naïve façade
    Straße İstanbul ﬁne œuvre 2nd 1,000.50 10:45pm C++ #1 @home e-mail http://x.org/?a=b&c=d 50% <b>bold</b> </w>
    <start_of_text> <END_OF_TEXT> <|endoftext|> &amp; &lt; &quot;cat&quot; &amp;lt; &eacute; &#39; &#x1F600; &#xD800;
    &nbsp; &notanentity; &#0; schÃ¶n donâ€™t Ã©tÃ© “curly” … — ½ ² Ⅷ ① ﷽ ﬃ ǆ ß ẞ ς Σ
"""
WORDS = _PROSE.split()
EMOJI = (0x1F600, 0x1F64F), (0x1F300, 0x1F5FF), (0x1F680, 0x1F6FF), (0x1F900, 0x1F9FF), (0x2600, 0x26FF)
SKIN_TONES = (0x1F3FB, 0x1F3FF)
FLAG_LETTERS = (0x1F1E6, 0x1F1FF)
COMBINING = (0x300, 0x36F), (0x1AB0, 0x1ABE), (0x20D0, 0x20DC), (0xFE20, 0xFE2F)
SPACES = " \t\n\r\x0b\x0c\x1c\x1d\x1e\x1f\x85\xa0\u1680\u2000\u2003\u2009\u200a\u2028\u2029\u202f\u205f\u3000"
INVISIBLE = "\u200b\u200c\u200d\u200e\u200f\u202a\u202e\u2060\u2066\u2069\ufeff\u00ad\u034f\u061c\u180e\ufffd\ufffe"
ZWJ, VARIATION = "\u200d", "\ufe0f"

Make = Callable[[random.Random], str]


def texts(count: int, seed: int) -> list[str]:
    """`count` texts, of all kinds in turns."""
    rng = random.Random(seed)
    return [make(rng) for make in islice(cycle(_KINDS), count)]


def long_texts(count: int, seed: int, length: int = 10_000) -> list[str]:
    """Texts of at least `length` characters, of all kinds in turns, words without end among them."""
    rng = random.Random(seed)
    result = []
    for make in islice(cycle((*_KINDS, _endless_word)), count):
        text = make(rng)
        while len(text) < length:
            text += rng.choice((" ", "")) + make(rng)
        result.append(text)
    return result


def _character(rng: random.Random, *ranges: tuple[int, int]) -> str:
    return chr(rng.randint(*rng.choice(ranges)))


def _of_script(script: str) -> Make:
    def make(rng: random.Random) -> str:
        def word() -> str:
            return "".join(_character(rng, *SCRIPTS[script]) for _ in range(rng.randint(1, 12)))

        return _spaced(rng, [word() for _ in range(rng.randint(1, 12))])

    return make


def _words(rng: random.Random) -> str:
    return _spaced(rng, [_cased(rng, rng.choice(WORDS)) for _ in range(rng.randint(0, 20))])


def _long(rng: random.Random) -> str:
    return _spaced(rng, [_cased(rng, rng.choice(WORDS)) for _ in range(rng.randint(60, 200))])


def _endless_word(rng: random.Random) -> str:
    return "".join(rng.choice("abcdefgetinos") for _ in range(rng.randint(100, 600)))


def _emoji(rng: random.Random) -> str:
    def one() -> str:
        text = _character(rng, *EMOJI)
        if rng.random() < 0.4:
            text += _character(rng, SKIN_TONES)
        if rng.random() < 0.3:
            text += VARIATION
        if rng.random() < 0.4:
            text += ZWJ + _character(rng, *EMOJI) + VARIATION
        if rng.random() < 0.1:
            text += _character(rng, FLAG_LETTERS) + _character(rng, FLAG_LETTERS)
        return text

    return rng.choice(("", " ", "so ")).join(one() for _ in range(rng.randint(1, 8)))


def _combining(rng: random.Random) -> str:
    def letter() -> str:
        marks = "".join(_character(rng, *COMBINING) for _ in range(rng.randint(0, 6)))
        return _character(rng, *SCRIPTS[rng.choice(tuple(SCRIPTS))]) + marks

    return _spaced(rng, ["".join(letter() for _ in range(rng.randint(1, 6))) for _ in range(rng.randint(1, 6))])


def _control(rng: random.Random) -> str:
    pieces = [rng.choice(WORDS), _character(rng, (0, 0x1F), (0x7F, 0x9F)), rng.choice(INVISIBLE), rng.choice(SPACES)]
    return "".join(rng.choice(pieces) for _ in range(rng.randint(1, 20)))


def _entities(rng: random.Random) -> str:
    def one() -> str:
        code = rng.choice((rng.randint(0, 0x2FF), rng.randint(0, 0x10FFFF)))
        return rng.choice((f"&#{code};", f"&#x{code:x};", f"&amp;#{code};", f"&#{code}", "&lt;b&gt;", "&amp;amp;amp;"))

    return "".join(one() + rng.choice(("", " ", "x")) for _ in range(rng.randint(1, 8)))


def _mojibake(rng: random.Random) -> str:
    text = _of_script(rng.choice(("latin", "greek", "cyrillic", "han")))(rng)
    return text.encode("utf-8").decode(rng.choice(("latin-1", "cp1252", "cp437")), errors="replace")


def _anything(rng: random.Random) -> str:
    """Any code points but surrogates, most of them not even assigned."""
    return "".join(_character(rng, (0, 0xD7FF), (0xE000, 0x10FFFF)) for _ in range(rng.randint(0, 40)))


def _ascii(rng: random.Random) -> str:
    return "".join(_character(rng, (0x20, 0x7E)) for _ in range(rng.randint(0, 120)))


def _mixed(rng: random.Random) -> str:
    return rng.choice(("", " ", ", ")).join(rng.choice(_KINDS[:-1])(rng) for _ in range(rng.randint(2, 5)))


def _cased(rng: random.Random, word: str) -> str:
    return rng.choice((word, word.upper(), word.title()))


def _spaced(rng: random.Random, words: list[str]) -> str:
    def gaps() -> Iterator[str]:
        for word in words:
            yield word
            yield " " if rng.random() < 0.8 else "".join(rng.choice(SPACES) for _ in range(rng.randint(0, 3)))

    return rng.choice(("", " ", "\n")) + "".join(gaps())


_KINDS: tuple[Make, ...] = (
    *map(_of_script, SCRIPTS),
    *(_words, _long, _emoji, _combining, _control, _entities, _mojibake, _anything, _ascii, _endless_word),
    _mixed,
)
