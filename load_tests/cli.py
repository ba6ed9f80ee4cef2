"""`sightlog bench`."""

from __future__ import annotations

import importlib
from typing import Any

import click
import orjson
from rich.console import Console

_NAMES = "quality stream search soak-search recall relevance models parity gpu backlog agent index hostile"
_BENCHES = {name: f"load_tests.{name.replace('-', '_')}" for name in _NAMES.split()}


@click.command()
@click.argument("name", type=click.Choice(list(_BENCHES)))
@click.option("--images", type=click.IntRange(min=1), help="How many images or rounds; each has its own default.")
@click.option("--minutes", type=click.FloatRange(min=0.1), help="How long soak-search asks; 60 if not given.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object as the last line.")
def bench(name: str, images: int | None, minutes: float | None, as_json: bool) -> None:
    """Measure the stack that runs in the data folder; without one, start one and stop it afterwards.

    `relevance`, `models` and `parity` need no stack; `gpu` starts its own, writes gpu.json and pictures into the
    current folder, and takes more options as `python -m load_tests.gpu --help`.

    \b
    quality   R@1 and mAP of text queries over unseen scenes, through the topics
    stream    images/s from event to searchable beside the in-process ceiling, freshness, CPU an image
    search    a search through the topics against the same search without them: latency, throughput, known texts;
              --images: vectors in the index
    relevance precision and recall of relevance >= 0.5 on held-out scenes, and how far it can be believed
    recall    nearest neighbours that a search finds, with filters and without, beside exact ones; --images: objects
    models    milliseconds an image and a query of the models in use, against raw onnxruntime
    parity    every preprocessing path against the NumPy reference, step by step, and the vectors that follow
    index     documents/s through the indexer against raw bulks of opensearch-py into the same OpenSearch
    agent     a vision worker's images/s beside a bare loop of consume, ask and produce; Triton answers at once
    backlog   memory of a vision worker while it drains events that were there before it; --images: how many
    hostile   damaged pictures, events and references through the whole stack: each must end under a name, no process
              may die; --images: how many of each format
    soak-search   mixed searches for an hour at 70 % of what the machine can answer: does memory grow, or what waits?
    gpu       on a machine with a GPU: the pipeline through Triton beside itself without it, and event to searchable

    \b
    Examples:
      sightlog bench quality --json
      sightlog bench stream --images 1000
      sightlog bench models --json
    """
    module = importlib.import_module(_BENCHES[name])
    arguments: dict[str, Any] = {} if images is None else {"count": images}
    if minutes is not None:
        if name != "soak-search":
            raise click.UsageError("--minutes is for soak-search")
        arguments["minutes"] = minutes
    figures: dict[str, Any] = module.measure(Console(stderr=True), **arguments)
    if as_json:
        click.echo(orjson.dumps({"bench": name, **figures}).decode())
    else:
        for key, value in figures.items():
            click.echo(f"{key:>32}  {value}")
