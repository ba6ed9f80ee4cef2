"""The figures survive whatever part fails, and bars and pictures follow from them."""

from __future__ import annotations

import io
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from xml.etree import ElementTree

import pytest
from rich.console import Console

from load_tests.charts import lines, stacked_bars
from load_tests.gpu_report import Report, breakdown, judged, pictures

FIGURES = {
    "ceiling": {"stages": {"detect": 0.3, "embed": 0.8}, "levels": [{"in_flight": 32, "images_per_s": 700}]},
    "fused": {
        "ratio": 0.96,
        "images_per_s": 820,
        "one_at_a_time": {"p50_ms": 13.0},
        "levels": [{"in_flight": 32, "images_per_s": 500}, {"in_flight": 256, "images_per_s": 820}],
    },
    "stream": {
        "images_per_s": 640,
        "inline": {"agent_cpu_ms_per_image": 2.2, "cpu_ms_per_image": {"worker-vision": 2.2, "kafka": 0.4}},
    },
}
S0 = "MobileCLIP2-S0+yolox-s"


@pytest.fixture
def report(tmp_path: Path) -> Report:
    return Report(tmp_path / "gpu.json", Console(file=io.StringIO()), {"seconds": 3})


def test_the_file_is_whole_after_every_figure(report: Report) -> None:
    assert json.loads(report.path.read_text())["sets"] == {}
    report.add(S0, "fused", FIGURES["fused"])
    assert json.loads(report.path.read_text())["sets"][S0]["fused"]["ratio"] == 0.96


def test_figures_of_several_threads_all_arrive(report: Report) -> None:
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda number: report.add(S0, str(number), number), range(60)))

    assert len(json.loads(report.path.read_text())["sets"][S0]) == 60


def test_a_part_that_fails_is_recorded_and_the_next_goes_on(report: Report) -> None:
    with report.part(S0, "ensemble"):
        raise RuntimeError("CUDA error")
    with report.part(S0, "fused"):
        report.add(S0, "fused", FIGURES["fused"])
    report.finish()

    document = json.loads(report.path.read_text())
    assert "CUDA error" in document["errors"][f"{S0}: ensemble"]
    assert document["bars"]


def test_an_interrupt_is_not_taken_for_a_failed_part(report: Report) -> None:
    with pytest.raises(KeyboardInterrupt), report.part(S0, "fused"):
        raise KeyboardInterrupt


def test_bars_are_judged_for_the_figures_that_there_are() -> None:
    verdicts = {row["figure"]: (row["value"], row["met"]) for row in judged({S0: FIGURES})}

    assert verdicts["fused through Triton / in process"] == (0.96, True)
    assert verdicts["through Triton, images/s"] == (820, True)
    assert verdicts["event to searchable, images/s"] == (640, False)
    assert verdicts["one image at a time, p50 ms"] == (13.0, False)
    assert verdicts["agent CPU, inline, ms an image"] == (2.2, True)
    assert "agent CPU, claim check, ms an image" not in verdicts


def test_each_tower_has_bars_of_its_own() -> None:
    rows = judged({"MobileCLIP2-S2+yolox-s": FIGURES, "tiny": FIGURES})
    limits = {(row["models"], row["bar"]) for row in rows if row["figure"] == "through Triton, images/s"}

    assert limits == {("MobileCLIP2-S2+yolox-s", ">= 450")}


def test_the_breakdown_names_stages_and_processes() -> None:
    assert breakdown(FIGURES) == {
        "engine, in process": {"detect": 0.3, "embed": 0.8},
        "processors, inline": {"vision agent": 2.2, "kafka": 0.4},
    }


def test_pictures_are_drawn_beside_the_file(report: Report) -> None:
    for name, figures in FIGURES.items():
        report.add(S0, name, figures)
    report.finish()

    for name in ("stages", "load"):
        drawn = ElementTree.fromstring(report.path.with_name(f"gpu-{name}.svg").read_text())
        assert any(S0 in (text.text or "") for text in drawn.iter("{http://www.w3.org/2000/svg}text"))
    assert pictures({}) == {}


def test_stacked_bars_have_the_lengths_of_their_values() -> None:
    drawn = ElementTree.fromstring(stacked_bars("a <title>", "ms", {"one": {"x": 1.0, "y": 3.0}, "two": {"x": 2.0}}))
    bars = [r for r in drawn.iter("{http://www.w3.org/2000/svg}rect") if r.get("height") == "24"]
    widths = [float(bar.attrib["width"]) for bar in bars]

    assert widths[1] == pytest.approx(3 * widths[0], abs=0.2)
    assert widths[2] == pytest.approx(2 * widths[0], abs=0.2)
    assert float(bars[1].attrib["x"]) == pytest.approx(float(bars[0].attrib["x"]) + widths[0], abs=0.2)
    assert bars[0].get("fill") == bars[2].get("fill") != bars[1].get("fill")
    mark = next(text for text in drawn.iter("{http://www.w3.org/2000/svg}text") if text.text == "4")
    assert float(mark.attrib["x"]) == pytest.approx(float(bars[1].attrib["x"]) + widths[1], abs=0.2)


def test_lines_rise_with_their_values() -> None:
    drawn = ElementTree.fromstring(lines("load", "in flight", "images/s", {"fused": [(32, 100), (64, 200)]}))
    low, high = list(drawn.iter("{http://www.w3.org/2000/svg}circle"))

    assert float(low.attrib["cx"]) < float(high.attrib["cx"])
    assert float(low.attrib["cy"]) > float(high.attrib["cy"])
