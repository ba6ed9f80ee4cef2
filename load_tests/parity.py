"""`bench parity`: every path from file bytes to vectors beside the NumPy reference, step by step.

Also `python -m load_tests.parity`, for machines without the stack: it needs NumPy, Pillow and onnxruntime, no more.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from load_tests.parity_pictures import Picture, pictures
from models import reference
from models.decoding import ImageError
from models.manifest import ModelManifest, load_manifest
from models.preprocessing import map_boxes, plan_letterbox
from models.reference import ReferenceViews
from sightlog.errors import SightlogError
from triton_repo.sessions import open_session
from triton_repo.steps import ImageSteps, Prepared

if TYPE_CHECKING:
    from rich.console import Console

UInt8 = npt.NDArray[np.uint8]
Float32 = npt.NDArray[np.float32]
#: float32 [n, 3, S, S], normalised -> float32 [n, dim], length 1.
Tower = Callable[[Float32], Float32]
Prepare = Callable[[ModelManifest, Sequence[bytes]], list[Prepared]]

MUST_COSINE = 0.999
#: Above it a tower tells nothing apart, and a high cosine to the reference says nothing.
MOST_PAIRWISE_COSINE = 0.95
PATHS = ("python_cpu", "dali_cpu", "dali_gpu")
STEPS = ("decode", "cap", "letterbox", "centre_crop", "object_crop", "boxes", "clip_input")
S0 = "mobileclip2_s0"
_BATCH = 8


class ParityError(SightlogError):
    """A path gives something that cannot be compared: another shape, or a refusal."""


@dataclass
class Difference:
    """Maximum and mean of absolute differences, in grey levels, pixels (boxes) or units of the model (input)."""

    largest: float = 0.0
    total: float = 0.0
    values: int = 0

    def add(self, what: str, found: Any, expected: Any) -> None:
        """Raises ParityError where the shapes differ."""
        if np.shape(found) != np.shape(expected):
            raise ParityError(f"{what} has the shape {np.shape(found)}, the reference {np.shape(expected)}")
        apart = np.abs(np.asarray(found, np.float64) - expected)
        self.largest = max(self.largest, float(apart.max(initial=0)))
        self.total += float(apart.sum())
        self.values += apart.size


@dataclass(frozen=True)
class Truth:
    """The reference of one picture for one model. `crops`: uint8 [n, S, S, 3]; `inputs`: centre first, then crops."""

    views: ReferenceViews
    crops: UInt8
    inputs: npt.NDArray[np.float64]


def measure(
    console: Console | None, count: int = 12, *, devices: Sequence[str] = PATHS, s0: Path | None = None
) -> dict[str, Any]:
    """Differences and cosines to the reference over `count` generated photos and one of each kind of file.

    `<path>_<step>_max`, `_mean`: absolute difference. `<path>_<model>_<global|crop>_cosine_min`, `_mean`: to the vector
    of the reference. `<model>_pairwise_cosine_mean`: between pictures, a tower that sees nothing has 1. A path or model
    whose packages or device are missing has one key that says so. `s0`: image tower of MobileCLIP2-S0 as ONNX, where
    open_clip is not installed. Raises ParityError where a path gives other shapes than the reference.
    """

    def say(text: str) -> None:
        if console:
            console.print(text, style="dim")

    shown = pictures(count)
    paths = {name: _path(name) for name in devices}
    manifests, towers = _models(s0)
    figures: dict[str, Any] = {"pictures": len(shown), "boxes": sum(len(picture.boxes) for picture in shown)}
    figures |= {name: prepare for name, prepare in paths.items() if isinstance(prepare, str)}
    figures |= {name: tower for name, tower in towers.items() if isinstance(tower, str)}
    differences: dict[str, Difference] = defaultdict(Difference)
    cosines: dict[str, list[float]] = defaultdict(list)
    for model, manifest in manifests.items():
        tower = towers[model]
        centres = []
        for batch in _batches(shown):
            say(f"{model}: {', '.join(picture.name for picture in batch)}")
            truths = [_truth(picture, manifest) for picture in batch]
            vectors = [None if isinstance(tower, str) else tower(truth.inputs.astype(np.float32)) for truth in truths]
            centres += [rows[0] for rows in vectors if rows is not None]
            for name, prepare in paths.items():
                if isinstance(prepare, str):
                    continue
                files = [picture.data for picture in batch]
                decoded = prepare(_uncapped(manifest), files)
                for picture, truth, rows, all_pixels, prepared in zip(
                    batch, truths, vectors, decoded, prepare(manifest, files), strict=True
                ):
                    label = f"{name}: {picture.name}: "
                    differences[f"{name}_decode"].add(label + "decode", all_pixels.original, truth.views.full)
                    inputs = _compare(name, label, picture, manifest, truth, prepared, differences)
                    if rows is not None and not isinstance(tower, str):
                        agreement = (tower(inputs) * rows).sum(axis=1)
                        cosines[f"{name}_{model}_global"].append(float(agreement[0]))
                        cosines[f"{name}_{model}_crop"] += agreement[1:].tolist()
        if centres:
            figures[f"{model}_pairwise_cosine_mean"] = round(_pairwise(np.stack(centres)), 4)
    for step, difference in differences.items():
        figures[f"{step}_max"] = round(difference.largest, 6)
        figures[f"{step}_mean"] = round(difference.total / difference.values, 6)
    for pair, values in cosines.items():
        figures[f"{pair}_cosine_min"] = round(min(values), 6)
        figures[f"{pair}_cosine_mean"] = round(sum(values) / len(values), 6)
    return figures | _verdict(figures)


def _compare(
    name: str,
    label: str,
    picture: Picture,
    manifest: ModelManifest,
    truth: Truth,
    prepared: Prepared,
    differences: dict[str, Difference],
) -> Float32:
    """Adds the differences of one picture on one path; -> what its tower gets, centre first."""
    steps = ImageSteps(manifest)
    crops = np.empty_like(truth.crops)
    steps.crops(prepared.original, prepared.size, picture.boxes, crops)
    inputs = steps.clip_input(np.concatenate([prepared.centre[None], crops]))
    for step, found, expected in (
        ("cap", prepared.original, truth.views.original),
        ("letterbox", prepared.letterboxed, truth.views.letterboxed),
        ("centre_crop", prepared.centre, truth.views.centre),
        ("object_crop", crops, truth.crops),
        ("boxes", *_boxes(picture.boxes, manifest, truth.views, prepared)),
        ("clip_input", inputs, truth.inputs),
    ):
        differences[f"{name}_{step}"].add(label + step, found, expected)
    return inputs


def _boxes(boxes: Float32, manifest: ModelManifest, views: ReferenceViews, prepared: Prepared) -> tuple[Any, Any]:
    """Boxes as a detector finds them on the canvas, mapped back by the path and by the reference."""
    height, width = views.original.shape[:2]
    canvas, centred = manifest.detector.input_size, manifest.detector.letterbox == "center"
    found = reference.to_canvas(boxes, views.size, (width, height), canvas, centred=centred).astype(np.float32)
    expected = reference.to_original(found, (width, height), views.size, canvas, centred=centred)
    plan = plan_letterbox(*prepared.original.shape[1::-1], canvas, centred=centred)
    return map_boxes(found, plan, (int(prepared.size[0]), int(prepared.size[1]))), expected


def _truth(picture: Picture, manifest: ModelManifest) -> Truth:
    views = reference.views(picture.data, manifest)
    crops = reference.object_crops(views, picture.boxes.astype(np.float64), manifest)
    seen = np.concatenate([views.centre[None], crops])
    return Truth(views, crops, reference.normalise(seen, manifest.clip.mean, manifest.clip.std))


def _path(name: str) -> Prepare | str:
    """How a path prepares pictures, or why it cannot be measured here."""
    if name == "python_cpu":
        return lambda manifest, files: [ImageSteps(manifest).prepare(data) for data in files]
    if importlib.util.find_spec("nvidia") is None or importlib.util.find_spec("nvidia.dali") is None:
        return "not measured: install sightlog[dali]"
    from triton_repo.dali_pipeline import DaliPreparation, gpu_present

    if name == "dali_gpu" and not gpu_present():
        return "not measured: there is no NVIDIA GPU here"

    def prepare(manifest: ModelManifest, files: Sequence[bytes]) -> list[Prepared]:
        rows = DaliPreparation(manifest, "gpu" if name == "dali_gpu" else "cpu", _BATCH).prepare(files)
        for row in rows:
            if isinstance(row, ImageError):
                raise ParityError(f"{name} refuses a picture: {row}") from row
        return [row for row in rows if isinstance(row, Prepared)]

    return prepare


def _models(s0: Path | None) -> tuple[dict[str, ModelManifest], dict[str, Tower | str]]:
    """By name: how pictures are prepared, and the tower, or why there is none."""
    tiny = load_manifest()
    # What open_clip says of MobileCLIP2-S0; its pictures are prepared, and compared, with or without its weights.
    clip = replace(
        tiny.clip, name="MobileCLIP2-S0", image_size=256, mean=(0.0,) * 3, std=(1.0,) * 3, interpolation="bilinear"
    )
    manifests = {"tiny": tiny, S0: replace(tiny, clip=clip)}
    towers: dict[str, Tower | str] = {"tiny": _onnx_tower(tiny.path(tiny.clip.image_onnx))}
    towers[S0] = _onnx_tower(s0) if s0 else _random_tower("MobileCLIP2-S0")
    return manifests, towers


def _onnx_tower(path: Path) -> Tower:
    session = open_session(path, threads=1)

    def embed(images: Float32) -> Float32:
        vectors: Float32 = session.run(["embeddings"], {"images": images})[0]
        return vectors

    return embed


def _random_tower(name: str) -> Tower | str:
    """The image tower with random weights that tell pictures apart."""
    try:
        import torch

        from models.export.random_weights import calibrated_model
    except ImportError:
        return "not measured: install sightlog[export]"
    model = calibrated_model(name)

    def embed(images: Float32) -> Float32:
        with torch.inference_mode():
            vectors: Float32 = model.encode_image(torch.from_numpy(images), normalize=True).numpy()
        return vectors

    return embed


def _uncapped(manifest: ModelManifest) -> ModelManifest:
    return replace(manifest, preprocessing=replace(manifest.preprocessing, original_cap=0))


def _batches(shown: Sequence[Picture]) -> Iterator[Sequence[Picture]]:
    for start in range(0, len(shown), _BATCH):
        yield shown[start : start + _BATCH]


def _pairwise(vectors: Float32) -> float:
    cosines = vectors @ vectors.T
    return float(cosines[~np.eye(len(cosines), dtype=bool)].mean())


def _verdict(figures: dict[str, Any]) -> dict[str, Any]:
    worst = min(value for key, value in figures.items() if key.endswith("cosine_min"))
    blind = any(value > MOST_PAIRWISE_COSINE for key, value in figures.items() if key.endswith("pairwise_cosine_mean"))
    return {"min_cosine": worst, "pass": worst >= MUST_COSINE and not blind}


def main() -> None:
    """One JSON object on standard output; ends with 1 where it does not pass."""
    parser = argparse.ArgumentParser(prog="python -m load_tests.parity", description=__doc__)
    parser.add_argument("--device", choices=["cpu", "gpu", "all"], default="all", help="where DALI runs")
    parser.add_argument("--images", type=int, default=12, help="generated photos (default 12)")
    parser.add_argument("--s0", type=Path, help="image tower of MobileCLIP2-S0 as ONNX, if open_clip is not installed")
    given = parser.parse_args()
    devices = [name for name in PATHS if name == "python_cpu" or given.device in ("all", name.removeprefix("dali_"))]
    figures = measure(None, given.images, devices=devices, s0=given.s0)
    print(json.dumps({"bench": "parity", **figures}, indent=1))
    sys.exit(0 if figures["pass"] else 1)


if __name__ == "__main__":
    main()
