"""Closed-loop load on `image_pipeline` over gRPC, from processes of their own, lean enough not to be the limit.

The library's client checks and converts each reply; here a reply is only parsed and its objects counted.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import numpy as np
from tritonclient.grpc import service_pb2

from sightlog.errors import SightlogError
from triton_repo import contract

#: Seconds at the beginning of each level that do not count: until as many requests are under way as shall be.
WARM_S = 1.0
_METHOD = "/inference.GRPCInferenceService/ModelInfer"
_START_S = 0.3  # from the word to the first request, so that all processes have heard it
_PAUSE_S = 0.05  # after a failed request, which else would be repeated as fast as the processor allows


class LoadError(SightlogError):
    """A process that makes load has ended before it was done."""


@dataclass(frozen=True)
class Load:
    """What came back at one number of requests under way. `client_cores`: processor time of the clients a second."""

    in_flight: int
    images_per_s: float
    p50_ms: float | None
    p99_ms: float | None
    mean_objects: float
    failures: int
    first_failure: str
    client_cores: float


@dataclass
class Tally:
    """What one process saw at one level; replies and latencies (ms) after the warm-up only."""

    replies: int = 0
    objects: int = 0
    latencies: list[float] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    cpu_s: float = 0.0


def measure_load(
    address: str,
    version: int,
    pictures: Path,
    levels: Sequence[int],
    seconds: float,
    *,
    processes: int = 2,
    warm: float = WARM_S,
) -> list[Load]:
    """Keep each of `levels` requests under way for `seconds`, one level after the other, with the files of a folder.

    `address`: host:port of gRPC. Failed requests are counted, not raised. Raises LoadError.
    """
    processes = min(processes, max(levels))
    clients = [
        subprocess.Popen(
            [
                *(sys.executable, "-m", "load_tests.gpu_load", address, str(version), str(pictures)),
                *("--seconds", str(seconds), "--warm", str(warm)),
                *("--levels", *(str(share(level, processes, number)) for level in levels)),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=Path(__file__).parent.parent,
            text=True,
        )
        for number in range(processes)
    ]
    try:
        for client in clients:
            if _pipe(client.stdout).readline().strip() != "ready":
                raise LoadError("a client of the load test did not start; what it printed is above")
        began = time.time() + _START_S
        for client in clients:
            print(began, file=_pipe(client.stdin), flush=True)
        told = [_pipe(client.stdout).readline() for client in clients]
        if not all(told):
            raise LoadError("a client of the load test ended early; what it printed is above")
    finally:
        for client in clients:
            client.terminate()
            client.wait()
    by_client = [[Tally(**tally) for tally in json.loads(line)] for line in told]
    return [
        merged(level, tallies, seconds, warm)
        for level, tallies in zip(levels, zip(*by_client, strict=True), strict=True)
    ]


def share(level: int, processes: int, number: int) -> int:
    """Requests that one of the processes keeps under way; may be none."""
    return level // processes + (number < level % processes)


def percentiles_ms(latencies: Sequence[float]) -> tuple[float | None, float | None]:
    """p50 and p99; None where nothing came back."""
    if not latencies:
        return None, None
    p50, p99 = np.percentile(latencies, [50, 99])
    return round(float(p50), 2), round(float(p99), 2)


def image_request(version: int, data: bytes) -> bytes:
    """The serialised request for one file."""
    tensor = service_pb2.ModelInferRequest.InferInputTensor(name=contract.IMAGE, datatype="UINT8", shape=[1, len(data)])
    request = service_pb2.ModelInferRequest(
        model_name=contract.IMAGE_PIPELINE,
        model_version=str(version),
        inputs=[tensor],
        outputs=[
            service_pb2.ModelInferRequest.InferRequestedOutputTensor(name=name) for name in contract.IMAGE_OUTPUTS
        ],
        raw_input_contents=[data],
    )
    serialised: bytes = request.SerializeToString()
    return serialised


async def run_levels(
    address: str, requests: Sequence[bytes], levels: Sequence[int], began: float, seconds: float, warm: float
) -> list[Tally]:
    """What one client does: each level from its time (of the wall clock) on."""
    unlimited = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]
    tallies = []
    async with grpc.aio.insecure_channel(address, options=unlimited) as channel:
        call = channel.unary_unary(_METHOD, request_serializer=bytes, response_deserializer=bytes)
        for number, level in enumerate(levels):
            tally, starts = Tally(), began + number * (warm + seconds)
            await asyncio.sleep(max(0.0, starts - time.time()))
            spent = time.process_time()
            counted, ends = starts + warm, starts + warm + seconds
            await asyncio.gather(*(_ask(call, requests, k * 7, tally, counted, ends) for k in range(level)))
            tally.cpu_s = time.process_time() - spent
            tallies.append(tally)
    return tallies


async def _ask(call: Any, requests: Sequence[bytes], first: int, tally: Tally, counted: float, ends: float) -> None:
    """One request after another, through the files in turns."""
    number = first
    while (sent := time.time()) < ends:
        try:
            reply = await call(requests[number % len(requests)], timeout=60)
        except grpc.aio.AioRpcError as error:
            tally.failures.append(f"{error.code().name}: {error.details()}"[:300])
            await asyncio.sleep(_PAUSE_S)
        else:
            got = time.time()
            if counted <= got < ends:
                tally.replies += 1
                tally.objects += _objects(reply)
                if sent >= counted:
                    tally.latencies.append((got - sent) * 1000)
        number += 1


def _objects(reply: bytes) -> int:
    outputs = service_pb2.ModelInferResponse.FromString(reply).outputs
    return next(int(output.shape[-2]) for output in outputs if output.name == contract.BOXES)


def merged(level: int, tallies: Sequence[Tally], seconds: float, warm: float) -> Load:
    """What the processes saw together at one level."""
    latencies = [value for tally in tallies for value in tally.latencies]
    failures = [text for tally in tallies for text in tally.failures]
    replies = sum(tally.replies for tally in tallies)
    p50, p99 = percentiles_ms(latencies)
    return Load(
        in_flight=level,
        images_per_s=round(replies / seconds, 1),
        p50_ms=p50,
        p99_ms=p99,
        mean_objects=round(sum(tally.objects for tally in tallies) / max(replies, 1), 2),
        failures=len(failures),
        first_failure=failures[0] if failures else "",
        client_cores=round(sum(tally.cpu_s for tally in tallies) / (seconds + warm), 2),
    )


def _pipe(stream: Any) -> Any:
    assert stream is not None
    return stream


def main() -> None:
    """One client: says that it is ready, reads when to begin, answers with one line of JSON."""
    parser = argparse.ArgumentParser()
    parser.add_argument("address")
    parser.add_argument("version", type=int)
    parser.add_argument("pictures", type=Path)
    parser.add_argument("--levels", type=int, nargs="+", required=True)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--warm", type=float, required=True)
    said = parser.parse_args()
    with suppress(ModuleNotFoundError):  # faster, where it is installed
        importlib.import_module("uvloop").install()
    requests = [image_request(said.version, path.read_bytes()) for path in sorted(said.pictures.iterdir())]
    print("ready", flush=True)
    began = float(sys.stdin.readline())
    tallies = asyncio.run(run_levels(said.address, requests, said.levels, began, said.seconds, said.warm))
    print(json.dumps([vars(tally) for tally in tallies]), flush=True)


if __name__ == "__main__":
    main()
