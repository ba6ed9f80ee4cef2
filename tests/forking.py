"""Forked children of a test."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable


def forked(work: Callable[[], object], seconds: int) -> int:
    """Exit status of a forked child that ends as any interpreter does, when `work` is done; negative when it hung."""
    child = os.fork()
    if child == 0:
        # Ends a child that hangs, by itself: nothing may be waited for in here.
        signal.alarm(seconds)
        try:
            work()
        except BaseException as error:
            print(repr(error), file=sys.stderr)
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
