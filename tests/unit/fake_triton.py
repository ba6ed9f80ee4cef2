"""A gRPC server that answers as Triton does, or as a test says."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import grpc
import numpy as np
from tritonclient.grpc import model_config_pb2, service_pb2, service_pb2_grpc

Answer = Callable[[Any, grpc.aio.ServicerContext], Awaitable[Any]]


class FakeTriton(service_pb2_grpc.GRPCInferenceServiceServicer):
    """Answers as the test says and keeps what it was asked."""

    def __init__(self) -> None:
        self.answer: Answer = two_objects
        self.asked: list[Any] = []
        self.loaded = {"image_pipeline"}
        self.asked_ready = 0
        #: Models that were loaded anew, with the config that each was given.
        self.reloads: list[tuple[str, str]] = []
        self.busy = self.most_busy = 0
        self.url = ""

    @property
    def pictures(self) -> list[bytes]:
        """What it was asked to see."""
        return [request.raw_input_contents[0] for request in self.asked]

    async def ModelInfer(self, request: Any, context: grpc.aio.ServicerContext) -> Any:
        self.asked.append(request)
        self.busy += 1
        self.most_busy = max(self.most_busy, self.busy)
        try:
            return await self.answer(request, context)
        finally:
            self.busy -= 1

    async def ModelReady(self, request: Any, context: grpc.aio.ServicerContext) -> Any:
        self.asked_ready += 1
        return service_pb2.ModelReadyResponse(ready=request.name in self.loaded)

    async def ModelConfig(self, request: Any, context: grpc.aio.ServicerContext) -> Any:
        config = model_config_pb2.ModelConfig(name=request.name, max_batch_size=8)
        return service_pb2.ModelConfigResponse(config=config)

    async def RepositoryModelLoad(self, request: Any, context: grpc.aio.ServicerContext) -> Any:
        self.reloads.append((request.model_name, request.parameters["config"].string_param))
        return service_pb2.RepositoryModelLoadResponse()


@asynccontextmanager
async def serving(fake: FakeTriton, port: int = 0) -> AsyncIterator[FakeTriton]:
    """Let it answer on a loopback port, a free one by default; it is gone at the end."""
    server = grpc.aio.server(options=[("grpc.max_receive_message_length", -1)])
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(fake, server)
    fake.url = f"127.0.0.1:{server.add_insecure_port(f'127.0.0.1:{port}')}"
    await server.start()
    try:
        yield fake
    finally:
        await server.stop(None)


def reply(**tensors: np.ndarray[Any, Any]) -> Any:
    message = service_pb2.ModelInferResponse()
    for name, value in tensors.items():
        datatype = {"f": "FP32", "i": "INT32"}[value.dtype.kind]
        message.outputs.add(name=name, datatype=datatype, shape=value.shape)
        message.raw_output_contents.append(value.tobytes())
    return message


async def two_objects(request: Any, context: grpc.aio.ServicerContext) -> Any:
    return picture_with(2)


def picture_with(count: int) -> Any:
    return reply(
        image_size=np.array([[640, 480]], np.int32),
        image_embedding=np.ones((1, 8), np.float32),
        boxes=np.arange(count * 4, dtype=np.float32).reshape(1, count, 4),
        scores=np.linspace(1, 0.5, count, dtype=np.float32)[None],
        class_ids=np.arange(count, dtype=np.int32)[None],
        object_embeddings=np.arange(count * 8, dtype=np.float32).reshape(1, count, 8),
    )


def failing(code: grpc.StatusCode, details: str) -> Answer:
    async def answer(request: Any, context: grpc.aio.ServicerContext) -> Any:
        await context.abort(code, details)

    return answer
