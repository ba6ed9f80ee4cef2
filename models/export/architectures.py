"""The MobileCLIPs that open_clip knows, and how their pictures and texts are prepared."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import open_clip

from models.export.errors import ExportError, UnknownArchitectureError

_VOCABULARY = 49408  # tokens of the CLIP BPE, marks included
_FAMILY = "mobileclip"


@dataclass(frozen=True)
class PictureInput:
    """How a picture is scaled to the encoder's size and normalised; RGB, of values in 0..1."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    interpolation: Literal["bilinear", "bicubic"]


def architectures() -> tuple[str, ...]:
    """Names of all MobileCLIP and MobileCLIP2 of this open_clip."""
    return tuple(name for name in open_clip.list_models() if name.lower().startswith(_FAMILY))


def find_architecture(name: str) -> str:
    """The name as open_clip spells it, whatever the case. Raises UnknownArchitectureError."""
    known = {one.lower(): one for one in architectures()}
    if name.lower() not in known:
        raise UnknownArchitectureError(
            f"open_clip {open_clip.__version__} has no MobileCLIP {name!r}; it has {', '.join(known.values())}"
        )
    return known[name.lower()]


def find_tag(name: str, tag: str | None) -> str:
    """The tag as open_clip spells it; None = the first of the architecture. Raises UnknownArchitectureError."""
    tags: list[str] = open_clip.list_pretrained_tags_by_model(name)
    wanted = tags[:1] if tag is None else [known for known in tags if known == tag.lower().replace("-", "_")]
    if not wanted:
        raise UnknownArchitectureError(f"open_clip has no weights {tag!r} of {name}; it has {', '.join(tags)}")
    return wanted[0]


def picture_input(name: str, tag: str, given: Mapping[str, Any]) -> PictureInput:
    """What `given` says (keys of open_clip's `preprocess_cfg`), completed by what the tag was trained with.

    A local file says nothing of this; open_clip itself then takes the values of OpenAI's CLIP, which are wrong here.
    Raises ExportError where the product's one way to scale pictures, centre crop included, does not do.
    """
    values = {**open_clip.get_pretrained_cfg(name, tag), **given}
    if values["resize_mode"] != "shortest":
        raise ExportError(f"the checkpoint scales pictures by {values['resize_mode']!r}; only 'shortest' is supported")
    if values["interpolation"] not in ("bilinear", "bicubic"):
        raise ExportError(
            f"the checkpoint interpolates by {values['interpolation']!r}; choose --interpolation bilinear or bicubic"
        )
    mean, std = _three(values["mean"]), _three(values["std"])
    if min(std) <= 0:
        raise ExportError(f"std is {std}; its values must be positive")
    return PictureInput(mean, std, values["interpolation"])


def check_tokenizer(text: Mapping[str, Any]) -> None:
    """`text`: the `text_cfg` of a model. Raises ExportError where its tokens are not those of CLIP's BPE."""
    foreign = {key: text[key] for key in ("hf_model_name", "hf_tokenizer_name", "tokenizer_kwargs") if text.get(key)}
    if text.get("vocab_size", _VOCABULARY) != _VOCABULARY:
        foreign["vocab_size"] = text["vocab_size"]
    if foreign:
        found = ", ".join(f"{key} {value}" for key, value in foreign.items())
        raise ExportError(
            f"the model wants another tokenizer than CLIP's byte-pair encoding ({found}), and Sightlog has no other; "
            f"choose one of {', '.join(architectures())}"
        )


def _three(values: Sequence[float]) -> tuple[float, float, float]:
    try:
        red, green, blue = map(float, values)
    except (TypeError, ValueError):
        raise ExportError(f"mean or std is {values}; it must have three numbers") from None
    return red, green, blue
