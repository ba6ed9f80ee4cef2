"""`bench gpu`: what a GPU serves, beside the same engine without Triton, and what of it arrives in the index.

    python -m load_tests.gpu --out gpu.json --models FOLDER [--models FOLDER ...] [--only PART ...]

Each folder holds a manifest. Figures are written to the JSON file as they come, and a part that fails is recorded and
left; pictures are drawn beside it at the end.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from load_tests.gpu_device import Gpu
from load_tests.gpu_parity import write_parity_files
from load_tests.gpu_pictures import FULL_HD, LARGE, SMALL, make_pictures
from load_tests.gpu_report import Report
from load_tests.gpu_served import gpu_machine
from load_tests.gpu_set import PARTS, Material, Options, SetBench, Size
from models.manifest import load_manifest
from models.settings import ModelSettings

#: Different pictures of each size; large ones take long to draw.
PICTURES: Mapping[Size, int] = {FULL_HD: 96, SMALL: 64, LARGE: 16}


def measure(
    console: Console,
    count: int = 4000,
    *,
    models: Sequence[Path | None] = (),
    out: Path = Path("gpu.json"),
    options: Options | None = None,
    numbers: Mapping[Size, int] = PICTURES,
    shown: Size = FULL_HD,
) -> dict[str, Any]:
    """The document of `out`. `models`: folders of manifests, else the models in use; `count`: events of the stream.

    `numbers`: pictures by size; `shown`: the size of all parts but "sizes".
    """
    options = options or Options(images=count)
    manifests = [load_manifest(folder) for folder in (models or [ModelSettings.load().model_folder])]
    logs = out.resolve().parent / f"{out.stem}-logs"
    logs.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="sightlog-bench-") as folder, Gpu() as gpu, gpu_machine():
        report = Report(out, console, {**vars(options), "gpu": gpu.name})
        material = _material(Path(folder), numbers, shown, parity="parity" in options.parts)
        for manifest in manifests:
            with report.part(manifest.name, "set"):
                SetBench(manifest, options, material, report, gpu, console, logs).run()
    report.finish()
    console.print(_table(report.document["bars"]))
    return report.document


def _material(work: Path, numbers: Mapping[Size, int], shown: Size, *, parity: bool) -> Material:
    made = {size: make_pictures(number, size) for size, number in numbers.items()}
    folders = {size: work / f"{size[0]}x{size[1]}" for size in made}
    for size, photos in made.items():
        folders[size].mkdir()
        for position, photo in enumerate(photos):
            (folders[size] / f"{position:03d}.jpg").write_bytes(photo.jpeg)
    return Material(folders, shown, made[shown], write_parity_files(work / "parity") if parity else [])


def _table(bars: Sequence[Mapping[str, Any]]) -> Table:
    table = Table("models", "figure", "value", "bar", "met")
    for bar in bars:
        met = "yes" if bar["met"] else "[red]no[/red]"
        table.add_row(bar["models"], bar["figure"], f"{bar['value']:g}", bar["bar"], met)
    return table


def main() -> None:
    """The command line."""
    default = Options()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="JSON file; pictures and logs come beside it")
    parser.add_argument("--models", type=Path, action="append", help="folder of a manifest; else the models in use")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--levels", type=int, nargs="+", default=list(default.levels), help="pictures under way")
    parser.add_argument("--seconds", type=float, default=default.seconds, help="for each level")
    parser.add_argument("--images", type=int, default=default.images, help="events of the stream")
    parser.add_argument("--cpu", action="store_true", help="the CPU profile and engine: tries the benchmark itself")
    said = parser.parse_args()
    options = Options(tuple(said.only), tuple(said.levels), said.seconds, said.images, said.cpu)
    measure(Console(stderr=True), models=said.models or (), out=said.out, options=options)


if __name__ == "__main__":
    main()
