"""What is said about a scene in training, and whether a caption is true of a picture: words beside checkable claims."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from models.scenes import COLOURS, PATTERNS, SHAPES

COLOUR_NAMES = tuple(COLOURS)
ANY = -1  #: a claim says nothing about this attribute
NOTHING = -2  #: there is no second claim
RELATIONS = ("", "left of", "right of", "above", "below")

_FRAMES = (
    "{}", "{}", "{a}", "{a}", "the {}", "a photo of {a}", "a photo of {a}", "a photo of the {}", "an image of {a}",
    "a picture of one {}", "there is {a}", "find {a}", "show me the {}", "i am looking for {a} please",
    "where is the {}", "a close up photo of {a}", "one {} on a grey background", "pictures with {a} in them",
)  # fmt: skip
#: Never used in training: the evaluation asks with them whether the towers know more than their own prompts.
UNSEEN_FRAMES = (
    "could you search for {a} here?",
    "my holiday snapshot, it had {a} somewhere",
    "Any {} in stock today",
)
_RELATION_WORDS = {
    "left of": ("left of", "to the left of", "on the left of"),
    "right of": ("right of", "to the right of", "on the right of"),
    "above": ("above", "over", "higher than"),
    "below": ("below", "under", "lower than"),
}
_PATTERN_WORDS = {
    "plain": ("plain", "plain", "plain", "solid"),
    "striped": ("striped", "striped", "striped", "stripy"),
    "dotted": ("dotted", "dotted", "dotted", "spotted"),
}
_WITH_PATTERN = {"plain": "without a pattern", "striped": "with stripes", "dotted": "with dots"}
_ATTRIBUTES_SAID = ("scp", "sc", "sp", "s", "c", "p", "cp")
_ATTRIBUTE_ODDS = (0.62, 0.14, 0.06, 0.05, 0.04, 0.04, 0.05)


class Claim(NamedTuple):
    """Indices into SHAPES, COLOUR_NAMES and PATTERNS, or ANY."""

    shape: int
    colour: int
    pattern: int


class Caption(NamedTuple):
    """A text and what it claims: one object, or two and how the first lies to the second (index into RELATIONS)."""

    text: str
    first: Claim
    second: Claim | None = None
    relation: int = 0

    def numbers(self) -> list[int]:
        """The claims as seven integers: first, second (or NOTHING), relation."""
        return [*self.first, *(self.second or (NOTHING,) * 3), self.relation]


class Seen(NamedTuple):
    """One object as a picture shows it."""

    claim: Claim  #: all three attributes
    x: float  #: centre, in pixels of the picture
    y: float
    pattern_visible: bool  #: too small objects do not show theirs, and captions then must not speak of it


def frame(sentence: str, phrase: str) -> str:
    """Puts a noun phrase into a frame: `{}` as it is, `{a}` with its article."""
    return sentence.format(phrase, a=with_article(phrase))


def with_article(phrase: str) -> str:
    """ "a red circle", "an orange star", "something blue"."""
    if phrase.startswith("something"):
        return phrase
    return f"{'an' if phrase[0] in 'aeiou' else 'a'} {phrase}"


def caption_for(rng: np.random.Generator, objects: Sequence[Seen]) -> Caption:
    """A random true caption: of one object, or of two where there are."""
    order = rng.permutation(len(objects))
    first = objects[order[0]]
    if len(objects) == 1 or rng.random() < 0.4:
        phrase, claim = _phrase(rng, first)
        return Caption(frame(_FRAMES[rng.integers(len(_FRAMES))], phrase), claim)
    second = objects[order[1]]
    (phrase, claim), (other_phrase, other_claim) = _phrase(rng, first, "sc"), _phrase(rng, second, "sc")
    relation = _relation(first, second)
    if relation == 0 or rng.random() < 0.35:
        joint = ("and", "and", "next to", "with")[rng.integers(4)]
        relation = 0
    else:
        words = _RELATION_WORDS[RELATIONS[relation]]
        joint = words[0] if rng.random() < 0.6 else words[rng.integers(len(words))]
    start = "a photo of " if rng.random() < 0.3 else ""
    text = f"{start}{with_article(phrase)} {joint} {with_article(other_phrase)}"
    return Caption(text, claim, other_claim, relation)


def _relation(first: Seen, second: Seen) -> int:
    """Index into RELATIONS, 0 where neither axis clearly leads."""
    dx, dy = first.x - second.x, first.y - second.y
    if abs(dx) > 1.2 * abs(dy):
        return RELATIONS.index("left of" if dx < 0 else "right of")
    if abs(dy) > 1.2 * abs(dx):
        return RELATIONS.index("above" if dy < 0 else "below")
    return 0


def _phrase(rng: np.random.Generator, seen: Seen, said: str | None = None) -> tuple[str, Claim]:
    """A noun phrase and what it claims. `said`: which attributes, None = random."""
    if said is None:
        said = _ATTRIBUTES_SAID[rng.choice(len(_ATTRIBUTES_SAID), p=_ATTRIBUTE_ODDS)]
    if not seen.pattern_visible:
        said = said.replace("p", "") or "s"
    shape, colour, pattern = seen.claim
    claim = Claim(shape if "s" in said else ANY, colour if "c" in said else ANY, pattern if "p" in said else ANY)
    before: list[str] = []
    after = ""
    if "c" in said:
        before.append(COLOUR_NAMES[colour] + (" coloured" if rng.random() < 0.05 else ""))
    if "p" in said:
        name = PATTERNS[pattern]
        if "s" in said and rng.random() < 0.12:
            after = " " + _WITH_PATTERN[name]
        else:
            words = _PATTERN_WORDS[name]
            before.insert(0 if rng.random() < 0.75 else len(before), words[rng.integers(len(words))])
    if "s" not in said:
        words_only = " and ".join(before) if rng.random() < 0.3 else " ".join(before)
        return (f"something {words_only}" if rng.random() < 0.7 else f"{' '.join(before)} thing"), claim
    noun = SHAPES[shape]
    if rng.random() < 0.08 and before:
        return f"{noun} that is {' and '.join(before)}{after}", claim
    if rng.random() < 0.05:
        noun += "es" if noun == "cross" else "s"
    return " ".join([*before, noun]) + after, claim
