"""A worker process for fault tests: consumes a topic, fails now and then, and writes what it finished to a file.

`python -m tests.stack.faulty_work MODE BOOTSTRAP TOPIC FILE [SECONDS]`

plain    a Faust agent as its documentation shows it: concurrency 8, events acknowledged by the iterator
window   the very same work in the window of our agents
slow     the same, but every piece of work takes SECONDS and none fails
"""

from __future__ import annotations

import asyncio
import functools
import os
import random
import sys
from typing import Any

import faust

from agents.app import attach, new_app
from agents.delivery.failures import DependencyDown
from agents.delivery.records import Record
from agents.delivery.retry import Backoff, until_up
from agents.delivery.window import WindowLimits, drain
from agents.settings import AgentSettings

#: Of all attempts.
FAILING = 0.01
CONCURRENCY = 8
SESSION_S = 6.0


class InferenceFailed(Exception):
    pass


class Work:
    """Takes a while, fails at times, and writes down what it finished, one line an event, before it returns."""

    def __init__(self, path: str, seconds: float, failing: float) -> None:
        self._file = os.open(path, os.O_CREAT | os.O_APPEND | os.O_WRONLY)
        self._seconds = seconds
        self._failing = failing

    async def __call__(self, value: bytes) -> None:
        await asyncio.sleep(self._seconds * random.uniform(0.5, 1.5))
        if random.random() < self._failing:
            raise InferenceFailed
        os.write(self._file, value + b"\n")


def plain_app(bootstrap: str, topic: str, work: Work) -> faust.App:
    app = faust.App(
        f"{topic}-plain",
        broker=f"kafka://{bootstrap}",
        store="memory://",
        web_enabled=False,
        topic_disable_leader=True,
        topic_allow_declare=False,
        consumer_auto_offset_reset="earliest",
        # Only so that a killed process is noticed within the time that a test has.
        broker_session_timeout=SESSION_S,
        broker_heartbeat_interval=1.0,
    )
    raw = app.topic(topic, key_type=bytes, key_serializer="raw", value_type=bytes, value_serializer="raw")

    @app.agent(raw, concurrency=CONCURRENCY)  # type: ignore[untyped-decorator, unused-ignore]
    async def agent(stream: Any) -> None:
        async for value in stream:
            await work(value)

    return app


def window_app(bootstrap: str, topic: str, work: Work, **settings: Any) -> faust.App:
    backoff = Backoff(first=0.01, limit=0.1)

    async def once(record: Record) -> None:
        try:
            await work(record.value or b"")
        except InferenceFailed:
            raise DependencyDown("inference failed") from None

    async def see(records: list[Record]) -> None:
        for record in records:
            await until_up("inference", functools.partial(once, record), backoff)

    async def agent(stream: Any) -> None:
        limits = WindowLimits(unacked=64, unacked_bytes=1 << 20, concurrency=CONCURRENCY)
        await drain(stream.noack(), see, limits)

    made = AgentSettings.load(
        kafka=bootstrap, session_timeout=SESSION_S, client_id=f"{topic}-{os.getpid()}", **settings
    )
    return attach(new_app(f"{topic}-window", made), topic, agent)


def main(mode: str, bootstrap: str, topic: str, path: str, seconds: str = "0.01") -> None:
    work = Work(path, float(seconds), 0.0 if mode == "slow" else FAILING)
    if mode == "plain":
        app = plain_app(bootstrap, topic, work)
    elif mode == "slow":
        # Shorter than one piece of work.
        app = window_app(bootstrap, topic, work, rebalance_timeout=float(seconds) / 4)
    else:
        app = window_app(bootstrap, topic, work)
    worker: Any = faust.Worker(app, loglevel="warning", redirect_stdouts=False)
    worker.execute_from_commandline()


if __name__ == "__main__":
    main(*sys.argv[1:])
