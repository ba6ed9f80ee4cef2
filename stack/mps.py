"""NVIDIA's Multi-Process Service: kernels of several processes run beside each other on a GPU, not in turns."""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

PROGRAM = "nvidia-cuda-mps-control"
_START_S = 15.0
_log = logging.getLogger(__name__)


class MultiProcessService:
    """A daemon of this stack's own: others on the machine neither see nor share it."""

    def __init__(self, folder: Path) -> None:
        """`folder`: for its sockets and logs. Its path should be short: a socket's is cut at 107 characters."""
        self._folder = folder

    @staticmethod
    def present() -> bool:
        """Whether the driver's program is installed."""
        return shutil.which(PROGRAM) is not None

    def start(self, marks: Mapping[str, str]) -> dict[str, str]:
        """Start the daemon and return the environment of its clients; nothing if it cannot run here, which is logged.

        `marks`: the environment that tells whose process it is. With the marks of the clients' component the daemon,
        and the server that it starts, end when that component is swept, so each start meets a fresh one: after a fault
        on the GPU the old one refuses all clients.
        """
        if not self.present():
            _log.warning("%s is not installed: processes take turns on the GPU, which costs throughput", PROGRAM)
            return {}
        pipes, logs = self._folder / "pipes", self._folder / "logs"
        shutil.rmtree(pipes, ignore_errors=True)  # of a daemon that was killed
        for folder in (pipes, logs):
            folder.mkdir(parents=True, exist_ok=True)
        clients = {"CUDA_MPS_PIPE_DIRECTORY": str(pipes), "CUDA_MPS_LOG_DIRECTORY": str(logs)}
        try:
            with (logs / "start.log").open("wb") as said:  # not a pipe, which the daemon would hold open
                subprocess.run(
                    [PROGRAM, "-d"],
                    env={**os.environ, **clients, **marks},
                    stdin=subprocess.DEVNULL,
                    stdout=said,
                    stderr=said,
                    cwd=self._folder,
                    start_new_session=True,
                    timeout=_START_S,
                    check=True,
                )
        except (OSError, subprocess.SubprocessError) as error:
            _log.warning("going on without %s, processes take turns on the GPU: %s; see %s", PROGRAM, error, logs)
            return {}
        return clients
