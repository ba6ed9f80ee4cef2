"""`bench hostile`: what a hostile producer sends, through a whole stack; each event must end under a name."""

from __future__ import annotations

import time
import uuid
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import dataclass, field
from typing import Any, cast

import psutil
from confluent_kafka import Consumer, KafkaError, Message, Producer
from opensearchpy import OpenSearchException
from rich.console import Console
from rich.progress import Progress

from agents.audit.log import LogRecord
from agents.settings import AgentSettings
from load_tests.hostile_corpus import INDEXED, Corpus, Mutant
from load_tests.running import forget, stack_for_bench
from sightlog.consuming import consumer_at_end
from sightlog.dead_letters import DeadLetter
from sightlog.documents import IndexReceipt, log_version
from sightlog.errors import ContractError, SightlogError
from sightlog.events import consumed_headers, parse_event
from sightlog.follow import Follower
from sightlog.history import History
from sightlog.settings import MAX_RECORD_BYTES
from stack.local import LocalStack

_SEED = 1
#: Before memory is measured, every code path has run.
_WARM_UP_SHARE = 10
#: Nothing new for this long: the rest is lost.
_PATIENCE_S = 120.0
_STUB = "triton_python_backend_stub"


@dataclass
class Outcomes:
    """What became of mutants, by their names."""

    found: dict[str, str] = field(default_factory=dict)
    unaccounted: list[str] = field(default_factory=list)
    wrong: dict[str, str] = field(default_factory=dict)
    """Another outcome than the mutant allows."""


