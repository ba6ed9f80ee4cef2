"""`sightlog chaos`: a stack of its own under load, broken again and again from a seed, audited at the end."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import shutil
import tempfile
import time
import uuid
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import orjson
from rich.console import Console

from agents.audit.run import KINDS, Report, Wishes, audit
from agents.settings import AgentSettings
from load_tests.chaos_chart import timeline
from load_tests.chaos_faults import STOPPED_S, Breaker, Recovery
from load_tests.chaos_load import Load, Pace
from load_tests.chaos_plan import Events, Fault, Outgoing, Planned, plan_events, plan_faults
from load_tests.running import free_port_offset
from sightlog.errors import SightlogError
from stack.component import Progress
from stack.local import LocalStack
from stack.settings import StackSettings

#: A guess at how long one fault takes, until the run knows better.
_FAULT_S = 15.0
#: Longest wait for the end: the longest retry tier is 10 minutes, but nothing here waits in it.
_END_S = 240.0
#: A picture that kills its decoder comes when so much of the load is over.
_KILLER_AT = 0.3


@dataclass(frozen=True)
class Wanted:
    """What a run is to do."""

    events: int = 5000
    kills: int = 30
    seed: int = 1
    vision_workers: int = 1
    poison: float = 0.0
    """Share of the events that are broken."""
    slow_inference: float = 0.0
    """Seconds that each call of the image tower takes longer, with a rebalance timeout below it."""
    killer: bool = False
    """One picture kills the process that decodes it."""
    rate: float | None = None
    """Events a second; None: so that the load lasts as long as the faults."""
    out: Path | None = None
    """Folder for report.json and timeline.svg, and for the logs if something is wrong."""
    folder: Path | None = None
    """Empty folder of the stack; None: a temporary one."""


def run(console: Console, wanted: Wanted, progress: Progress | None = None) -> dict[str, Any]:
    """Start a stack, break it under load, audit it, and remove it; the figures of the run."""
    folder = wanted.folder or Path(tempfile.mkdtemp(prefix="sightlog-chaos-"))
    if folder.exists() and any(folder.iterdir()):
        raise SightlogError(f"{folder} is not empty: chaos breaks only a stack of its own")
    tag = f"chaos-{uuid.uuid4().hex[:8]}"
    events = Events(tag, wanted.seed)
    killer = events.upload(_killer_picture(wanted.seed)) if wanted.killer else None
    changes: dict[str, Any] = {"vision_workers": wanted.vision_workers}
    if killer is not None:
        changes["triton_crash_on"] = (hashlib.sha256(killer.data or b"").hexdigest(),)
    with contextlib.ExitStack() as at_end:
        at_end.callback(shutil.rmtree, folder, ignore_errors=True)
        at_end.enter_context(_environment(wanted))
        if wanted.slow_inference:
            changes["triton_repository"] = slow_repository(folder / "models-slow", wanted.slow_inference)
        base = StackSettings().model_copy(update=changes)
        # A fixed offset where several stacks start on one machine: a broken stack needs its ports again.
        stack = LocalStack(folder, base.port_offset or free_port_offset(), workers=True, settings=base)
        at_end.callback(stack.down, wipe=True)
        stack.up(progress)
        figures = _break(console, stack, wanted, events, tag)
        _keep(stack, wanted, figures)
    return figures


def _break(console: Console, stack: LocalStack, wanted: Wanted, events: Events, tag: str) -> dict[str, Any]:
    settings = AgentSettings.load(data_dir=stack.data_dir)
    planned = plan_events(wanted.events, wanted.seed, wanted.poison)
    faults = plan_faults(wanted.kills, wanted.seed)
    pace = Pace(len(faults), wanted.rate, _FAULT_S)
    records = _records(events, planned, wanted, tag)
    total = len(planned) + wanted.killer
    load = Load(settings, pace, total)
    began, started = time.time(), time.monotonic()
    breaker = Breaker(stack, wanted.seed, lambda: load.seen.newest_event, lambda: load.done)
    recoveries: list[Recovery] = []
    try:
        load.start(records)
        for number, fault in enumerate(faults, 1):
            time.sleep(fault.pause_s)
            recoveries.append(breaker.inject(fault))
            pace.passed()
            _tell(console, number, len(faults), fault, recoveries[-1], load)
        while not load.done or load.flush(1.0):
            if time.monotonic() - started > _END_S + wanted.events / 2 + len(faults) * (STOPPED_S + 60):
                raise SightlogError(f"{total - load.confirmed} events could not be published")
            time.sleep(0.2)
        report = asyncio.run(_audit(settings))
        seconds = time.monotonic() - started
        time.sleep(1.0)  # the last receipts
    finally:
        load.close()
    arrivals = [at - began for at in load.seen.arrivals]
    poison = sum(one.action == "poison" for one in planned) + wanted.killer
    return _figures(wanted, report, recoveries, load, breaker, seconds, poison) | {"timeline": (arrivals, recoveries)}


async def _audit(settings: AgentSettings) -> Report:
    """The audit once nothing is in flight, or when patience is over."""
    deadline = time.monotonic() + _END_S
    while True:
        try:
            report = await audit(Console(quiet=True), settings, Wishes(listed=20, wait_s=_END_S))
        except SightlogError:
            if time.monotonic() > deadline:
                raise
            await asyncio.sleep(2.0)
            continue
        if not report.in_flight or time.monotonic() > deadline:
            return report


def _figures(
    wanted: Wanted,
    report: Report,
    recoveries: list[Recovery],
    load: Load,
    breaker: Breaker,
    seconds: float,
    poison: int,
) -> dict[str, Any]:
    kills: dict[str, Counter[str]] = {}
    slowest: dict[str, float] = {}
    for one in recoveries:
        kills.setdefault(one.component, Counter())[one.signal] += 1
        slowest[one.component] = max(one.recovery_s, slowest.get(one.component, 0.0))
    wrong = {kind: getattr(report, kind) for kind in KINDS}
    figures: dict[str, Any] = {
        "seed": wanted.seed,
        "events": report.events,
        "kills": len(recoveries),
        "kills_by_component": {name: dict(of) for name, of in kills.items()},
        **wrong,
        "unaccounted": report.unaccounted,
        "in_flight": report.in_flight,
        "indexed": report.indexed,
        "superseded": report.superseded,
        "deleted": report.deleted,
        "dead_letters": report.dead,
        "poison": poison,
        "recovery_s_max": max(slowest.values(), default=0.0),
        "recovery_after_cont_s_max": max((r.after_cont_s for r in recoveries if r.after_cont_s is not None), default=0),
        "recovery_s": slowest,
        "restarts": breaker.restarts,
        "seconds": round(seconds, 1),
        "events_per_s": round(report.events / seconds, 2),
        "redelivered": load.seen.redelivered,
        "not_recovered": [asdict(one) for one in recoveries if not one.recovered],
        "not_published": load.failed[:20],
        "faults": [asdict(one) for one in recoveries],
        "names": {kind: [asdict(one) for one in named] for kind, named in report.names.items()},
    }
    figures["ok"] = (
        not any(wrong.values())
        and not report.unaccounted
        and not report.in_flight
        and not load.failed
        and not figures["not_recovered"]
        and report.dead == poison
        and report.events == load.published
    )
    return figures


def _records(events: Events, planned: list[Planned], wanted: Wanted, tag: str) -> Iterator[Outgoing]:
    at = round(len(planned) * _KILLER_AT)
    for number, one in enumerate(planned):
        if wanted.killer and number == at:
            value, headers = events.upload(_killer_picture(wanted.seed)).to_kafka()
            yield Outgoing(f"{tag}-killer", value, headers, broken=True)
        yield events.record(one)


def _killer_picture(seed: int) -> bytes:
    from models.photos import photos

    return photos(1, seed=seed + 1_000_000, sizes=[(200, 200)])[0].jpeg


@contextlib.contextmanager
def _environment(wanted: Wanted) -> Iterator[None]:
    """What the workers of this run inherit."""
    changes: dict[str, str] = {}
    if wanted.slow_inference:
        changes["SIGHTLOG_REBALANCE_TIMEOUT"] = f"{max(1.0, wanted.slow_inference / 2):g}"
        changes["SIGHTLOG_SESSION_TIMEOUT"] = f"{max(6.0, wanted.slow_inference / 2):g}"
    before = {name: os.environ.get(name) for name in changes}
    os.environ.update(changes)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def slow_repository(folder: Path, seconds: float) -> Path:
    """A model repository whose image tower takes that much longer for each batch."""
    from models.manifest import load_manifest
    from triton_repo.build import build_repository

    build_repository(load_manifest(None), folder)
    for model in folder.glob("box_embedder/*/model.py"):
        text = model.read_text(encoding="utf-8")
        model.write_text(f"{text}{_SLOW.format(seconds=seconds)}", encoding="utf-8")
    return folder


_SLOW = """

