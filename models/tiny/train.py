"""Trains the tiny models on generated scenes: `python -m models.tiny.train [--part clip|detector] [--minutes N]`."""

from __future__ import annotations

import argparse
import os
import platform
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import PIL
import torch

from models.tiny.clip_training import train_clip
from models.tiny.detector_training import train_detector
from models.tiny.schedule import Schedule

PARTS = ("clip", "detector")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--part", choices=[*PARTS, "all"], default="all", help="all = one after the other")
    parser.add_argument("--minutes", type=float, default=20, help="wall time for each part")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or another torch device")
    parser.add_argument("--workers", type=int, default=max(1, (os.cpu_count() or 2) - 1), help="drawing processes")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("build"), help="folder for the checkpoints")
    options = parser.parse_args()
    name = options.device
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(name)
    options.out.mkdir(parents=True, exist_ok=True)
    for part in PARTS if options.part == "all" else (options.part,):
        arguments = f"--part {part} --minutes {options.minutes:g} --workers {options.workers} --seed {options.seed}"
        _write(f"[{part}] python -m models.tiny.train {arguments} on {_description(device)}; {_versions()}")
        weights = _train(part, Schedule(part, options.minutes, _write), device, options.workers, options.seed)
        torch.save(weights, options.out / f"{part}.pt")


def _train(part: str, schedule: Schedule, device: torch.device, workers: int, seed: int) -> dict[str, Any]:
    if part == "detector":
        return {"detector": train_detector(schedule, device, workers, seed).state_dict()}
    image, text = train_clip(schedule, device, workers, seed)
    return {"image": image.state_dict(), "text": text.state_dict()}


def _description(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"{device} ({os.cpu_count()} cores)"


def _versions() -> str:
    packages = (torch, np, onnx, PIL)
    return ", ".join([f"python {platform.python_version()}", *(f"{p.__name__} {p.__version__}" for p in packages)])


def _write(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    main()
