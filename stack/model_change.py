"""Changes the models of a running stack: Triton and the workers start again, Kafka and OpenSearch go on."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

from sightlog.settings import Topics
from stack.child import hold_file
from stack.component import Progress
from stack.kafka import group_lag
from stack.local import LocalStack
from stack.settings import StackSettings
from stack.supervisor import SETTINGS_FILE
from stack.triton import Triton
from stack.workers import workers_of

_VISION, _INDEXER = "sightlog-vision", "sightlog-indexer"
_POLL_S = 0.2


def reload_models(local: LocalStack, told: Progress, drain_timeout_s: float = 60.0) -> None:
    """Return when Triton and the workers run the models that are chosen now; image events wait meanwhile.

    What the vision worker has embedded already is indexed first: another model's indexer would refuse it.
    Raises StartError, NotRunningError.
    """
    running = StackSettings.model_validate_json((local.data_dir / SETTINGS_FILE).read_bytes())
    workers = workers_of(running)
    vision = [worker.name for worker in workers if worker.group == _VISION]
    restarted = ["triton", *(worker.name for worker in workers)]
    try:
        with ThreadPoolExecutor() as threads:
            if vision and any(worker.group == _INDEXER for worker in workers):
                list(threads.map(local.stop_component, vision))
                _drain_indexer(local, told, drain_timeout_s)
            told.message("stopping Triton and the workers")
            list(threads.map(local.stop_component, restarted))
        Triton(running).prepare(told)
    finally:
        for name in restarted:
            hold_file(local.data_dir, name).unlink(missing_ok=True)
    told.message("starting Triton and the workers")
    with ThreadPoolExecutor() as threads:
        list(threads.map(local.await_component, restarted))


def _drain_indexer(local: LocalStack, told: Progress, timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    bootstrap, topic = local.endpoints().kafka, Topics.load().embedded
    while lag := group_lag(bootstrap, _INDEXER, topic):
        if time.monotonic() > deadline:
            told.message(f"{lag} embedded images are not indexed yet; they become dead letters (model_mismatch)")
            return
        time.sleep(_POLL_S)
