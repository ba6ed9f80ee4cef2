"""The GPU benchmark itself, tried with the CPU profile: a real Triton, the engine beside it, figures in a file."""

from __future__ import annotations

import json
from pathlib import Path

from rich.console import Console

from load_tests.gpu import measure
from load_tests.gpu_pictures import SMALL
from load_tests.gpu_set import Options


def test_figures_of_triton_and_of_the_engine_beside_it_come_into_the_file(tmp_path: Path) -> None:
    options = Options(parts=("fused", "sizes", "ready"), levels=(1, 2), seconds=1.0, cpu=True)
    measure(Console(stderr=True), out=tmp_path / "gpu.json", options=options, numbers={SMALL: 3}, shown=SMALL)

    document = json.loads((tmp_path / "gpu.json").read_text())
    tiny = document["sets"]["tiny"]
    assert tiny["ceiling"]["images_per_s"] > 0
    assert tiny["fused"]["images_per_s"] > 0
    assert tiny["fused"]["failures"] == 0
    assert tiny["fused"]["mean_objects"] > 0
    assert tiny["fused"]["ceiling_before_after"][1] > 0
    assert [level["in_flight"] for level in tiny["fused"]["levels"]] == [1, 2]
    assert tiny["ready"]["restart_s"] > 0
    assert (tmp_path / "gpu-load.svg").exists()
    # No large pictures were made: that part is lost, and told, and the others are not.
    assert list(document["errors"]) == ["tiny: sizes"]
    assert tiny["640x480"]["ratio"] > 0
