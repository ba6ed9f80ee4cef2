"""Which processes of a Triton are its models."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from pathlib import Path

import psutil

from stack.triton_stubs import STUB, stubs_of


def test_a_model_process_that_has_not_begun_is_passed_over(tmp_path: Path) -> None:
    program = shutil.copy(shutil.which("sleep") or "/bin/sleep", tmp_path / STUB)
    with subprocess.Popen([program, "60"]) as starting:
        while STUB.startswith(psutil.Process(starting.pid).name()[:15]) is False:
            time.sleep(0.001)
        try:
            assert stubs_of(os.getpid()) == ()
        finally:
            starting.kill()
