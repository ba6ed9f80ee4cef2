"""Tells the death of a process of Triton from all else that holds the stream, and has dead models loaded anew."""

from __future__ import annotations

import asyncio
import logging
import random
import re
import time
from typing import TYPE_CHECKING

import grpc

from agents.delivery.failures import DependencyDown

if TYPE_CHECKING:
    from agents.inference.endpoints import Endpoint

log = logging.getLogger(__name__)

#: How Triton names a model process that does not answer its server any more: model, group, number.
_DEAD_STUB = re.compile(r"Stub process '(?P<model>.+?)_\d+_\d+' is not healthy")
#: How gRPC tells that a connection broke while a request was on its way.
_BROKEN = re.compile(r"Socket closed|Stream removed|Connection reset|Broken pipe", re.IGNORECASE)
#: A request that never left; the reason that follows may sound like one of those above.
_NEVER_SENT = "failed to connect"

#: Seconds after a death was noticed before the model is loaded anew from here. Whoever runs the server comes first,
#: and of many workers the one that drew the shortest.
PATIENCE_S = (1.5, 4.0)
#: A failure this long after the one before is another death. Answers in between prove nothing: a model may have several
#: processes, of which one is dead.
_ANOTHER_S = 60.0
#: A model may compile while it is loaded.
_LOAD_S = 300.0


class Died(DependencyDown):
    """The process that had the request ended, or hangs: the server itself, or the stub of one of its models.

    Only this is held against a picture. An overload, a server that is stopping or starting, a lost connection before
    the request was sent, and no answer in time say nothing about it.

    `model`: whose stub, None for the server; `deaths`: of how many processes in a row, where others were asked too.
    """

    def __init__(self, message: str, model: str | None = None, deaths: int = 1) -> None:
        super().__init__(message)
        self.model = model
        self.deaths = deaths


def is_death(status: grpc.StatusCode, details: str) -> tuple[bool, str | None]:
    """Whether a failed call means that a process died over it, and the model whose stub it was."""
    if status is grpc.StatusCode.INTERNAL and (stub := _DEAD_STUB.search(details)):
        return True, stub["model"]
    broken = status is grpc.StatusCode.UNAVAILABLE and _BROKEN.search(details)
    return bool(broken) and not details.startswith(_NEVER_SENT), None


class Healer:
    """Has a model loaded anew when its process stays dead; the server never does that by itself.

    One request that failed proves only that a process died. One that was sent a while after that, and failed too,
    proves that nobody has healed it. It does no harm if several heal at once.
    """

    def __init__(self, patience_s: tuple[float, float] = PATIENCE_S) -> None:
        self._patience_s = patience_s
        #: From when on a request must have been sent for its failure to be proof.
        self._proof_from: dict[tuple[Endpoint, str], float] = {}
        self._loading: dict[tuple[Endpoint, str], asyncio.Task[None]] = {}

    def failed(self, endpoint: Endpoint, model: str, sent_at: float) -> None:
        """A request sent at `sent_at` (of `time.monotonic`) found the process of a model dead."""
        place, now = (endpoint, model), time.monotonic()
        if now - self._proof_from.get(place, -_ANOTHER_S) >= _ANOTHER_S:
            self._proof_from[place] = now + random.uniform(*self._patience_s)
        elif sent_at >= self._proof_from[place] and place not in self._loading:
            self._loading[place] = asyncio.create_task(self._load(endpoint, model))

    async def close(self) -> None:
        """Let nothing go on in the background."""
        loading = list(self._loading.values())
        for task in loading:
            task.cancel()
        await asyncio.gather(*loading, return_exceptions=True)

    async def _load(self, endpoint: Endpoint, model: str) -> None:
        log.warning("%s: a process of the model %s is dead: having it loaded anew", endpoint.url, model)
        try:
            await endpoint.load(model, _LOAD_S)
        except grpc.aio.AioRpcError as error:
            log.error(
                "%s cannot load %s anew (%s); restart it, with --model-control-mode=explicit it can",
                endpoint.url,
                model,
                error.details(),
            )
        finally:
            self._loading.pop((endpoint, model), None)
            self._proof_from[endpoint, model] = time.monotonic() + random.uniform(*self._patience_s)
