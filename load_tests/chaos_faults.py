"""Sends a signal to a component of one stack and measures how long the stream needs to go on."""

from __future__ import annotations

import random
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

import psutil

from load_tests.chaos_plan import Fault
from stack.errors import NotRunningError
from stack.local import LocalStack
from stack.processes import MARKER, ROLE, SUPERVISOR_ROLE, stack_processes
from stack.triton_stubs import STUB

#: How long a process is suspended.
STOPPED_S = 20.0
_TICK_S = 0.2


@dataclass(frozen=True)
class Recovery:
    """One fault that is over, or not. Seconds; `at` since the beginning of the run."""

    component: str
    signal: str
    process: str
    at: float
    recovery_s: float
    """From the fault until the component was ready and an event published after the fault had come out."""
    after_cont_s: float | None
    """The same from SIGCONT; 0 when the stack had helped itself before."""
    recovered: bool
    detail: str = ""


class Breaker:
    """Injects the faults of a run into its own stack, and into nothing else.

    `newest_event` tells the time of the newest event that came out; `load_over` that no more will.
    """

    def __init__(
        self,
        stack: LocalStack,
        seed: int,
        newest_event: Callable[[], float],
        load_over: Callable[[], bool],
        patience_s: float = 120.0,
    ) -> None:
        self._stack, self._random = stack, random.Random(seed)
        self._newest_event, self._load_over = newest_event, load_over
        self._patience_s = patience_s
        self._began = time.time()
        #: Restarts of components by the supervisors that are gone.
        self._earlier_restarts = 0

    @property
    def restarts(self) -> int:
        """How often supervisors started a component again."""
        return self._earlier_restarts + sum(one.restarts for one in self._stack.status().components.values())

    def inject(self, fault: Fault) -> Recovery:
        """Send the signal and return when the stream goes on, or when patience is over."""
        self._await_process(fault.component)
        targets = self._targets(fault.component)
        if fault.component == "stack" and fault.signal != signal.SIGSTOP:
            self._earlier_restarts = self.restarts
            if fault.signal == signal.SIGTERM:
                targets = targets[:1]  # the supervisor, which ends the others in order
        at = time.time()
        named = ", ".join(f"{process.pid} {_role(process)}" for process in targets[:3])
        for process in targets:
            _send(process, fault.signal)
        continued: list[float] = []
        timer: threading.Timer | None = None
        if fault.signal == signal.SIGSTOP:
            timer = threading.Timer(STOPPED_S, _continue, (targets, continued))
            timer.start()
        elif fault.component == "stack":
            # As an init system does it, and as patiently.
            self._up_again()
        try:
            detail = self._await_recovery(fault.component, targets, at)
        finally:
            over = time.time()
            if timer is not None:
                timer.cancel()
                if not continued:
                    _continue(targets, continued)
        after_cont = None if timer is None else max(0.0, over - continued[0])
        return Recovery(
            component=fault.component,
            signal=fault.signal.name,
            process=named,
            at=round(at - self._began, 1),
            recovery_s=round(over - at, 1),
            after_cont_s=None if after_cont is None else round(after_cont, 1),
            recovered=detail is None,
            detail=detail or "",
        )

    def _targets(self, component: str) -> list[psutil.Process]:
        if component == "stack":
            found = list(stack_processes(self._stack.settings.stack_id))
            # The supervisor first: it would start the others again.
            return sorted(found, key=lambda process: _role(process) != SUPERVISOR_ROLE)
        if component == "triton-stub":
            server = psutil.Process(self._stack.pid("triton"))
            stubs = [child for child in server.children(recursive=True) if STUB.startswith(child.name()[:15])]
            return [self._random.choice(sorted(stubs, key=lambda process: process.pid))]
        return [psutil.Process(self._stack.pid(self._named(component)))]

    def _named(self, component: str) -> str:
        """One of several processes of a worker."""
        names = [name for name in self._stack.status().components if name == component or _is_another(name, component)]
        return self._random.choice(sorted(names)) if names else component

    def _await_process(self, component: str) -> None:
        """A component that is just starting has nothing to break yet."""
        deadline = time.monotonic() + self._patience_s
        while time.monotonic() < deadline:
            try:
                if self._targets(component):
                    return
            except (NotRunningError, psutil.Error, IndexError):
                pass
            time.sleep(_TICK_S)
        raise NotRunningError(f"{component} does not run, so it cannot be broken: {self._stack.status().detail}")

    def _up_again(self) -> None:
        stack_id = self._stack.settings.stack_id
        deadline = time.monotonic() + self._patience_s
        while time.monotonic() < deadline and any(stack_processes(stack_id, SUPERVISOR_ROLE)):
            time.sleep(_TICK_S)
        self._stack.up()

    def _await_recovery(self, component: str, targets: list[psutil.Process], at: float) -> str | None:
        """None when all is well again, else what was still awaited."""
        deadline = time.monotonic() + self._patience_s
        awaited = ""
        while time.monotonic() < deadline:
            awaited = self._awaited(component, targets, at)
            if not awaited:
                return None
            time.sleep(_TICK_S)
        return awaited

    def _awaited(self, component: str, targets: list[psutil.Process], at: float) -> str:
        state = self._stack.status()
        wanted = list(state.components) if component == "stack" else [component.replace("triton-stub", "triton")]
        for name, one in state.components.items():
            if (name in wanted or any(_is_another(name, other) for other in wanted)) and one.status != "ready":
                return f"{name} is {one.status}: {one.detail}"
        if any(_suspended(process) for process in targets):
            return "still suspended"
        if self._newest_event() <= at and not self._load_over():
            return "no event that was published after the fault has come out"
        return ""


def _is_another(name: str, component: str) -> bool:
    """`worker-vision-2` is another `worker-vision`."""
    return name.startswith(f"{component}-") and name.removeprefix(f"{component}-").isdigit()


def _role(process: psutil.Process) -> str:
    try:
        return str(process.environ().get(ROLE, ""))
    except (psutil.Error, OSError):
        return ""


def _send(process: psutil.Process, number: signal.Signals) -> None:
    """psutil compares start times, so a pid in use again is left alone."""
    try:
        if MARKER in process.environ():
            process.send_signal(number)
    except psutil.Error:
        return


def _continue(processes: list[psutil.Process], told: list[float]) -> None:
    told.append(time.time())
    for process in processes:
        _send(process, signal.SIGCONT)


def _suspended(process: psutil.Process) -> bool:
    try:
        return bool(process.status() == psutil.STATUS_STOPPED)
    except psutil.Error:
        return False
