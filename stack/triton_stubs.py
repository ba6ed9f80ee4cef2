"""Triton's model processes: finds one that died or was stopped, and has its model loaded anew while the others go on.

The server never starts a dead stub again and goes on calling itself well; every request to it fails.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import logging
import time
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import psutil

from stack.processes import SHARED_MEMORY
from stack.settings import HOST
from triton_repo.reload import changed_config

log = logging.getLogger(__name__)

STUB = "triton_python_backend_stub"
#: The server keeps the memory of a dead stub mapped until it ends itself, 16 to 80 MB each; with more it is replaced.
KEPT_LIMIT_BYTES = 1 << 30
#: Requests that a process had when it was retired are done within this.
_RETIRED_S = 10.0
#: A killed process that is in the middle of something is gone within this.
_KILL_WAIT_S = 5.0


@dataclass(frozen=True)
class Stub:
    """One model process and its region in /dev/shm."""

    process: psutil.Process
    model: str
    region: Path

    @property
    def ended(self) -> bool:
        """Whether it runs no more; the server never collects it, so that it stays as a zombie."""
        try:
            return not self.process.is_running() or self.process.status() == psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return True

    @property
    def stopped(self) -> bool:
        """Whether it was suspended by a signal."""
        with contextlib.suppress(psutil.Error):
            return bool(self.process.status() == psutil.STATUS_STOPPED)
        return False


class Stubs:
    """The model processes of one server after another."""

    def __init__(self, http_port: int, *, stopped_limit_s: float, load_limit_s: float) -> None:
        """`stopped_limit_s`: after which a suspended stub is killed; `load_limit_s`: for one model to be loaded."""
        self._http = http_port
        self._stopped_limit_s = stopped_limit_s
        self._load_limit_s = load_limit_s
        self._server = 0
        self._known: tuple[Stub, ...] = ()
        #: Processes of each model.
        self._wanted: Counter[str] = Counter()
        #: Since when a process serves no more.
        self._retired: dict[Stub, float] = {}
        self._stopped_at: dict[int, float] = {}
        self._kept_bytes = 0

    def damage(self, server: int) -> str | None:
        """Why the server (a pid) must be replaced, or None: all is well, or is again. May wait for a model to load.

        The first call for a server takes what runs then as what should run.
        """
        if server != self._server:
            self._server, self._known, self._kept_bytes = server, stubs_of(server), 0
            self._wanted = Counter(stub.model for stub in self._known)
            self._retired.clear()
            return None
        self._kill_stopped()
        self._end_retired()
        ended = [stub for stub in self._known if stub.ended]
        if not ended:
            return None
        for model in self._missing({stub.model for stub in ended}):
            log.warning("a process of the model %s died: it is loaded anew", model)
            if reason := self._load(model):
                return f"a process of the model {model} died, and {reason}"
        if missing := self._missing(self._wanted):
            return f"after it was loaded anew, {', '.join(missing)} has too few processes"
        self._known = self._serving()
        self._forget_regions(ended)
        if self._kept_bytes > KEPT_LIMIT_BYTES:
            return f"dead model processes left {self._kept_bytes >> 20} MB in it"
        return None

    def _missing(self, models: Collection[str]) -> list[str]:
        """Those of the models that have fewer processes than they should; somebody else may have loaded them anew."""
        have = Counter(stub.model for stub in self._serving())
        return [model for model in models if have[model] < self._wanted[model]]

    def _serving(self) -> tuple[Stub, ...]:
        """The newest processes of each model. Those before them are retired: their model was loaded anew."""
        living = [stub for stub in stubs_of(self._server) if stub not in self._retired]
        living.sort(key=lambda stub: stub.process.create_time(), reverse=True)
        room = self._wanted.copy()
        serving = []
        for stub in living:
            room[stub.model] -= 1
            if room[stub.model] < 0:
                self._retired[stub] = time.monotonic()
            else:
                serving.append(stub)
        return tuple(serving)

    def _end_retired(self) -> None:
        """End what the server should have: it keeps the living sisters of a process that died over a request."""
        for stub, since in list(self._retired.items()):
            if stub.ended:
                del self._retired[stub]
                self._forget_regions([stub])
            elif time.monotonic() - since > _RETIRED_S:
                with contextlib.suppress(psutil.NoSuchProcess):
                    stub.process.kill()

    def _kill_stopped(self) -> None:
        """What was suspended for long does not come back; a killed process heals like every dead one."""
        now = time.monotonic()
        stopped = {stub.process.pid: stub for stub in self._known if stub.stopped}
        self._stopped_at = {pid: self._stopped_at.get(pid, now) for pid in stopped}
        for pid, stub in stopped.items():
            if now - self._stopped_at[pid] < self._stopped_limit_s:
                continue
            log.warning("a process of the model %s (pid %d) stands still: it is killed", stub.model, pid)
            with contextlib.suppress(psutil.NoSuchProcess):
                stub.process.kill()
            deadline = time.monotonic() + _KILL_WAIT_S
            while not stub.ended and time.monotonic() < deadline:
                time.sleep(0.01)

    def _load(self, model: str) -> str | None:
        """Load a model anew: its new processes take over, then the old ones go. None, or what went wrong."""
        try:
            status, body = self._request("GET", f"/v2/models/{model}/config")
            if status == 200:
                status, body = self._request("POST", f"/v2/repository/models/{model}/load", _load_body(body))
        except (OSError, http.client.HTTPException) as error:
            return f"the server does not load it anew: {error or type(error).__name__}"
        return None if status == 200 else f"the server does not load it anew: {body.decode(errors='replace')[:200]}"

    def _request(self, method: str, path: str, body: bytes | None = None) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection(HOST, self._http, timeout=self._load_limit_s)
        try:
            connection.request(method, path, body)
            response = connection.getresponse()
            return response.status, response.read()
        finally:
            connection.close()

    def _forget_regions(self, ended: Collection[Stub]) -> None:
        """Remove the regions that the dead have left; Triton itself removes those of processes that it ended."""
        for stub in ended:
            with contextlib.suppress(FileNotFoundError):
                self._kept_bytes += stub.region.stat().st_blocks * 512
                stub.region.unlink()


def stubs_of(server: int) -> tuple[Stub, ...]:
    """The living model processes of a server. Raises psutil.NoSuchProcess when it is gone."""
    found = []
    for child in psutil.Process(server).children(recursive=True):
        with contextlib.suppress(psutil.Error):
            # Names are cut to 15 characters by the kernel. A zombie has no command line.
            if STUB.startswith(child.name()[:15]) and child.status() != psutil.STATUS_ZOMBIE:
                command = child.cmdline()
                if len(command) < 3:  # about to run the model, or just dead
                    continue
                _, source, region, *_ = command
                found.append(Stub(child, Path(source).parts[-3], SHARED_MEMORY / region))
    return tuple(found)


def _load_body(config: bytes) -> bytes:
    return json.dumps({"parameters": {"config": changed_config(config)}}).encode()
