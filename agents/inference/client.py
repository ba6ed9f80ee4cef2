"""Asks Triton over gRPC, many requests at once, and says whose fault a failure is: the item's or the server's."""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Any

import grpc
import numpy as np
import numpy.typing as npt
from tritonclient.grpc import service_pb2, service_pb2_grpc

from agents.delivery.failures import DependencyDown, ItemBroken
from agents.inference.results import ImageInference, image_inference_of, tensors_of
from triton_repo import contract
from triton_repo.contract import refused_item_code, serving_version

#: Requests on their way at once: enough to fill the dynamic batches (8) of every step, little enough to bound memory.
DEFAULT_CONCURRENCY = 32
DEFAULT_TIMEOUT_S = 30.0

_CHANNEL_OPTIONS = [
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    # gRPC waits up to two minutes between attempts to reconnect; a restarted Triton must be found within a second.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
]
_IMAGE_OUTPUTS = (
    contract.IMAGE_EMBEDDING,
    contract.BOXES,
    contract.SCORES,
    contract.CLASS_IDS,
    contract.OBJECT_EMBEDDINGS,
    contract.IMAGE_SIZE,
)


class TritonClient:
    """Typed calls to one Triton (or a load balancer before several). Belongs to the event loop that first awaits it.

    Every call raises `ItemBroken` if the item can never succeed, and `DependencyDown` if Triton did not answer as it
    should: unreachable, stopping, overloaded, too slow, a dead model process, models that are not ours.
    """

    def __init__(self, url: str, digest: str | None = None, *, concurrency: int = DEFAULT_CONCURRENCY) -> None:
        """`digest`: of the manifest whose models must answer; None lets any answer."""
        self._url = url
        self._version = str(serving_version(digest)) if digest else ""
        self._slots = asyncio.Semaphore(concurrency)
        self._channel: grpc.aio.Channel | None = None
        self._stub: Any = None
        self._image_request = service_pb2.ModelInferRequest(
            model_name=contract.IMAGE_PIPELINE,
            model_version=self._version,
            outputs=[_output(name) for name in _IMAGE_OUTPUTS],
        )

    async def infer_image(self, data: bytes, timeout: float = DEFAULT_TIMEOUT_S) -> ImageInference:
        """Encoded image file -> what the models see in it. `timeout`: seconds, counted from when a slot is free."""
        request = service_pb2.ModelInferRequest()
        request.CopyFrom(self._image_request)
        request.inputs.append(_input(contract.IMAGE, "UINT8", (1, len(data))))
        request.raw_input_contents.append(data)
        return image_inference_of(await self._infer(request, timeout))

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

    async def ready(self, timeout: float = 2.0) -> bool:
        """Whether the models are loaded. A model process that died later still counts as loaded: use `check`."""
        for name in (contract.IMAGE_PIPELINE, contract.CLIP_TEXT):
            try:
                asked = service_pb2.ModelReadyRequest(name=name, version=self._version)
                reply = await self._connected().ModelReady(asked, timeout=timeout)
            except grpc.aio.AioRpcError:
                return False
            if not reply.ready:
                return False
        return True

    async def check(self, picture: bytes, tokens: npt.NDArray[np.int64], timeout: float = 5.0) -> None:
        """Run a known good picture and query through every model process on their path; raises like any call."""
        await asyncio.gather(self.infer_image(picture, timeout), self.embed_text(tokens, timeout))

    async def close(self) -> None:
        """Close the connection; calls under way fail with `DependencyDown`."""
        channel, self._channel, self._stub = self._channel, None, None
        if channel is not None:
            await channel.close()

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
            raw_input_contents=[np.ascontiguousarray(batch).tobytes()],
        )
        vectors = tensors_of(await self._infer(request, timeout))[contract.EMBEDDING]
        return vectors[0] if rows.ndim == item_dims else vectors

    async def _infer(self, request: Any, timeout: float) -> Any:
        # Work whose caller has given up must not stand in the queue before work that somebody waits for.
        request.parameters["timeout"].int64_param = int(timeout * 1e6)
        async with self._slots:
            try:
                return await self._connected().ModelInfer(request, timeout=timeout)
            except grpc.aio.AioRpcError as error:
                raise self._failure(error, request.model_name, timeout) from error

    def _connected(self) -> Any:
        # Opened at the first call, because a channel takes the event loop that is running then.
        if self._stub is None:
            self._channel = grpc.aio.insecure_channel(self._url, options=_CHANNEL_OPTIONS)
            self._stub = service_pb2_grpc.GRPCInferenceServiceStub(self._channel)
        return self._stub

    def _failure(self, error: grpc.aio.AioRpcError, model: str, timeout: float) -> ItemBroken | DependencyDown:
        status, details = error.code(), error.details() or "no details"
        if status is grpc.StatusCode.INVALID_ARGUMENT:
            refused = refused_item_code(details)
            if refused:
                return ItemBroken(*refused)
            return DependencyDown(
                f"Triton at {self._url} refuses requests to {model} ({details}); "
                "its model repository is not the one of this release: build it again"
            )
        if status is grpc.StatusCode.NOT_FOUND:
            return DependencyDown(
                f"Triton at {self._url} serves other models than this process was started with ({details}); "
                "build its repository from the same models: `sightlog models show` tells which they are"
            )
        if status is grpc.StatusCode.DEADLINE_EXCEEDED:
            return DependencyDown(
                f"Triton at {self._url} did not answer {model} within {timeout:g} s; "
                "add instances or lower the concurrency"
            )
        return DependencyDown(f"Triton at {self._url} failed {model} with {status.name} ({details}); is it running?")


def _input(name: str, datatype: str, shape: tuple[int, ...]) -> Any:
    return service_pb2.ModelInferRequest.InferInputTensor(name=name, datatype=datatype, shape=shape)


def _output(name: str) -> Any:
    return service_pb2.ModelInferRequest.InferRequestedOutputTensor(name=name)
