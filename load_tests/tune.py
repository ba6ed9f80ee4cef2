"""`sightlog tune`: a short sweep on this machine, and the settings that it found best."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import click
import orjson
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Column, Table

from load_tests.charts import stacked_bars
from load_tests.gpu_pictures import make_pictures
from load_tests.tune_servers import TritonServers, tuning_of
from load_tests.tune_sweep import Knob, Outcome, Sweep
from load_tests.tune_table import knobs, start_of
from models.manifest import load_manifest
from models.photos import STREAM_SEED, STREAM_SIZES, photos
from models.settings import chosen_folder
from sightlog.errors import SightlogError
from sightlog.say import say
from stack.cli import load_settings
from stack.local import LocalStack
from stack.settings import StackSettings
from triton_repo.tuning import Tuning, save_tuning

#: Of each measurement, four of which judge a candidate; a laptop answers few pictures in that time.
_MEASURED_S, _MEASURED_GPU_S = 4.0, 2.5
_BUDGET_S, _QUICK_BUDGET_S = 900.0, 240.0
_PICTURES = 48
PLOT_FILE = "tuning.svg"


@click.command()
@click.option("--quick", is_flag=True, help="Only the settings that matter most.")
@click.option(
    "--seconds", type=click.FloatRange(min=1), help="Begin nothing that would end later.  [default: 900, quick: 240]"
)
@click.option("--profile", type=click.Choice(["cpu", "fused", "ensemble"]), help="Instead of SIGHTLOG_TRITON_PROFILE.")
@click.option("--dry-run", is_flag=True, help="Measure, but write nothing.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object as the last line.")
def tune(quick: bool, seconds: float | None, profile: str | None, dry_run: bool, as_json: bool) -> None:
    """Find the settings with which this machine serves most images a second.

    One setting after the other: Triton starts with each candidate value, beside one with the best settings so far, and
    both are measured in turns; a candidate is kept if it gains more than the noise. Batch sizes, queue delay, instances
    and threads on CPU; batches, graph sizes and what decodes on a GPU; and how many images are under way.

    The result is for the models in use and this machine. It lies in the data folder as tuning.json, where the next
    `sightlog up` finds it, with a picture of what was measured, tuning.svg.

    \b
    Examples:
      sightlog tune --quick
      sightlog tune --seconds 600
      SIGHTLOG_TRITON_PROFILE=fused sightlog tune
    """
    console = Console(stderr=True)
    settings = load_settings(triton_profile=profile)
    if LocalStack(settings=settings).status().status in ("ready", "degraded", "starting"):
        raise SightlogError("a stack runs in this data folder and would share the machine: `sightlog down` first")
    budget = seconds or (_QUICK_BUDGET_S if quick else _BUDGET_S)
    table = knobs(settings.triton_profile, quick=quick)
    tuning, outcomes = run(console, settings, table, budget)
    console.print(shown(outcomes))
    if not dry_run:
        settings.data_dir.mkdir(parents=True, exist_ok=True)
        path = save_tuning(settings.data_dir, tuning)
        path.with_name(PLOT_FILE).write_text(plot(outcomes), encoding="utf-8")
        say(console, f"wrote {path}, and a picture beside it; `sightlog up` uses it from now on")
    if as_json:
        click.echo(orjson.dumps(asdict(tuning)).decode())


def run(
    console: Console,
    settings: StackSettings,
    table: Sequence[Knob],
    budget: float,
    measured_s: float | None = None,
) -> tuple[Tuning, list[Outcome]]:
    """The best settings for the models in use, and every candidate. Raises what the first start of Triton raises."""
    on_gpu = settings.triton_profile != "cpu"
    manifest = load_manifest(chosen_folder(settings.data_dir, settings.models))
    deadline = time.monotonic() + budget
    with tempfile.TemporaryDirectory(prefix="sightlog-tune-") as folder:
        shots = make_pictures(_PICTURES) if on_gpu else photos(_PICTURES, STREAM_SEED, STREAM_SIZES)
        for number, shot in enumerate(shots):
            (Path(folder) / f"{number:03d}.jpg").write_bytes(shot.jpeg)
        measured_s = measured_s or (_MEASURED_GPU_S if on_gpu else _MEASURED_S)
        servers = TritonServers(settings, manifest, Path(folder), measured_s)
        sweep = Sweep(servers, start_of(settings.triton_profile), deadline)
        columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
        with Progress(*columns, console=console) as progress:
            task = progress.add_task("starting Triton", total=1 + sum(len(knob) for knob in table))
            for outcome in sweep.steps(table):
                progress.update(task, advance=1, description=f"{sweep.outcomes[0].images_per_s:g} images/s at first")
                say(console, _line(outcome))
    if sweep.cut_short:
        say(console, f"the time of {budget:g} s is over; --seconds gives more for the settings that were not tried")
    tuning = tuning_of(sweep.best, manifest, settings)
    return replace(tuning, measured=tuple(asdict(outcome) for outcome in sweep.outcomes)), sweep.outcomes


def shown(outcomes: Sequence[Outcome]) -> Table:
    """One row a candidate."""
    table = Table(Column("setting", no_wrap=True), "images/s", "beside", "gain", "noise", "p50 ms", "kept")
    for row in outcomes:
        if row.refused:
            table.add_row(row.change, "-", "-", "-", "-", "-", "does not work")
        else:
            figures = (f"{row.images_per_s:g}", f"{row.beside:g}", f"{row.gain:+.1%}", f"{row.noise:.1%}")
            table.add_row(row.change, *figures, f"{row.p50_ms:g}" if row.p50_ms else "-", "yes" if row.kept else "no")
    return table


def plot(outcomes: Sequence[Outcome]) -> str:
    """SVG: images a second of each candidate; colours tell which were kept."""
    bars = {row.change: {"kept" if row.kept else "not better": row.images_per_s} for row in outcomes if not row.refused}
    return stacked_bars("What was tried, in this order", "images a second", bars)


def _line(outcome: Outcome) -> str:
    if outcome.refused:
        return f"{outcome.change}: does not work here: {outcome.refused}"
    verdict = "kept" if outcome.kept else "not better"
    return f"{outcome.change}: {outcome.images_per_s:g} images/s, {outcome.gain:+.1%} ({verdict})"