def measure(console: Console, count: int = 2000, seed: int = _SEED) -> dict[str, Any]:
    """Publish `count` mutants of each format and wait for all of them.

    `rss_growth_mb`: of the worker that grew most, from after the warm-up to the end.
    """
    tag = f"hostile-{uuid.uuid4().hex[:8]}"
    with stack_for_bench(console) as (stack, settings):
        folder = settings.uploads_dir / tag
        try:
            publish(console, settings, Corpus(seed + 1, max(20, count // _WARM_UP_SHARE), folder, f"{tag}-warm"))
            before, memory = processes(stack), worker_memory_mb(stack)
            outcomes = publish(console, settings, Corpus(seed, count, folder, tag))
            after = processes(stack)
            grown = {name: now - memory[name] for name, now in worker_memory_mb(stack).items() if name in memory}
        finally:
            with suppress(OpenSearchException):
                for used in (tag, f"{tag}-warm"):
                    forget(settings, used)
            for file in folder.glob("*"):
                file.unlink()
            folder.rmdir()
    codes = Counter(outcomes.found.values())
    indexed = codes.pop(INDEXED, 0)
    return {
        "events": len(outcomes.found) + len(outcomes.unaccounted),
        "accounted": len(outcomes.found),
        "dead_letters": codes.total(),
        "indexed": indexed,
        "wrong_outcomes": len(outcomes.wrong),
        "restarts": replaced(before, after),
        "rss_growth_mb": round(max(grown.values(), default=0.0), 1),
        "codes": dict(codes.most_common()),
        "first_wrong": dict(list(outcomes.wrong.items())[:5]),
        "first_unaccounted": outcomes.unaccounted[:5],
    }


def publish(console: Console, settings: AgentSettings, corpus: Corpus) -> Outcomes:
    """Publish a corpus and wait until every event has an outcome, or nothing happens any more."""
    # By version, because several events may be of one image: those that name none have the digest of their bytes.
    by_offset: dict[tuple[int, int], Mutant] = {}
    by_version: dict[tuple[str, int], Mutant] = {}
    outcomes = Outcomes()
    with (
        Follower(settings) as follower,
        closing(consumer_at_end(settings.kafka, *settings.topics.retry_delays)) as tiers,
        Progress(console=console) as progress,
    ):
        task = progress.add_task("published")
        producer = _producer(settings)
        for mutant in corpus:

            def delivered(error: KafkaError | None, message: Message, mutant: Mutant = mutant) -> None:
                if error is not None:
                    raise SightlogError(f"{mutant.name} could not be published: {error.str()}")
                offset = int(message.offset() or 0)
                by_offset[int(message.partition() or 0), offset] = mutant
                if (image_id := _image_id(mutant)) is not None:
                    by_version[image_id, log_version(message.timestamp()[1], offset)] = mutant

            producer.produce(
                settings.topics.images, mutant.value, mutant.key, headers=[*mutant.headers], on_delivery=delivered
            )
            producer.poll(0)
            progress.advance(task)
        if producer.flush(60):
            raise SightlogError(f"{settings.kafka} did not take all events")
        task = progress.add_task("accounted for", total=len(by_offset))
        heard = time.monotonic()
        while len(outcomes.found) < len(by_offset) and time.monotonic() - heard < _PATIENCE_S:
            for _key, outcome in follower.outcomes_at_hand():
                heard = time.monotonic()
                _account(outcome, by_offset, by_version, outcomes)
            for history in _postponed(tiers):
                heard = time.monotonic()
                place = history.origin.partition, history.origin.offset
                if place in by_offset:
                    _conclude(by_offset[place], history.hops[-1].code, outcomes)
            progress.update(task, completed=len(outcomes.found))
    outcomes.unaccounted = [m.name for m in by_offset.values() if m.name not in outcomes.found]
    return outcomes


def _account(
    outcome: IndexReceipt | DeadLetter,
    by_offset: dict[tuple[int, int], Mutant],
    by_version: dict[tuple[str, int], Mutant],
    outcomes: Outcomes,
) -> None:
    if isinstance(outcome, DeadLetter):
        mutant, became = by_offset.get((outcome.origin.partition, outcome.origin.offset)), outcome.code
    else:
        mutant, became = by_version.get((outcome.image_id, outcome.version)), INDEXED
    if mutant is not None:
        _conclude(mutant, became, outcomes)


def _conclude(mutant: Mutant, became: str, outcomes: Outcomes) -> None:
    outcomes.found[mutant.name] = became
    if mutant.expected and became not in mutant.expected:
        outcomes.wrong[mutant.name] = f"{became}, not {' or '.join(sorted(mutant.expected))}"


def _postponed(tiers: Consumer) -> Iterator[History]:
    """What waits in a retry tier: its file may still come, so it is accounted for as long as the tier has it."""
    for message in tiers.consume(500, timeout=0.1):
        headers = cast(LogRecord, message).headers()
        if message.error() is None and (history := History.from_headers(consumed_headers(headers))):
            yield history


def _image_id(mutant: Mutant) -> str | None:
    try:
        return parse_event(mutant.value, mutant.headers).image_id(mutant.key)
    except ContractError:
        return None


def _producer(settings: AgentSettings) -> Producer:
    return Producer(
        {
            "bootstrap.servers": settings.kafka,
            "message.max.bytes": MAX_RECORD_BYTES,
            "queue.buffering.max.kbytes": 64 * 1024,
            "log_level": 0,
        }
    )


def worker_memory_mb(stack: LocalStack) -> dict[str, float]:
    """Resident memory of every worker process."""
    workers = [name for name in stack.status().components if name.startswith("worker-")]
    return {name: psutil.Process(stack.pid(name)).memory_info().rss / 1e6 for name in workers}


def processes(stack: LocalStack) -> dict[str, tuple[int, ...]]:
    """Process ids of every component, and of the stubs that decode."""
    alive = {name: (one.pid or 0, one.restarts) for name, one in stack.status().components.items()}
    triton = psutil.Process(stack.pid("triton"))
    stubs = sorted(child.pid for child in triton.children(recursive=True) if _STUB in " ".join(child.cmdline()))
    return {**alive, "stubs": tuple(stubs)}


def replaced(before: dict[str, tuple[int, ...]], after: dict[str, tuple[int, ...]]) -> int:
    """How many components, and how many stubs, are not the ones that they were."""
    components = sum(before[name] != after.get(name) for name in before if name != "stubs")
    return components + len(set(before["stubs"]) - set(after["stubs"]))
