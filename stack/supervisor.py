"""The supervisor process of one stack: starts children, watches them, restarts them, stops them in order.

`up` starts it detached with the stack's settings in `<data>/stack.json`; it runs until SIGTERM. It alone writes the
state file.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil

from stack.child import Child
from stack.composition import Composition, compose
from stack.processes import end_leftovers
from stack.settings import StackSettings
from stack.state import StackState, StateFile

#: Pause between two looks.
TICK_S = 0.1
SETTINGS_FILE = "stack.json"
#: Triton needs nobody; Kafka keeps what the others still say.
STOP_ORDER = ("triton", "opensearch", "kafka")


class Supervisor:
    """All children of one stack, and the state file that tells about them."""

    def __init__(self, composition: Composition, state_file: StateFile) -> None:
        self._settings = composition.settings
        self._file = state_file
        self._java = composition.java
        self._services = [Child(part, self._settings, self.publish) for part in composition.services]
        self._workers = [Child(part, self._settings, self.publish) for part in composition.workers]
        self._started = psutil.Process().create_time()
        self._stopping = False
        self._stopped = False
        self._published: StackState | None = None

    def publish(self) -> None:
        """Write the state file if something changed."""
        state = self._state()
        if state != self._published:
            self._published = state
            self._file.write(state)

    async def run(self) -> None:
        """Start everything, tend it until SIGTERM or SIGINT, stop everything."""
        asked = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, asked.set)
        self.publish()
        tending = [asyncio.create_task(child.tend()) for child in self._services]
        tending.append(asyncio.create_task(self._tend_workers()))
        asking = asyncio.create_task(asked.wait())
        try:
            done, _ = await asyncio.wait({asking, *tending}, return_when=asyncio.FIRST_COMPLETED)
            while asking not in done:
                # A child that gave up ends its task; an error of ours ends the supervisor.
                for task in done:
                    task.result()
                tending = [task for task in tending if not task.done()]
                done, _ = await asyncio.wait({asking, *tending}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._stopping = True
            await self._stop([*tending, asking])

    async def _tend_workers(self) -> None:
        """Workers need every service for their first start; later they wait for a service themselves."""
        while not all(child.state.status == "ready" for child in self._services):
            await asyncio.sleep(TICK_S)
        await asyncio.gather(*(child.tend() for child in self._workers))

    async def _stop(self, tasks: Sequence[asyncio.Task[Any]]) -> None:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self.publish()
        # Consumers first, so that they commit; the log they commit to last.
        await asyncio.gather(*(child.stop() for child in self._workers))
        for child in sorted(self._services, key=lambda child: STOP_ORDER.index(child.component.name)):
            await child.stop()
        self._stopped = True
        self.publish()

    def _state(self) -> StackState:
        children = [*self._services, *self._workers]
        states = {child.component.name: child.state for child in children}
        statuses = {state.status for state in states.values()}
        failed = [name for name, state in states.items() if state.status == "failed"]
        was_ready = self._published is not None and self._published.status in ("ready", "degraded")
        if self._stopped:
            status = "stopped"
        elif self._stopping:
            status = "stopping"
        elif failed:
            status = "failed"
        elif statuses <= {"ready"}:
            status = "ready"
        else:
            status = "degraded" if was_ready else "starting"
        return StackState.model_validate(
            {
                "stack_id": self._settings.stack_id,
                "status": status,
                "detail": ", ".join(f"{name}: {states[name].detail}" for name in failed),
                "pid": os.getpid(),
                "started": self._started,
                "port_offset": self._settings.port_offset,
                "java": str(self._java or ""),
                "components": states,
            }
        )


def main(data_dir: Path) -> int:
    """Run the supervisor of a data folder; 1 if another one runs already."""
    settings = StackSettings.model_validate_json((data_dir / SETTINGS_FILE).read_bytes())
    state_file = StateFile(data_dir)
    # Whoever asks "is it supervised?" holds the lock for an instant, so one failed try means little.
    for _ in range(50):
        with state_file.owned() as mine:
            if mine:
                try:
                    asyncio.run(Supervisor(compose(settings), state_file).run())
                finally:
                    end_leftovers(settings.stack_id, grace_s=1.0)
                return 0
        time.sleep(TICK_S)
    return 1


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
