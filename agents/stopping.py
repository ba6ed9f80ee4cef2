"""Workers that are no Faust apps end as those do: when they are told to."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Coroutine
from typing import Any


async def until_told_to_stop(serving: Coroutine[Any, Any, None]) -> None:
    """Serve until SIGTERM or SIGINT, or until it raises. Whatever is under way then stays un-acknowledged."""
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    work, stopping = asyncio.create_task(serving), asyncio.create_task(stop.wait())
    await asyncio.wait((work, stopping), return_when=asyncio.FIRST_COMPLETED)
    stopping.cancel()
    if work.done():
        await work
    else:
        work.cancel()
        await asyncio.wait((work,))
