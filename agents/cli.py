"""`sightlog worker` and `sightlog config`."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

import click
import faust
import orjson

from agents.app import run_worker
from agents.settings import AgentSettings


def _vision(settings: AgentSettings) -> faust.App:
    from agents.vision import vision_app

    return vision_app(settings)


def _indexer(settings: AgentSettings) -> faust.App:
    from agents.indexer import indexer_app

    return indexer_app(settings)


def _run_search(settings: AgentSettings) -> None:
    import uvloop

    from agents.search import run_search

    uvloop.run(run_search(settings))


def _run_retry(settings: AgentSettings) -> None:
    from agents.retry import run_retry

    asyncio.run(run_retry(settings))


#: Imported when needed: a worker does not pay for the libraries of the others.
_APPS: dict[str, Callable[[AgentSettings], faust.App]] = {"vision": _vision, "indexer": _indexer}
#: Workers that Faust does not run.
_OTHERS: dict[str, Callable[[AgentSettings], None]] = {"search": _run_search, "retry": _run_retry}


@click.command()
@click.argument("name", type=click.Choice([*_APPS, *_OTHERS]))
@click.option("--loglevel", type=click.Choice(["debug", "info", "warning", "error"]), default="info", show_default=True)
def worker(name: str, loglevel: str) -> None:
    """Run one worker in the foreground until it is told to stop.

    Start as many of a kind as the topic has partitions; they share the work, and each can be killed at any time.

    \b
    vision    images in, embedding documents out
    indexer   embedding documents in, searchable documents in OpenSearch
    search    requests in, replies out
    retry     holds events whose file is not there yet, and sends them again when their tier's delay is over

    \b
    Examples:
      sightlog worker vision
      SIGHTLOG_KAFKA=kafka-1:9092 SIGHTLOG_TRITON=gpu-1:8001 sightlog worker vision
    """
    settings = AgentSettings.load()
    if name in _APPS:
        run_worker(_APPS[name](settings), loglevel=loglevel)
        return
    logging.basicConfig(level=loglevel.upper(), format="[%(asctime)s] [%(levelname)s] %(message)s")
    # One line a request otherwise.
    logging.getLogger("opensearch").setLevel(logging.WARNING)
    _OTHERS[name](settings)


@click.command()
@click.option("--json", "as_json", is_flag=True, help="One JSON object instead of lines.")
def config(as_json: bool) -> None:
    """Print every setting with its present value and the variable that sets it.

    \b
    Examples:
      sightlog config
      SIGHTLOG_KAFKA=kafka-1:9092 sightlog config --json
    """
    settings = AgentSettings.load()
    values = settings.model_dump(mode="json")
    if as_json:
        click.echo(orjson.dumps(values, option=orjson.OPT_INDENT_2).decode())
        return
    groups = {"topics": "SIGHTLOG_TOPIC_", "index": "SIGHTLOG_INDEX_"}
    for name, value in values.items():
        lines = (
            {f"{groups[name]}{n.upper()}": v for n, v in value.items()}
            if name in groups
            else {f"SIGHTLOG_{name.upper()}": value}
        )
        for variable, shown in lines.items():
            if shown is None:
                click.echo(f"# {variable} is not set")
                continue
            click.echo(f"{variable}={orjson.dumps(shown).decode() if not isinstance(shown, str) else shown}")
