"""The sweep keeps what gains more than the noise, closes what it opens, and ends in time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from xml.etree import ElementTree

import pytest

from load_tests.gpu_load import Load
from load_tests.tune import plot
from load_tests.tune_sweep import Change, Choice, Knob, Outcome, Sweep
from load_tests.tune_table import knobs, start_of
from sightlog.errors import SightlogError
from triton_repo.gpu_settings import GpuSettings
from triton_repo.serving_settings import ServingSettings


def load(images_per_s: float, failures: int = 0) -> Load:
    return Load(1, images_per_s, 10.0, 20.0, 1.0, failures, "UNAVAILABLE: full" if failures else "", 0.1)


@dataclass
class Server:
    choice: Choice
    speed: Callable[[Choice, int], Load]
    time: Callable[[float], None]
    closed: bool = False

    def measure(self, in_flight: int) -> Load:
        assert not self.closed
        self.time(1.0)
        return self.speed(self.choice, in_flight)

    def close(self) -> None:
        assert not self.closed
        self.closed = True


@dataclass
class Machine:
    """Servers that are as fast as `speed` says; each measurement takes a second of `now`."""

    speed: Callable[[Choice, int], Load]
    opened: list[Server] = field(default_factory=list)
    most: int = 0
    now: float = 0.0

    def open(self, choice: Choice) -> Server:
        if choice.serving.get("detector_instances") == 9:
            raise SightlogError("triton did not start\nlog")
        self.opened.append(Server(choice, self.speed, self._pass))
        self.most = max(self.most, sum(not server.closed for server in self.opened))
        return self.opened[-1]

    def _pass(self, seconds: float) -> None:
        self.now += seconds


def sweep(machine: Machine, table: Sequence[Knob], deadline: float = 1e9) -> Sweep:
    made = Sweep(machine, Choice(16), deadline, lambda: machine.now)
    for _ in made.steps(table):
        pass
    return made


def instances(*values: int) -> Knob:
    return [Change("serving", {"detector_instances": value}) for value in values]


BATCHES = [Change("serving", {"max_batch_size": 16})]


def test_the_best_of_each_setting_is_kept_with_the_best_of_those_before() -> None:
    machine = Machine(
        lambda choice, _: load(
            100 * choice.serving.get("detector_instances", 1) * (2 if choice.serving.get("max_batch_size") else 1)
        )
    )
    found = sweep(machine, [instances(2, 3), BATCHES])

    assert found.best == Choice(16, {"detector_instances": 3, "max_batch_size": 16})
    assert [outcome.kept for outcome in found.outcomes] == [True, True, True, True]
    assert found.outcomes[-1].beside == 300


def test_a_slower_candidate_is_left_and_its_server_closed() -> None:
    machine = Machine(lambda choice, _: load(100 / choice.serving.get("detector_instances", 1)))
    found = sweep(machine, [instances(2, 3)])

    assert found.best == Choice(16)
    assert all(server.closed for server in machine.opened)
    assert machine.most == 2


def test_a_gain_below_the_noise_is_none() -> None:
    figures = iter([100.0, 100, 130, 100, 90])  # start; best, candidate twice, best
    found = sweep(Machine(lambda *_: load(next(figures))), [BATCHES])

    assert found.outcomes[1].gain == pytest.approx(0.2105, abs=1e-3)
    assert not found.outcomes[1].kept
    assert found.best == Choice(16)


def test_a_machine_that_becomes_faster_meanwhile_does_not_favour_the_candidate() -> None:
    machine = Machine(lambda *_: load(100 + 2 * machine.now))

    assert not sweep(machine, [BATCHES]).outcomes[1].kept


def test_load_is_tried_on_the_same_server() -> None:
    machine = Machine(lambda _, in_flight: load(min(in_flight, 40)))
    found = sweep(machine, [[Change("load", {"in_flight": value}) for value in (8, 32, 64)]])

    assert found.best == Choice(64)
    assert len(machine.opened) == 1


def test_settings_that_do_not_start_or_fail_under_load_are_refused_and_the_sweep_goes_on() -> None:
    machine = Machine(lambda choice, _: load(200, failures=3 if choice.serving.get("detector_instances") == 2 else 0))
    found = sweep(machine, [instances(9, 2), BATCHES])

    assert found.outcomes[1].refused == "triton did not start"
    assert "UNAVAILABLE" in found.outcomes[2].refused
    assert len(found.outcomes) == 4
    assert found.best == Choice(16)
    assert all(server.closed for server in machine.opened)


def test_settings_of_now_that_fail_are_an_error() -> None:
    machine = Machine(lambda *_: load(100, failures=1))
    with pytest.raises(SightlogError, match="fail under load"):
        sweep(machine, [BATCHES])
    assert machine.opened[0].closed


def test_nothing_is_begun_that_would_end_too_late() -> None:
    machine = Machine(lambda choice, _: load(100 * choice.serving.get("detector_instances", 1)))
    found = sweep(machine, [instances(2, 3, 4, 5)], deadline=10.0)

    assert found.cut_short
    assert machine.now <= 10
    assert found.best == Choice(16, {"detector_instances": 3})


@pytest.mark.parametrize("cores", [1, 2, 16])
def test_every_candidate_of_every_profile_is_valid_and_differs_from_the_start(cores: int) -> None:
    for profile in ("cpu", "fused", "ensemble"):
        start = start_of(profile)
        for knob in knobs(profile, cores=cores):
            for change in knob:
                choice = start.with_(change)
                assert choice != start
                given = ServingSettings(**choice.serving)  # type: ignore[arg-type]
                on_gpu = GpuSettings.from_json(dict(choice.gpu))
                assert (given, on_gpu, choice.in_flight) != (ServingSettings(), GpuSettings(), start.in_flight)
        assert 0 < sum(map(len, knobs(profile, quick=True))) <= sum(map(len, knobs(profile)))


def test_the_plot_shows_every_candidate_that_has_figures() -> None:
    rows = [Outcome("start", 100.0, kept=True), Outcome("slots 6", 90.0), Outcome("broken 1", refused="no")]
    texts = [text.text for text in ElementTree.fromstring(plot(rows)).iter("{http://www.w3.org/2000/svg}text")]

    assert {"start", "slots 6", "kept", "not better"} <= set(texts)
    assert "broken 1" not in texts
