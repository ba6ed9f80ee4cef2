"""Faults are planted into a real log and real indices: the audit names each of them, and its repair mends them."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import uuid
from typing import Any

import orjson
import pytest
from rich.console import Console

from agents.audit.run import KINDS, Report, Wishes, audit
from agents.index.connection import connect
from agents.settings import AgentSettings
from models.photos import photos
from sightlog.client import Client
from sightlog.events import new_deletion, new_update, new_upload
from sightlog.follow import Follower
from stack.local import LocalStack

Findings = dict[str, set[str | None]]


@pytest.fixture(scope="module")
def tag() -> str:
    """Also the beginning of every image id here: other tests leave their own things in the same indices."""
    return f"audit-{uuid.uuid4().hex[:8]}"


def examine(settings: AgentSettings, tag: str, **wishes: Any) -> tuple[Report, Findings]:
    """An audit, and the documents of this module that it names."""
    report = asyncio.run(audit(Console(quiet=True), settings, Wishes(listed=100_000, wait_s=30, **wishes)))
    found: Findings = {
        kind: {one.document for one in report.names[kind] if (one.image_id or "").startswith(tag)} for kind in KINDS
    }
    return report, {kind: names for kind, names in found.items() if names}


@pytest.fixture(scope="module")
def published(stack: LocalStack, settings: AgentSettings, client: Client, tag: str) -> list[str]:
    """Eight images: number 1 came twice, 5 was deleted, 6 got new tags; and one event that cannot be decoded."""
    names = [f"{tag}-{number}" for number in range(8)]
    pictures = photos(8, seed=11, sizes=[(240, 180)])

    with Follower(settings) as follower:
        for name, picture in zip(names, pictures, strict=True):
            client.publish(new_upload(picture.jpeg, source="/test"), key=name)
        client.publish(new_upload(b"no picture", source="/test"), key=f"{tag}-broken")
        assert len(list(follower.outcomes([*names, f"{tag}-broken"]))) == 9
    with Follower(settings) as follower:
        client.publish(new_upload(pictures[2].jpeg, source="/test"), key=names[1])
        client.publish(new_deletion(source="/test"), key=names[5])
        client.publish(new_update(source="/test", tags=("new",)), key=names[6])
        assert len(list(follower.outcomes([names[1], names[5], names[6]]))) == 3
    return names


async def plant(settings: AgentSettings, names: list[str], tag: str) -> Findings:
    """Break one thing of each kind; what the audit must say."""
    images, objects = settings.index.images, settings.index.objects
    async with connect(settings.opensearch) as client:

        async def source(index: str, name: str) -> dict[str, Any]:
            found: dict[str, Any] = (await client.get(index=index, id=name))["_source"]
            return found

        whole = await source(images, names[7])
        thing = await source(objects, f"{names[7]}#0")
        await client.delete(index=images, id=names[0])
        back = dict.fromkeys(("version", "tags_version", "metadata_version"), 1)
        await client.update(index=images, id=names[1], body={"doc": back})
        await client.index(index=objects, id=f"{names[2]}#77", body={**thing, "image_id": names[2], "ordinal": 77})
        # With the version that it has: a plain deletion would count as a newer write than any of the log.
        held = (await client.get(index=objects, id=f"{names[3]}#0"))["_version"]
        at = {"version": held, "version_type": "external_gte"}
        await client.delete(index=objects, id=f"{names[3]}#0", params=at)
        await client.index(index=images, id=f"{tag}-copy", body={**await source(images, names[4]), "filename": "copy"})
        await client.index(index=images, id=names[5], body={**whole, **back, "image_id": names[5]})
        await client.index(index=images, id=f"{tag}-never", body={**whole, "image_id": f"{tag}-never"})
        await client.indices.refresh(index=f"{images},{objects}")
    return {
        "missing": {names[0], f"{names[3]}#0"},
        "stale": {names[1], names[5]},
        "orphans": {f"{names[2]}#77", f"{tag}-never"},
        "duplicates": {f"{tag}-copy"},
    }


def test_each_planted_fault_is_named_and_repair_mends_them(
    published: list[str], settings: AgentSettings, tag: str
) -> None:
    report, found = examine(settings, tag)
    assert found == {}
    assert report.in_flight == 0
    assert report.dead >= 1
    planted = asyncio.run(plant(settings, published, tag))
    report, found = examine(settings, tag, repair=True)
    # What stands out twice is said twice: the objects of an image that was set back are of another state than it.
    assert {kind: {name for name in names if "#" not in str(name)} for kind, names in found.items()} == {
        kind: {name for name in names if "#" not in str(name)} for kind, names in planted.items()
    }
    for kind, names in planted.items():
        assert names <= found[kind]
    assert not report.clean
    assert report.repaired is not None
    assert report.repaired.gone == report.repaired.changed_meanwhile == 0
    after, found = examine(settings, tag)
    assert found == {}
    assert after.events == report.events  # what came back is no new event


def test_an_event_is_in_flight_until_its_worker_is_back(
    stack: LocalStack, settings: AgentSettings, client: Client, published: list[str], tag: str
) -> None:
    stack.stop_component("worker-vision")
    picture = photos(1, seed=12, sizes=[(240, 180)])[0]
    client.publish(new_upload(picture.jpeg, source="/test"), key=f"{tag}-late")
    report = asyncio.run(audit(Console(quiet=True), settings, Wishes(listed=100)))
    stack.start_component("worker-vision")
    assert report.in_flight == 1
    assert all(one.image_id != f"{tag}-late" for one in report.names["missing"])
    report, found = examine(settings, tag)
    assert (report.in_flight, found) == (0, {})


def test_the_command_tells_by_its_exit_code_whether_all_is_well_or_could_not_be_seen(
    stack: LocalStack, settings: AgentSettings, published: list[str]
) -> None:
    command = [sys.executable, "-m", "sightlog", "audit", "--json", "--list", "0"]
    seen = subprocess.run(command, capture_output=True, check=False)
    report = orjson.loads(seen.stdout)
    assert seen.returncode == (0 if report["clean"] else 1)
    outcomes = ("indexed", "superseded", "deleted", "dead", "in_flight", "unaccounted")
    assert report["events"] == sum(report[name] for name in outcomes)
    nowhere = {**os.environ, "SIGHTLOG_KAFKA": "127.0.0.1:9"}
    unseen = subprocess.run(command, capture_output=True, check=False, env=nowhere)
    assert unseen.returncode == 2
    assert unseen.stderr.startswith(b"sightlog: ")
