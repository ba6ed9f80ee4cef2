"""Coordinate descent over settings: one after the other, each candidate measured in turns with the best so far."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from load_tests.gpu_load import Load
from sightlog.errors import SightlogError

Section = Literal["serving", "gpu", "load"]
#: Less is no gain, whatever the repetitions say.
LEAST_GAIN = 0.03
#: Starting a server and measuring take about as long for each candidate; the last one tells for the next.
_MARGIN = 1.1


@dataclass(frozen=True)
class Choice:
    """What is run and how it is loaded: settings that differ from the defaults, and pictures under way."""

    in_flight: int
    serving: Mapping[str, int] = field(default_factory=dict)
    gpu: Mapping[str, Any] = field(default_factory=dict)

    def with_(self, change: Change) -> Choice:
        """The same with a change."""
        values = {"serving": self.serving, "gpu": self.gpu, "load": {"in_flight": self.in_flight}}
        values[change.section] = {**values[change.section], **change.values}
        return Choice(values["load"]["in_flight"], values["serving"], values["gpu"])

    def same_server(self, other: Choice) -> bool:
        """Whether they differ in the load alone."""
        return (self.serving, self.gpu) == (other.serving, other.gpu)


@dataclass(frozen=True)
class Change:
    """A candidate value of one setting, with what must follow it."""

    section: Section
    values: Mapping[str, Any]

    def __str__(self) -> str:
        """The setting and its value; those that follow it are not told."""
        name, value = next(iter(self.values.items()))
        return f"{name} {value}"


#: The candidates of one setting.
Knob = Sequence[Change]


@dataclass(frozen=True)
class Outcome:
    """One candidate beside the best so far; `gain`: part by which it did more. `refused`: why it has no figures."""

    change: str
    images_per_s: float = 0.0
    p50_ms: float | None = None
    beside: float = 0.0
    gain: float = 0.0
    noise: float = 0.0
    kept: bool = False
    refused: str = ""


class Served(Protocol):
    """A server with one choice of settings."""

    def measure(self, in_flight: int) -> Load: ...

    def close(self) -> None: ...


class Servers(Protocol):
    """Starts servers; two may run side by side. `open` raises SightlogError where the settings do not work."""

    def open(self, choice: Choice) -> Served: ...


class Sweep:
    """`best` and `outcomes` grow while `steps` is consumed, so what was found counts when it is cut short."""

    def __init__(
        self, servers: Servers, start: Choice, deadline: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """`deadline`: of `clock`; no candidate is begun that would probably end after it."""
        self._servers, self._deadline, self._clock = servers, deadline, clock
        self.best = start
        self.outcomes: list[Outcome] = []
        self.cut_short = False

    def steps(self, knobs: Sequence[Knob]) -> Iterator[Outcome]:
        """Try every candidate; the first outcome is the start itself. Raises what the first server raises."""
        with ExitStack() as ends:
            server = self._servers.open(self.best)
            ends.callback(lambda: server.close())  # the one that is the best then
            yield self._told(_of_start(server.measure(self.best.in_flight)))
            cost = 0.0
            for change in (change for knob in knobs for change in knob):
                candidate = self.best.with_(change)
                if candidate == self.best:
                    continue
                began = self._clock()
                if began + cost * _MARGIN > self._deadline:
                    self.cut_short = True
                    return
                other = server
                try:
                    if not candidate.same_server(self.best):
                        other = self._servers.open(candidate)
                    outcome = _in_turns(change, server, self.best, other, candidate)
                except SightlogError as error:
                    outcome = Outcome(str(change), refused=str(error).splitlines()[0][:200])
                if outcome.kept:
                    server, other = other, server
                    self.best = candidate
                if other is not server:
                    other.close()
                cost = self._clock() - began
                yield self._told(outcome)

    def _told(self, outcome: Outcome) -> Outcome:
        self.outcomes.append(outcome)
        return outcome


def _of_start(load: Load) -> Outcome:
    if load.failures:
        raise SightlogError(
            f"the present settings fail under load ({load.first_failure}); look at `sightlog logs triton`"
        )
    return Outcome("start", load.images_per_s, load.p50_ms, load.images_per_s, kept=True)


def _in_turns(change: Change, server: Served, best: Choice, other: Served, candidate: Choice) -> Outcome:
    """Best, candidate, candidate, best: a machine that becomes slower meanwhile does so to both."""
    first = server.measure(best.in_flight)
    loads = [other.measure(candidate.in_flight) for _ in range(2)]
    last = server.measure(best.in_flight)
    failed = next((load for load in loads if load.failures), None)
    if failed is not None:
        return Outcome(str(change), refused=f"{failed.failures} requests failed: {failed.first_failure}"[:200])
    found = [load.images_per_s for load in loads]
    beside = [first.images_per_s, last.images_per_s]
    mean, base = sum(found) / 2, max(sum(beside) / 2, 1e-9)
    noise = max(LEAST_GAIN, abs(found[0] - found[1]) / max(mean, 1e-9), abs(beside[0] - beside[1]) / base)
    gain = mean / base - 1
    return Outcome(
        str(change), round(mean, 1), loads[-1].p50_ms, round(base, 1), round(gain, 4), round(noise, 4), gain > noise
    )
