"""Asks Triton over gRPC, many requests at once, and says whose fault a failure is: the item's or the server's."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from types import TracebackType
from typing import Any

import grpc
import numpy as np
import numpy.typing as npt
from tritonclient.grpc import service_pb2

from agents.delivery.failures import DependencyDown, ItemBroken
from agents.delivery.retry import Backoff
from agents.inference.deaths import Died, Healer, is_death
from agents.inference.endpoints import PAUSES, Endpoint, Endpoints
from agents.inference.results import ImageInference, image_inference_of, tensors_of
from triton_repo import contract
from triton_repo.contract import refused_item_code, serving_version

#: Requests on their way at once, to all endpoints together: enough to fill the dynamic batches (8) of every step,
#: little enough to bound memory.
DEFAULT_CONCURRENCY = 32
DEFAULT_TIMEOUT_S = 30.0

#: What stands before each of the raw inputs in a serialised request: their field, of a type with a length.
_RAW_INPUT_TAG = bytes([service_pb2.ModelInferRequest.RAW_INPUT_CONTENTS_FIELD_NUMBER << 3 | 2])
#: Endpoints that one request may cost a process in a row: a picture that kills decoders must not kill all of them.
MOST_DEATHS = 2
_READY_S = 2.0
#: A caller in more of a hurry than this learns nothing about an endpoint that did not answer it.
_SILENCE_S = 1.0


class TritonClient:
    """Typed calls to one Triton or several alike. Belongs to the event loop that first awaits it.

    Each request goes to the endpoint with the fewest outstanding ones. Where it fails through no fault of its own, it
    goes on to another endpoint at once, and the one that failed is left out until a probe finds it well.

    Every call raises `ItemBroken` if the item can never succeed, and `DependencyDown` if no Triton answered as it
    should: unreachable, stopping, overloaded, too slow, models that are not ours; `Died`, which is one of those, if a
    process of Triton died over it. A dead model process is loaded anew if nobody else does that.
    """

    def __init__(
        self,
        urls: str | Sequence[str],
        digest: str | None = None,
        *,
        concurrency: int = DEFAULT_CONCURRENCY,
        pauses: Backoff = PAUSES,
        heal: bool = True,
    ) -> None:
        """`urls`: host:port, one or several; `digest`: of the manifest whose models must answer, None lets any answer;
        `concurrency`: requests at once over all endpoints; `pauses`: before an endpoint that is left out is probed;
        `heal`: whether Triton is told to load a model anew whose process stays dead."""
        self._version = str(serving_version(digest)) if digest else ""
        self._slots = asyncio.Semaphore(concurrency)
        self._endpoints = Endpoints([urls] if isinstance(urls, str) else urls, self._serves, pauses)
        self._models = [(name, self._version) for name in (contract.IMAGE_PIPELINE, contract.CLIP_TEXT)]
        self._healer = Healer() if heal else None
        #: The last request that each model answered, serialised: known to be good, so it tells a dead model.
        self._good: dict[str, bytes] = {}
        self._image_request = service_pb2.ModelInferRequest(
            model_name=contract.IMAGE_PIPELINE,
            model_version=self._version,
            outputs=[_output(name) for name in contract.IMAGE_OUTPUTS],
        )

    @property
    def endpoints(self) -> tuple[Endpoint, ...]:
        """Their state and counters; to be read only."""
        return self._endpoints.all

    async def infer_image(self, data: bytes, timeout: float = DEFAULT_TIMEOUT_S) -> ImageInference:
        """Encoded image file -> what the models see in it. `timeout`: seconds, counted from when a slot is free."""
        request = service_pb2.ModelInferRequest()
        request.CopyFrom(self._image_request)
        request.inputs.append(_input(contract.IMAGE, "UINT8", (1, len(data))))
        return image_inference_of(await self._infer(request, data, timeout))

    async def embed_text(
        self, tokens: npt.NDArray[np.int64], timeout: float = DEFAULT_TIMEOUT_S
    ) -> npt.NDArray[np.float32]:
        """tokens int64 [context] -> float32 [dim], or int64 [n, context] -> float32 [n, dim]; L2-normalised."""
        return await self._embed(contract.CLIP_TEXT, contract.TOKENS, "INT64", tokens, 1, timeout)

    async def embed_crops(
        self, crops: npt.NDArray[np.uint8], timeout: float = DEFAULT_TIMEOUT_S
    ) -> npt.NDArray[np.float32]:
        """crops uint8 [S, S, 3] -> float32 [dim], or uint8 [n, S, S, 3] -> float32 [n, dim]; L2-normalised."""
        return await self._embed(contract.CLIP_IMAGE, contract.CROPS, "UINT8", crops, 3, timeout)

    async def ready(self, timeout: float = _READY_S) -> bool:
        """Whether the models are loaded somewhere; also where their process died since, which only `check` tells."""
        return any(await asyncio.gather(*(endpoint.ready(self._models, timeout) for endpoint in self.endpoints)))

    async def check(self, picture: bytes, tokens: npt.NDArray[np.int64], timeout: float = 5.0) -> None:
        """Run a known good picture and query through every model process on their path; raises like any call."""
        await asyncio.gather(self.infer_image(picture, timeout), self.embed_text(tokens, timeout))

    async def close(self) -> None:
        """Close the connections; calls under way fail with `DependencyDown`."""
        if self._healer:
            await self._healer.close()
        await self._endpoints.close()

    async def __aenter__(self) -> TritonClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def _embed(
        self, model: str, name: str, datatype: str, rows: npt.NDArray[Any], item_dims: int, timeout: float
    ) -> npt.NDArray[np.float32]:
        batch = rows[None] if rows.ndim == item_dims else rows
        request = service_pb2.ModelInferRequest(
            model_name=model,
            model_version=self._version,
            inputs=[_input(name, datatype, batch.shape)],
            outputs=[_output(contract.EMBEDDING)],
        )
        contents = np.ascontiguousarray(batch).tobytes()
        vectors = tensors_of(await self._infer(request, contents, timeout))[contract.EMBEDDING]
        return vectors[0] if rows.ndim == item_dims else vectors

    async def _infer(self, request: Any, contents: bytes, timeout: float) -> Any:
        async with self._slots:
            deadline = time.monotonic() + timeout
            tried: list[Endpoint] = []
            failure: DependencyDown | None = None
            deaths = 0
            while (left := deadline - time.monotonic()) > 0 and (endpoint := self._endpoints.pick(tried)):
                tried.append(endpoint)
                # Half of it, so that silence here leaves somebody else the time to answer.
                share = left / 2 if self._endpoints.has_other(tried) else left
                try:
                    return await self._ask(endpoint, request, contents, share)
                except Died as died:
                    failure, deaths = died, deaths + 1
                    if deaths == MOST_DEATHS:
                        break
                except DependencyDown as down:
                    failure = down
            if deaths:
                raise Died(str(failure), failure.model if isinstance(failure, Died) else None, deaths) from failure
            raise failure or DependencyDown(f"no time is left for {request.model_name}: {timeout:g} s were given")

    async def _ask(self, endpoint: Endpoint, request: Any, contents: bytes, timeout: float) -> Any:
        # Work whose caller has given up must not stand in the queue before work that somebody waits for.
        request.parameters["timeout"].int64_param = max(1, int(timeout * 1e6))
        message = _serialised(request, contents)
        sent_at = time.monotonic()
        try:
            reply = await endpoint.infer(message, timeout)
        except grpc.aio.AioRpcError as error:
            failure = _failure(error, endpoint.url, request.model_name, timeout)
            self._heal(endpoint, failure, sent_at)
            if isinstance(failure, ItemBroken):
                self._endpoints.answered(endpoint, request.model_name, sent_at)
            elif error.code() is not grpc.StatusCode.DEADLINE_EXCEEDED or timeout >= _SILENCE_S:
                self._endpoints.failed(endpoint, request.model_name, sent_at, failure)
            raise failure from error
        self._endpoints.answered(endpoint, request.model_name, sent_at)
        if len(self.endpoints) > 1:
            self._good[request.model_name] = message
        return reply

    async def _serves(self, endpoint: Endpoint, model: str) -> bool:
        """Whether an endpoint is ready and answers what the model is known to answer.

        A server whose model process is dead calls itself ready. Repeated texts may come from Triton's cache; an
        endpoint that returns for that reason alone is left out longer each time.
        """
        if not await endpoint.ready(self._models, _READY_S):
            return False
        known = self._good.get(model)
        if known is None:
            return True
        sent_at = time.monotonic()
        try:
            await endpoint.infer(known, DEFAULT_TIMEOUT_S)
        except grpc.aio.AioRpcError as error:
            self._heal(endpoint, _failure(error, endpoint.url, model, DEFAULT_TIMEOUT_S), sent_at)
            return False
        return True

    def _heal(self, endpoint: Endpoint, failure: Exception, sent_at: float) -> None:
        if self._healer and isinstance(failure, Died) and failure.model:
            self._healer.failed(endpoint, failure.model, sent_at)


def _serialised(request: Any, contents: bytes) -> bytes:
    """The request with `contents` as its one raw input.

    By hand, because protobuf would copy a picture twice: a message may be written in parts, one after the other.
    """
    size = len(contents)
    varint = bytearray()
    while size > 127:
        varint.append(size & 127 | 128)
        size >>= 7
    varint.append(size)
    return b"".join((request.SerializeToString(), _RAW_INPUT_TAG, varint, contents))


def _failure(error: grpc.aio.AioRpcError, url: str, model: str, timeout: float) -> ItemBroken | DependencyDown:
    status, details = error.code(), error.details() or "no details"
    if status is grpc.StatusCode.INVALID_ARGUMENT:
        refused = refused_item_code(details)
        if refused:
            return ItemBroken(*refused)
        return DependencyDown(
            f"Triton at {url} refuses requests to {model} ({details}); "
            "its model repository is not the one of this release: build it again"
        )
    if status is grpc.StatusCode.NOT_FOUND:
        return DependencyDown(
            f"Triton at {url} serves other models than this process was started with ({details}); "
            "build its repository from the same models: `sightlog models show` tells which they are"
        )
    if status is grpc.StatusCode.DEADLINE_EXCEEDED:
        return DependencyDown(
            f"Triton at {url} did not answer {model} within {timeout:.3g} s; add instances or lower the concurrency"
        )
    message = f"Triton at {url} failed {model} with {status.name} ({details}); is it running?"
    died, of_model = is_death(status, details)
    return Died(message, of_model) if died else DependencyDown(message)


def _input(name: str, datatype: str, shape: tuple[int, ...]) -> Any:
    return service_pb2.ModelInferRequest.InferInputTensor(name=name, datatype=datatype, shape=shape)


def _output(name: str) -> Any:
    return service_pb2.ModelInferRequest.InferRequestedOutputTensor(name=name)
