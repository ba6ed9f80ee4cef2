"""Every MobileCLIP of open_clip: its name, its weights, and how its pictures and texts are prepared."""

from __future__ import annotations

from typing import Any

import open_clip
import pytest
import torch

from models.export.architectures import architectures, check_tokenizer, find_architecture, find_tag, picture_input
from models.export.errors import ExportError, UnknownArchitectureError

PLAIN = ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
OPENAI = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
#: dim, side in pixels, mean and std, interpolation
EXPECTED: dict[str, tuple[int, int, Any, str]] = {
    "MobileCLIP-S1": (512, 256, PLAIN, "bilinear"),
    "MobileCLIP-S2": (512, 256, PLAIN, "bilinear"),
    "MobileCLIP-B": (512, 224, PLAIN, "bilinear"),
    "MobileCLIP2-S0": (512, 256, PLAIN, "bilinear"),
    "MobileCLIP2-S2": (512, 256, PLAIN, "bilinear"),
    "MobileCLIP2-B": (512, 224, PLAIN, "bilinear"),
    "MobileCLIP2-S3": (768, 256, OPENAI, "bilinear"),
    "MobileCLIP2-S4": (768, 256, OPENAI, "bilinear"),
    "MobileCLIP2-L-14": (768, 224, OPENAI, "bicubic"),
}


def test_all_of_the_family_can_be_exported_and_nothing_else() -> None:
    assert set(architectures()) == set(EXPECTED)


@pytest.mark.parametrize("name", EXPECTED)
def test_dimension_size_and_picture_input_are_those_of_the_weights(name: str) -> None:
    dim, side, (mean, std), interpolation = EXPECTED[name]
    with torch.device("meta"):  # shapes without numbers
        model = open_clip.create_model(name, device="meta")
        assert model.visual(torch.zeros(1, 3, side, side)).shape == (1, dim)
        assert model.text(torch.zeros(1, 77, dtype=torch.int64)).shape == (1, dim)
    assert model.visual.image_size == (side, side)
    assert model.context_length == 77
    check_tokenizer(open_clip.get_model_config(name)["text_cfg"])
    for tag in open_clip.list_pretrained_tags_by_model(name):
        picture = picture_input(name, tag, {})
        assert (picture.mean, picture.std, picture.interpolation) == (mean, std, interpolation)


@pytest.mark.parametrize("name", ["mobileclip2-l-14", "MOBILECLIP2-L-14", "MobileCLIP2-L-14"])
def test_the_case_of_a_name_does_not_matter(name: str) -> None:
    assert find_architecture(name) == "MobileCLIP2-L-14"


@pytest.mark.parametrize("name", ["MobileCLIP-S0", "ViT-B-32", "MobileCLIP2_S0", ""])
def test_an_unknown_name_is_an_error_that_lists_the_known_ones(name: str) -> None:
    with pytest.raises(UnknownArchitectureError) as raised:
        find_architecture(name)
    assert all(known in str(raised.value) for known in EXPECTED)


def test_a_tag_is_found_however_it_is_written_and_the_first_is_the_default() -> None:
    assert find_tag("MobileCLIP-B", "DataCompDR-LT") == "datacompdr_lt"
    assert find_tag("MobileCLIP-B", None) == "datacompdr"
    with pytest.raises(UnknownArchitectureError, match="datacompdr, datacompdr_lt"):
        find_tag("MobileCLIP-B", "openai")


@pytest.mark.parametrize("foreign", ["ViT-B-16-SigLIP", "ViT-H-14-CLIPA", "xlm-roberta-base-ViT-B-32"])
def test_a_model_with_another_tokenizer_is_refused(foreign: str) -> None:
    with pytest.raises(ExportError, match="another tokenizer than CLIP"):
        check_tokenizer(open_clip.get_model_config(foreign)["text_cfg"])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"resize_mode": "squash"}, "'squash'; only 'shortest'"),
        ({"interpolation": "random"}, "--interpolation bilinear or bicubic"),
        ({"std": (1, 0, 1)}, "must be positive"),
        ({"mean": (0.5, 0.5)}, "three numbers"),
        ({"mean": 0.5}, "three numbers"),
        ({"std": None}, "three numbers"),
    ],
)
def test_a_picture_input_that_cannot_be_served_is_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ExportError, match=message):
        picture_input("MobileCLIP2-S0", "dfndr2b", given)
