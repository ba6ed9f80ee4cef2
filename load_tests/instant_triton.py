"""A stand-in for Triton that answers every picture at once with the same result: what is measured is the rest.

`python -m load_tests.instant_triton PORT_FILE`; it writes its port there when it answers, and ends on SIGTERM.
"""

from __future__ import annotations

import asyncio
import signal
import sys
from pathlib import Path
from typing import Any

import grpc
import numpy as np
from tritonclient.grpc import service_pb2

from models.manifest import load_manifest
from triton_repo import contract

_SERVICE = "inference.GRPCInferenceService"


def seen(dim: int, objects: int = 1) -> bytes:
    """A serialised reply of `image_pipeline`: a picture of 640 x 480 with some objects."""
    vectors = np.full((1 + objects, dim), dim**-0.5, np.float32)
    boxes = np.tile(np.array([10, 20, 110, 220], np.float32), (objects, 1))
    tensors: dict[str, np.ndarray[Any, Any]] = {
        contract.IMAGE_SIZE: np.array([[640, 480]], np.int32),
        contract.IMAGE_EMBEDDING: vectors[:1],
        contract.BOXES: boxes[None],
        contract.SCORES: np.full((1, objects), 0.9, np.float32),
        contract.CLASS_IDS: np.zeros((1, objects), np.int32),
        contract.OBJECT_EMBEDDINGS: vectors[None, 1:],
    }
    reply = service_pb2.ModelInferResponse(model_name=contract.IMAGE_PIPELINE)
    for name, value in tensors.items():
        reply.outputs.add(name=name, datatype="INT32" if value.dtype.kind == "i" else "FP32", shape=value.shape)
        reply.raw_output_contents.append(value.tobytes())
    return bytes(reply.SerializeToString())


async def serve(port_file: Path) -> None:
    """Answer until SIGTERM."""
    answer = seen(load_manifest().clip.dim)
    ready = bytes(service_pb2.ModelReadyResponse(ready=True).SerializeToString())

    async def infer(_request: bytes, _context: Any) -> bytes:
        return answer

    async def is_ready(_request: bytes, _context: Any) -> bytes:
        return ready

    # Bytes in, bytes out: nothing is parsed.
    methods = {
        "ModelInfer": grpc.unary_unary_rpc_method_handler(infer),
        "ModelReady": grpc.unary_unary_rpc_method_handler(is_ready),
    }
    server = grpc.aio.server(options=[("grpc.max_receive_message_length", -1)])
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler(_SERVICE, methods)])
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    written = port_file.with_suffix(".new")
    written.write_text(str(port))
    written.rename(port_file)
    await stop.wait()
    await server.stop(None)


if __name__ == "__main__":
    asyncio.run(serve(Path(sys.argv[1])))
