"""`sightlog chaos`."""

from __future__ import annotations

import sys
from pathlib import Path

import click
import orjson
from rich.console import Console

from load_tests.chaos import Wanted, run
from stack.console import ConsoleProgress

_LEFT_OUT = ("faults", "names", "not_recovered", "not_published")


@click.command()
@click.option("--events", type=click.IntRange(1), default=5000, show_default=True, help="How many to publish.")
@click.option("--kills", type=click.IntRange(0), default=30, show_default=True, help="How often something is broken.")
@click.option("--seed", type=int, default=1, show_default=True, help="The same seed, the same plan.")
@click.option("--vision-workers", type=click.IntRange(1, 4), default=1, show_default=True)
@click.option("--poison", type=click.FloatRange(0, 1), default=0.0, help="Share of the events that are broken.")
@click.option("--slow-inference", type=click.FloatRange(0), default=0.0, help="Seconds that inference takes longer.")
@click.option("--killer", is_flag=True, help="Publish one picture that kills the process that decodes it.")
@click.option("--rate", type=click.FloatRange(0.1), help="Events/s. [default: as long as the faults take]")
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), help="Folder for report and timeline.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object as the last line.")
def chaos(
    events: int,
    kills: int,
    seed: int,
    vision_workers: int,
    poison: float,
    slow_inference: float,
    killer: bool,
    rate: float | None,
    out: Path | None,
    as_json: bool,
) -> None:
    """Break a stack of its own under load, from a seed, and audit it afterwards.

    SIGKILL, SIGTERM and SIGSTOP (for 20 s) go to workers, Triton and its model processes, the broker, OpenSearch and
    the whole stack. Ends with 0 when nothing was lost, doubled, orphaned or stale, every fault was recovered from
    without help, and exactly the broken events became dead letters; else with 1.

    \b
    Examples:
      sightlog chaos --events 5000 --kills 30 --seed 1 --json
      sightlog chaos --events 1000 --kills 10 --poison 0.05 --vision-workers 2 --out chaos
    """
    console = Console(stderr=True)
    wanted = Wanted(events, kills, seed, vision_workers, poison, slow_inference, killer, rate, out)
    with ConsoleProgress(console) as progress:
        figures = run(console, wanted, progress)
    if as_json:
        click.echo(orjson.dumps(figures))
    else:
        for name, value in figures.items():
            if value or name not in _LEFT_OUT:
                click.echo(f"{name:>26}  {value}")
    sys.exit(0 if figures["ok"] else 1)
