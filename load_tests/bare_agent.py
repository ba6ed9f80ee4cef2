"""What a vision worker does without what makes it safe: consume, ask Triton, produce. The bar of `bench agent`.

No event is parsed, no digest taken, no order kept, no delivery awaited; offsets are committed by a timer.
`python -m load_tests.bare_agent BROKER TRITON CONCURRENCY`; ends on SIGTERM.
"""

from __future__ import annotations

import asyncio
import signal
import sys
from datetime import datetime, timezone

import numpy as np
from confluent_kafka import Consumer, Producer
from tritonclient.grpc import InferInput, InferRequestedOutput
from tritonclient.grpc.aio import InferenceServerClient

from models.manifest import load_manifest
from sightlog.documents import Detection, EmbeddingDocument, ModelRef
from triton_repo import contract

GROUP = "bench-bare"


def document() -> bytes:
    """What the worker would publish for a picture in which the stand-in sees one object."""
    manifest = load_manifest()
    vector = np.full(manifest.clip.dim, manifest.clip.dim**-0.5, np.float32)
    thing = Detection(
        ordinal=0,
        class_name=manifest.detector.classes[0],
        confidence=0.9,
        box=(10, 20, 110, 220),
        box_normalised=(0.01, 0.04, 0.17, 0.45),
        vector=vector,
    )
    return EmbeddingDocument(
        image_id="bench-000000",
        version=1,
        event_id="0" * 36,
        event_source="/bench",
        uploaded_at=datetime.now(timezone.utc),
        sha256="0" * 64,
        size_bytes=100_000,
        width=640,
        height=480,
        model=ModelRef(name=manifest.name, digest=manifest.digest),
        vector=vector,
        detections=(thing,),
    ).to_kafka()


async def run(bootstrap: str, triton: str, concurrency: int) -> None:
    """Until SIGTERM."""
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, stopped.set)
    consumer = Consumer(
        {
            "bootstrap.servers": bootstrap,
            "group.id": GROUP,
            "auto.offset.reset": "earliest",
            # By default it pauses for a second each time that its buffer of 64 MiB is full.
            "fetch.queue.backoff.ms": 10,
        }
    )
    consumer.subscribe(["images"])
    producer = Producer({"bootstrap.servers": bootstrap, "linger.ms": 5, "acks": "all"})
    outputs = [InferRequestedOutput(name) for name in contract.IMAGE_OUTPUTS]
    value, slots = document(), asyncio.Semaphore(concurrency)
    running: set[asyncio.Task[None]] = set()

    async def see(picture: bytes, key: bytes | None) -> None:
        asked = InferInput(contract.IMAGE, [1, len(picture)], "UINT8")
        asked.set_data_from_numpy(np.frombuffer(picture, np.uint8)[None])
        result = await client.infer(contract.IMAGE_PIPELINE, [asked], outputs=outputs)
        for name in contract.IMAGE_OUTPUTS:
            result.as_numpy(name)
        producer.produce("images.embedded", value, key)
        producer.poll(0)
        slots.release()

    async with InferenceServerClient(triton) as client:
        while not stopped.is_set():
            for message in await loop.run_in_executor(None, consumer.consume, 20, 0.1):
                await slots.acquire()
                task = asyncio.create_task(see(message.value() or b"", message.key()))
                running.add(task)
                task.add_done_callback(running.discard)
        await asyncio.gather(*running)
    producer.flush(10)
    consumer.close()


if __name__ == "__main__":
    asyncio.run(run(sys.argv[1], sys.argv[2], int(sys.argv[3])))