import time as _time

_quick = TritonPythonModel.execute


def _slow(self, requests):
    _time.sleep({seconds})
    return _quick(self, requests)


TritonPythonModel.execute = _slow
"""


def _tell(console: Console, number: int, count: int, fault: Fault, recovery: Recovery, load: Load) -> None:
    ended = f"{recovery.recovery_s:.1f} s" if recovery.recovered else f"NOT WELL: {recovery.detail}"
    shown = f"[{number}/{count}] {recovery.at:6.1f} s  {fault.signal.name:8} {fault.component:15} {ended}"
    console.print(
        f"{shown}  ({load.confirmed} published, {len(load.seen.receipts)} out)", highlight=False, markup=False
    )


def _keep(stack: LocalStack, wanted: Wanted, figures: dict[str, Any]) -> None:
    """Write what was asked for; the logs only when they are needed."""
    arrivals, recoveries = figures.pop("timeline")
    if wanted.out is None:
        return
    wanted.out.mkdir(parents=True, exist_ok=True)
    (wanted.out / "timeline.svg").write_text(timeline(arrivals, recoveries), encoding="utf-8")
    (wanted.out / "report.json").write_bytes(orjson.dumps(figures, option=orjson.OPT_INDENT_2))
    if not figures["ok"]:
        shutil.copytree(stack.data_dir / "logs", wanted.out / "logs", dirs_exist_ok=True)
