"""`bench parity`: every path from file bytes to vectors beside the NumPy reference, step by step.

Also `python -m load_tests.parity`, for machines without the stack: it needs NumPy, Pillow and onnxruntime, no more.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
import tempfile
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
_BATCH = 8


class ParityError(SightlogError):
    """A path gives something that cannot be compared: another shape, or a refusal."""


@dataclass(frozen=True)
class Model:
    """How pictures are prepared for a tower, and the tower, if it can be had here."""

    name: str
    manifest: ModelManifest
    tower: Tower | None


@dataclass
class Difference:
    """Maximum and mean of absolute differences, in grey levels, pixels (boxes) or units of the model (input)."""

    largest: float = 0.0
    total: float = 0.0
    values: int = 0

    def add(self, found: Any, expected: Any) -> None:
        """Two arrays of one shape."""
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
    vectors: Float32 | None


class Comparison:
    """Collects how far every path is from the reference."""

    def __init__(self) -> None:
        self.differences: dict[str, Difference] = defaultdict(Difference)
        self.cosines: dict[str, list[float]] = defaultdict(list)

    def add(self, path: str, picture: Picture, model: Model, truth: Truth, prepared: Prepared) -> None:
        """One picture as one path prepared it. Raises ParityError."""
        steps = ImageSteps(model.manifest)
        crops = np.empty_like(truth.crops)
        steps.crops(prepared.original, prepared.size, picture.boxes, crops)
        inputs = steps.clip_input(np.concatenate([prepared.centre[None], crops]))
        for step, found, expected in (
            ("cap", prepared.original, truth.views.original),
            ("letterbox", prepared.letterboxed, truth.views.letterboxed),
            ("centre_crop", prepared.centre, truth.views.centre),
            ("object_crop", crops, truth.crops),
            ("boxes", *_boxes(picture.boxes, model.manifest, truth.views, prepared)),
            ("clip_input", inputs, truth.inputs),
        ):
            self.add_step(path, step, picture, found, expected)
        if model.tower and truth.vectors is not None:
            agreement = (model.tower(inputs) * truth.vectors).sum(axis=1)
            self.cosines[f"{path}_{model.name}_global"].append(float(agreement[0]))
            self.cosines[f"{path}_{model.name}_crop"] += agreement[1:].tolist()

    def add_step(self, path: str, step: str, picture: Picture, found: Any, expected: Any) -> None:
        """Raises ParityError where the shapes differ."""
        if np.shape(found) != np.shape(expected):
            raise ParityError(
                f"{path} gives a {step} of shape {np.shape(found)} for {picture.name}, the reference "
                f"{np.shape(expected)}; see docs/preprocessing.md for the geometry"
            )
        self.differences[f"{path}_{step}"].add(found, expected)

    def figures(self) -> dict[str, float]:
        """Flat, in the order of collection."""
        found = {}
        for step, difference in self.differences.items():
            found[f"{step}_max"] = round(difference.largest, 6)
            found[f"{step}_mean"] = round(difference.total / difference.values, 6)
        for pair, values in self.cosines.items():
            found[f"{pair}_cosine_min"] = round(min(values), 6)
            found[f"{pair}_cosine_mean"] = round(sum(values) / len(values), 6)
        return found


def measure(
    console: Console | None, count: int = 12, *, devices: Sequence[str] = PATHS, s0: Path | None = None
) -> dict[str, Any]:
    """Differences and cosines to the reference over `count` generated photos and one of each kind of file.

    `<path>_<step>_max`, `_mean`: absolute difference. `<path>_<model>_<global|crop>_cosine_min`, `_mean`: to the vector
    of the reference. `<model>_pairwise_cosine_mean`: between pictures, a tower that sees nothing has 1. A path or model
    whose packages or device are missing has one key that says so. `s0`: image tower of MobileCLIP2-S0 as ONNX, where
    open_clip is not installed. Raises ParityError where a path gives other shapes than the reference.
    """
    shown = pictures(count)
    paths = {name: _path(name) for name in devices}
    models = _models(s0)
    comparison = Comparison()
    centres: dict[str, list[Float32]] = defaultdict(list)
    for batch in _batches(shown):
        if console:
            console.print(", ".join(picture.name for picture in batch), style="dim")
        files = [picture.data for picture in batch]
        full = [reference.decode(data) for data in files]
        for name, prepare in paths.items():
            if callable(prepare):
                for picture, found, expected in zip(batch, prepare(_uncapped(models[0]), files), full, strict=True):
                    comparison.add_step(name, "decode", picture, found.original, expected)
        for model in models:
            truths = [_truth(picture, pixels, model) for picture, pixels in zip(batch, full, strict=True)]
            centres[model.name] += [truth.vectors[0] for truth in truths if truth.vectors is not None]
            for name, prepare in paths.items():
                if callable(prepare):
                    for row in zip(batch, truths, prepare(model.manifest, files), strict=True):
                        comparison.add(name, row[0], model, *row[1:])
    figures: dict[str, Any] = {"pictures": len(shown), "boxes": sum(len(picture.boxes) for picture in shown)}
    figures |= {name: prepare for name, prepare in paths.items() if isinstance(prepare, str)}
    figures |= {model.name: "not measured: install sightlog[export]" for model in models if model.tower is None}
    figures |= {f"{name}_pairwise_cosine_mean": round(_pairwise(rows), 4) for name, rows in centres.items() if rows}
    figures |= comparison.figures()
    return figures | _verdict(figures)


def _boxes(boxes: Float32, manifest: ModelManifest, views: ReferenceViews, prepared: Prepared) -> tuple[Any, Any]:
    """Boxes as a detector finds them on the canvas, mapped back by the path and by the reference."""
    height, width = views.original.shape[:2]
    canvas, centred = manifest.detector.input_size, manifest.detector.letterbox == "center"
    found = reference.to_canvas(boxes, views.size, (width, height), canvas, centred=centred).astype(np.float32)
    expected = reference.to_original(found, (width, height), views.size, canvas, centred=centred)
    height, width = prepared.original.shape[:2]
    plan = plan_letterbox(width, height, canvas, centred=centred)
    return map_boxes(found, plan, (int(prepared.size[0]), int(prepared.size[1]))), expected


def _truth(picture: Picture, full: UInt8, model: Model) -> Truth:
    clip = model.manifest.clip
    views = reference.views(full, model.manifest)
    crops = reference.object_crops(views, picture.boxes, model.manifest)
    inputs = reference.normalise(np.concatenate([views.centre[None], crops]), clip.mean, clip.std)
    return Truth(views, crops, inputs, model.tower(inputs.astype(np.float32)) if model.tower else None)


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


def _models(s0: Path | None) -> tuple[Model, ...]:
    tiny = load_manifest()
    # What open_clip says of MobileCLIP2-S0; its pictures are prepared, and compared, with or without its weights.
    clip = replace(
        tiny.clip, name="MobileCLIP2-S0", image_size=256, mean=(0.0,) * 3, std=(1.0,) * 3, interpolation="bilinear"
    )
    return (
        Model("tiny", tiny, _onnx_tower(tiny.path(tiny.clip.image_onnx))),
        Model(
            "mobileclip2_s0",
            replace(tiny, clip=clip),
            _onnx_tower(s0) if s0 else _random_tower(clip.name, clip.image_size),
        ),
    )


def _onnx_tower(path: Path) -> Tower:
    session = open_session(path, threads=1)

    def embed(images: Float32) -> Float32:
        vectors: Float32 = session.run(["embeddings"], {"images": images})[0]
        return vectors

    return embed


def _random_tower(name: str, size: int) -> Tower | None:
    """The image tower with random weights that tell pictures apart, exported; None without the packages for it."""
    try:
        import torch
        from timm.utils import reparameterize_model

        from models.export.quiet import quiet
        from models.export.random_weights import calibrated_model
        from models.export.towers import write_tower
    except ImportError:
        return None
    with quiet(), tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "clip_image.onnx"
        visual = reparameterize_model(calibrated_model(name).visual)
        write_tower(visual, torch.rand(2, 3, size, size), "images", file, "fp32")
        return _onnx_tower(file)


def _uncapped(model: Model) -> ModelManifest:
    return replace(model.manifest, preprocessing=replace(model.manifest.preprocessing, original_cap=0))


def _batches(shown: Sequence[Picture]) -> Iterator[Sequence[Picture]]:
    for start in range(0, len(shown), _BATCH):
        yield shown[start : start + _BATCH]


def _pairwise(rows: list[Float32]) -> float:
    vectors = np.stack(rows)
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
