"""Which worker processes a stack has, and topics that can be shared among them."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from models.manifest import load_manifest
from stack.kafka import DEFAULT_TOPICS
from stack.settings import StackSettings
from stack.workers import Worker, topics_for, workers_of
from triton_repo.tuning import Tuning, machine_id, save_tuning


def names(**settings: object) -> list[str]:
    return [worker.name for worker in workers_of(StackSettings.model_validate(settings))]


def test_each_worker_runs_once_by_default() -> None:
    assert names() == ["worker-vision", "worker-indexer", "worker-search", "worker-retry"]
    assert topics_for(StackSettings()) == DEFAULT_TOPICS


def test_a_stack_without_workers_has_none() -> None:
    assert names(workers=False, vision_workers=3) == []


def test_processes_of_a_worker_have_names_of_their_own_and_one_group(tmp_path: Path) -> None:
    settings = StackSettings(data_dir=tmp_path, vision_workers=3, indexer_workers=2)
    workers = workers_of(settings)
    assert [worker.name for worker in workers] == [
        "worker-vision",
        "worker-vision-2",
        "worker-vision-3",
        "worker-indexer",
        "worker-indexer-2",
        "worker-search",
        "worker-retry",
    ]
    assert [worker.group for worker in workers].count("sightlog-vision") == 3
    launches = [worker.launch() for worker in workers]
    assert len({launch.cwd for launch in launches}) == len(workers)
    assert len({launch.env["SIGHTLOG_CLIENT_ID"] for launch in launches}) == len(workers)
    assert [launch.command[-1] for launch in launches].count("vision") == 3


def test_a_process_that_starts_again_is_another_member_of_its_group(tmp_path: Path) -> None:
    worker = Worker(StackSettings(data_dir=tmp_path), "vision")
    assert worker.launch().env["SIGHTLOG_CLIENT_ID"] != worker.launch().env["SIGHTLOG_CLIENT_ID"]


@pytest.mark.parametrize(("processes", "partitions"), [(1, 4), (2, 4), (3, 6), (4, 4), (5, 5), (8, 8)])
def test_partitions_can_be_shared_evenly(processes: int, partitions: int) -> None:
    settings = StackSettings(vision_workers=processes, indexer_workers=1)
    made = {spec.name: spec.partitions for spec in topics_for(settings)}
    assert made == {spec.name: spec.partitions for spec in DEFAULT_TOPICS} | {"images": partitions}


def test_retry_tiers_of_the_settings_get_topics(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SIGHTLOG_TOPIC_RETRY_TIERS", "10s,2s")
    made = {spec.name: spec for spec in topics_for(StackSettings())}
    assert made["images.retry.2s"].config == made["images.retry.10s"].config
    assert made["images.retry.2s"].config["message.timestamp.type"] == "LogAppendTime"


def test_a_stack_without_triton_leaves_the_choice_of_tritons_to_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SIGHTLOG_TRITON", "gpu-1:8001,gpu-2:8001")
    own = Worker(StackSettings(data_dir=tmp_path), "vision").launch()
    others = Worker(StackSettings(data_dir=tmp_path, components=("kafka", "opensearch")), "vision").launch()
    assert own.env["SIGHTLOG_TRITON"] == "127.0.0.1:18001"
    assert others.env["SIGHTLOG_TRITON"] == "gpu-1:8001,gpu-2:8001"


def test_a_stack_has_at_least_one_process_of_each_worker() -> None:
    with pytest.raises(ValidationError, match="vision_workers"):
        StackSettings(vision_workers=0)


def test_vision_workers_share_what_was_tuned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SIGHTLOG_VISION_CONCURRENCY", raising=False)
    digest = load_manifest().digest
    save_tuning(tmp_path, Tuning(machine_id(), digest, "cpu", vision_concurrency=100))
    settings = StackSettings(data_dir=tmp_path, vision_workers=3)
    shares = [worker.launch().env.get("SIGHTLOG_VISION_CONCURRENCY") for worker in workers_of(settings)]
    assert shares == ["34", "34", "34", None, None, None]
    save_tuning(tmp_path, Tuning(machine_id(), "of other models", "cpu", vision_concurrency=100))
    assert "SIGHTLOG_VISION_CONCURRENCY" not in workers_of(settings)[0].launch().env
