"""Writes the tiny models as ONNX with fp16 weights, and the manifest: `python -m models.tiny.export`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import onnx
import torch
from torch import nn

from models.detectors.end2end import Suppression, add_end2end
from models.export.fp16 import store_weights_as_fp16
from models.manifest import (
    TINY_FOLDER,
    ClipSpec,
    DetectorSpec,
    ModelManifest,
    PreprocessingSpec,
    write_manifest,
)
from models.scenes import SHAPES
from models.tiny.clip import CONTEXT_LENGTH, DIM, IMAGE_SIZE, ImageTower, TextTower
from models.tiny.detector import INPUT_SIZE, Detector
from models.tokenizer import PAD, ClipTokenizer

OPSET = 17  # the newest where ReduceMax takes its axes as an attribute, as End2End writes them
#: Generated scenes keep a recall of 0.99 up to here, and photographs, which it never saw, give far fewer false shapes.
SCORE_THRESHOLD = 0.65
CHECKPOINTS = Path("build")

CLIP = ClipSpec(
    name="tiny-clip",
    image_onnx="clip_image.onnx",
    text_onnx="clip_text.onnx",
    dim=DIM,
    image_size=IMAGE_SIZE,
    mean=(0.0, 0.0, 0.0),
    std=(1.0, 1.0, 1.0),
    interpolation="bilinear",
    tokenizer="clip-bpe",
    context_length=CONTEXT_LENGTH,
    pad_id=PAD,
)
PREPROCESSING = PreprocessingSpec(original_cap=1920, crop_margin=0.12, crop="square")


def detector_spec(score_threshold: float) -> DetectorSpec:
    """What the exported detector is."""
    return DetectorSpec(
        name="tiny-detector",
        onnx="detector.onnx",
        input_size=INPUT_SIZE,
        colour_order="rgb",
        value_range=(0.0, 1.0),
        letterbox="center",
        pad_value=114,
        classes=SHAPES,
        max_detections=100,
        score_threshold=score_threshold,
    )


def export(
    folder: Path,
    image: ImageTower,
    text: TextTower,
    detector: Detector,
    score_threshold: float = SCORE_THRESHOLD,
) -> ModelManifest:
    """Writes three ONNX files and `manifest.json` into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    spec = detector_spec(score_threshold)
    tokens = torch.from_numpy(ClipTokenizer(CONTEXT_LENGTH).encode(["a red circle", "something"]))
    picture = torch.rand(2, 3, IMAGE_SIZE, IMAGE_SIZE)
    _write_onnx(image, picture, folder / CLIP.image_onnx, ["images"], ["embeddings"])
    _write_onnx(text, tokens, folder / CLIP.text_onnx, ["tokens"], ["embeddings"])
    scene = torch.rand(2, 3, INPUT_SIZE, INPUT_SIZE)
    _write_onnx(detector, scene, folder / spec.onnx, ["images"], ["boxes", "scores"])
    model = onnx.load(str(folder / spec.onnx))
    suppression = Suppression(max_detections=spec.max_detections, score_threshold=score_threshold)
    onnx.save(add_end2end(model, "boxes", "scores", suppression), str(folder / spec.onnx))
    for file in (CLIP.image_onnx, CLIP.text_onnx, spec.onnx):
        graph = onnx.load(str(folder / file))
        store_weights_as_fp16(graph)
        onnx.checker.check_model(graph)
        onnx.save(graph, str(folder / file))
    return write_manifest(folder, "tiny", CLIP, spec, PREPROCESSING)


def _write_onnx(module: nn.Module, example: Any, path: Path, inputs: list[str], outputs: list[str]) -> None:
    module = module.to("cpu").float().eval()
    axes = {name: {0: "batch"} for name in [*inputs, *outputs]}
    torch.onnx.export(
        module,
        (example,),
        str(path),
        input_names=inputs,
        output_names=outputs,
        dynamic_axes=axes,
        opset_version=OPSET,
        dynamo=False,  # the tracing exporter needs no further package and folds batch norms
    )


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoints", type=Path, default=CHECKPOINTS, help="folder that models.tiny.train wrote")
    parser.add_argument("--untrained", action="store_true", help="export random weights, to try the plumbing")
    parser.add_argument("--score-threshold", type=float, default=SCORE_THRESHOLD)
    parser.add_argument("--out", type=Path, default=TINY_FOLDER)
    options = parser.parse_args()
    torch.manual_seed(0)
    image, text, detector = ImageTower(), TextTower(), Detector()
    if not options.untrained:
        towers = torch.load(options.checkpoints / "clip.pt", map_location="cpu", weights_only=True)
        image.load_state_dict(towers["image"])
        text.load_state_dict(towers["text"])
        weights = torch.load(options.checkpoints / "detector.pt", map_location="cpu", weights_only=True)
        detector.load_state_dict(weights["detector"])
    manifest = export(options.out, image, text, detector, options.score_threshold)
    total = sum(manifest.path(file).stat().st_size for file in manifest.files)
    print(f"{manifest.name} {manifest.digest}: {len(manifest.files)} files, {total / 1e6:.2f} MB in {options.out}")


if __name__ == "__main__":
    main()
