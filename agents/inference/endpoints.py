"""The Tritons behind one client: which of them gets a request, which are left out, and when those are asked again."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Collection, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import grpc
from google.protobuf import json_format
from tritonclient.grpc import service_pb2, service_pb2_grpc

from agents.delivery.retry import Backoff
from triton_repo.reload import changed_config

log = logging.getLogger(__name__)

#: Pauses before an endpoint that is out is asked again: short against the restart of a Triton, and at the limit its
#: share of requests is negligible.
PAUSES = Backoff(first=0.25, limit=10.0)
#: One that fails within this time after its return was not well: its pauses go on growing where they were.
_RELAPSE_S = 60.0

_CHANNEL_OPTIONS = [
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    # gRPC waits up to two minutes between attempts to reconnect; a restarted Triton must be found within a second.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
]


@dataclass(eq=False)
class Endpoint:
    """One Triton, and what has happened with it so far."""

    url: str
    #: Whether requests go there; an endpoint that is out is probed until it answers.
    up: bool = True
    outstanding: int = 0
    answered: int = 0
    ejections: int = 0
    returns: int = 0

    #: Of `time.monotonic`; answers by model, because the processes of the others go on when that of one is dead.
    answered_at: dict[str, float] = field(default_factory=dict, repr=False)
    ejected_at: float = field(default=0.0, repr=False)
    returned_at: float = field(default=-_RELAPSE_S, repr=False)
    #: Failed in a row, probes and relapses.
    failures: int = field(default=0, repr=False)
    _channel: Any = field(default=None, repr=False)

    async def infer(self, request: bytes, timeout: float) -> Any:
        """ModelInfer of a serialised request; the ModelInferResponse. Raises grpc.aio.AioRpcError."""
        infer = self._connected().unary_unary(
            "/inference.GRPCInferenceService/ModelInfer",
            response_deserializer=service_pb2.ModelInferResponse.FromString,
        )
        self.outstanding += 1
        try:
            return await infer(request, timeout=timeout)
        finally:
            self.outstanding -= 1

    async def ready(self, models: Iterable[tuple[str, str]], timeout: float) -> bool:
        """Whether all models, by name and version, are loaded."""
        stub = service_pb2_grpc.GRPCInferenceServiceStub(self._connected())
        try:
            for name, version in models:
                asked = service_pb2.ModelReadyRequest(name=name, version=version)
                if not (await stub.ModelReady(asked, timeout=timeout)).ready:
                    return False
        except grpc.aio.AioRpcError:
            return False
        return True

    async def load(self, model: str, timeout: float) -> None:
        """Have a model loaded anew: its new processes take over, then the old ones go. Raises grpc.aio.AioRpcError."""
        stub = service_pb2_grpc.GRPCInferenceServiceStub(self._connected())
        found = await stub.ModelConfig(service_pb2.ModelConfigRequest(name=model), timeout=timeout)
        config = json_format.MessageToJson(found.config, preserving_proto_field_name=True)
        request = service_pb2.RepositoryModelLoadRequest(model_name=model)
        request.parameters["config"].string_param = changed_config(config)
        await stub.RepositoryModelLoad(request, timeout=timeout)

    async def close(self) -> None:
        """Close the connection; the next use opens another."""
        channel, self._channel = self._channel, None
        if channel is not None:
            await channel.close()

    def _connected(self) -> Any:
        # Opened at the first call, because a channel takes the event loop that is running then.
        if self._channel is None:
            self._channel = grpc.aio.insecure_channel(self.url, options=_CHANNEL_OPTIONS)
        return self._channel


#: Whether an endpoint that failed a model serves it again.
Probe = Callable[[Endpoint, str], Awaitable[bool]]


class Endpoints:
    """Chooses among endpoints: the one with the fewest outstanding requests, in turns among equals.

    One that fails is left out and probed with growing pauses until it answers. A single endpoint is never left out:
    nobody else could answer, and its caller backs off.
    """

    def __init__(self, urls: Sequence[str], probe: Probe, pauses: Backoff = PAUSES) -> None:
        self.all = tuple(Endpoint(url) for url in urls)
        self._probe = probe
        self._pauses = pauses
        self._next = 0
        self._probes: dict[Endpoint, asyncio.Task[None]] = {}

    def pick(self, tried: Collection[Endpoint] = ()) -> Endpoint | None:
        """Where a request goes that `tried` have failed already; None when it should go nowhere now.

        While every endpoint is out, a fresh request goes to one of them all the same: the first that answers is back
        before a probe has noticed.
        """
        able = [endpoint for endpoint in self.all if endpoint.up and endpoint not in tried]
        if not able and not tried:
            able = list(self.all)
        if not able:
            return None
        count = len(self.all)
        turn = {endpoint: (number - self._next) % count for number, endpoint in enumerate(self.all)}
        chosen = min(able, key=lambda endpoint: (endpoint.outstanding, turn[endpoint]))
        self._next = (self.all.index(chosen) + 1) % count
        return chosen

    def has_other(self, tried: Collection[Endpoint]) -> bool:
        """Whether a request that `tried` are trying could go on to somebody else."""
        return any(endpoint.up and endpoint not in tried for endpoint in self.all)

    def answered(self, endpoint: Endpoint, model: str, sent_at: float) -> None:
        """A request that was sent at `sent_at` (of `time.monotonic`) was answered, were it to refuse the item."""
        endpoint.answered += 1
        endpoint.answered_at[model] = time.monotonic()
        if not endpoint.up and sent_at > endpoint.ejected_at:
            self._return(endpoint)

    def failed(self, endpoint: Endpoint, model: str, sent_at: float, why: Exception) -> None:
        """A request that was sent at `sent_at` failed through no fault of its own.

        An endpoint whose model has answered others meanwhile is busy rather than sick, and stays.
        """
        if len(self.all) == 1 or not endpoint.up or endpoint.answered_at.get(model, 0.0) > sent_at:
            return
        endpoint.ejected_at = time.monotonic()
        if endpoint.ejected_at - endpoint.returned_at > _RELAPSE_S:
            endpoint.failures = 0
        endpoint.up = False
        endpoint.ejections += 1
        log.warning("%s is left out, because %s", endpoint.url, why)
        self._probes[endpoint] = asyncio.create_task(self._until_back(endpoint, model))

    async def close(self) -> None:
        """End the probes and the connections. An endpoint that was out counts as up again."""
        probes = list(self._probes.values())
        self._probes.clear()
        for task in probes:
            task.cancel()
        for task in probes:
            with suppress(asyncio.CancelledError):
                await task
        for endpoint in self.all:
            endpoint.up = True
            await endpoint.close()

    async def _until_back(self, endpoint: Endpoint, model: str) -> None:
        serves = False
        while not serves:
            await asyncio.sleep(self._pauses.pause(endpoint.failures))
            endpoint.failures += 1
            serves = await self._probe(endpoint, model)
        self._return(endpoint)

    def _return(self, endpoint: Endpoint) -> None:
        endpoint.up = True
        endpoint.returned_at = time.monotonic()
        endpoint.returns += 1
        probe = self._probes.pop(endpoint)
        if probe is not asyncio.current_task():
            probe.cancel()
        log.warning("%s answers again", endpoint.url)
