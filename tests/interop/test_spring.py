"""Spring for Apache Kafka's ReplyingKafkaTemplate against the search agent: its headers, its JSON, its time-outs."""

from __future__ import annotations

import base64
import json
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from agents.settings import AgentSettings
from sightlog.client import Client
from sightlog.search import SearchRequest
from tests.interop.conftest import Album
from tests.pictures import truncated_jpeg

PROJECT = Path(__file__).parent / "spring"
PARTITION = 5
PATIENCE_MS = 30_000

Questions = list[dict[str, Any]]
#: Asks all questions at once; what became of each.
Ask = Callable[[Questions], list[dict[str, Any]]]


def missing_tools() -> str | None:
    """Why the project cannot be built here, or None."""
    for tool, package in (("javac", "a JDK 17 or newer"), ("mvn", "Maven")):
        if shutil.which(tool) is None:
            return f"no {tool} on the path: install {package}"
    version = subprocess.run(["javac", "-version"], capture_output=True, text=True, check=True)
    found = re.search(r"\d+", version.stdout + version.stderr)
    if found is None or int(found[0]) < 17:
        return f"{version.stdout.strip()} is too old: install a JDK 17 or newer"
    return None


@pytest.fixture(scope="session")
def classpath(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The compiled client and its libraries."""
    reason = missing_tools()
    if reason is not None:
        pytest.skip(reason)
    folder = tmp_path_factory.mktemp("spring")
    built = subprocess.run(
        [
            *("mvn", "--batch-mode", "--quiet", "--file", str(PROJECT / "pom.xml"), f"-Dfolder={folder}"),
            *("compile", "dependency:build-classpath", f"-Dmdep.outputFile={folder / 'libraries'}"),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert built.returncode == 0, built.stdout + built.stderr
    return f"{folder / 'classes'}:{(folder / 'libraries').read_text()}"


@pytest.fixture(scope="session")
def ask(classpath: str, settings: AgentSettings) -> Ask:
    topics = settings.topics
    command = [
        *("java", "-XX:TieredStopAtLevel=1", "-Xmx128m", "-Dorg.slf4j.simpleLogger.defaultLogLevel=error"),
        *("-cp", classpath, "interop.Ask"),
        *(settings.kafka, topics.requests, topics.replies, str(PARTITION)),
    ]

    def run(questions: Questions) -> list[dict[str, Any]]:
        lines = "".join(json.dumps({"patienceMs": PATIENCE_MS, **question}) + "\n" for question in questions)
        done = subprocess.run(command, input=lines, capture_output=True, text=True, check=False, timeout=300)
        assert done.returncode == 0, done.stderr
        return [json.loads(line) for line in done.stdout.splitlines()]

    return run


def base64_of(data: bytes) -> str:
    return base64.b64encode(data).decode()


def ids(hits: Any) -> list[str]:
    return [hit["object_id"] or hit["image_id"] for hit in hits]


def test_spring_finds_what_the_python_client_finds(ask: Ask, client: Client, album: Album) -> None:
    image_id, jpeg = next(iter(album.pictures.items()))
    in_album = {"tags": [album.tag]}
    questions: list[dict[str, Any]] = [
        {"text": "a striped red circle", "k": 5, "filters": in_album},
        {"text": "a blue square", "target": "objects", "k": 4, "filters": {**in_album, "min_confidence": 0.3}},
        {"image": base64_of(jpeg), "k": 3, "filters": in_album},
        {"image_id": image_id, "k": 3, "filters": in_album},
        {"clauses": [{"text": "a circle"}, {"text": "red", "weight": -0.5}], "k": 5, "filters": in_album},
    ]
    outcomes = ask([{"request": question} for question in questions])
    for question, outcome in zip(questions, outcomes, strict=True):
        expected = client.search(SearchRequest.model_validate(question), timeout=30)
        wanted = [hit.model_dump(include={"object_id", "image_id"}) for hit in expected.hits]
        assert wanted
        found = [{"object_id": None, **hit} for hit in outcome["reply"]["hits"]]
        assert ids(found) == ids(wanted), question
        assert [hit["score"] for hit in found] == pytest.approx([hit.score for hit in expected.hits], abs=1e-5)
        assert outcome["reply"]["model_digest"] == expected.model_digest


def test_each_of_many_requests_at_once_gets_its_own_answer_on_its_own_partition(ask: Ask, album: Album) -> None:
    wanted = list(album.pictures) * 4
    outcomes = ask(
        [
            {"request": {"image": base64_of(album.pictures[image_id]), "k": 1, "filters": {"tags": [album.tag]}}}
            for image_id in wanted
        ]
    )
    assert [outcome["reply"]["hits"][0]["image_id"] for outcome in outcomes] == wanted
    assert {(outcome["partition"], outcome["echoed"]) for outcome in outcomes} == {(PARTITION, True)}


@pytest.mark.parametrize(
    ("request_body", "code", "says"),
    [
        ({"text": "x", "k": 0}, "bad_request", "greater than or equal to 1"),
        ({"text": "x", "image_id": "y"}, "bad_request", "give one of"),
        ({"text": "x", "filters": {"classes": ["dog"]}}, "unknown_class", "dog"),
        ({"image": base64_of(truncated_jpeg())}, "undecodable", ""),
        ({"image_id": "nobody has seen it"}, "unknown_image", "nobody has seen it"),
        ({"cursor": "forged"}, "bad_cursor", ""),
    ],
    ids=["too few", "two questions", "unknown class", "broken picture", "unknown image", "forged cursor"],
)
def test_an_error_is_a_reply_with_its_code(ask: Ask, request_body: dict[str, Any], code: str, says: str) -> None:
    (outcome,) = ask([{"request": request_body}])
    assert outcome["error"]["code"] == code
    assert says in outcome["error"]["message"]


def test_pages_follow_each_other_without_gap_or_repeat(ask: Ask, album: Album) -> None:
    first = {"text": "a circle", "k": 3, "pages": True, "filters": {"tags": [album.tag]}}
    found: list[str] = []
    request: dict[str, Any] | None = first
    while request is not None:
        (outcome,) = ask([{"request": request}])
        found += [hit["image_id"] for hit in outcome["reply"]["hits"]]
        cursor = outcome["reply"].get("cursor")
        request = None if cursor is None else {"cursor": cursor}
    assert sorted(found) == sorted(album.pictures)


def test_a_request_past_its_deadline_is_never_answered_and_those_around_it_are(ask: Ask) -> None:
    late = {"request": {"text": "late"}, "patienceMs": 3000, "deadlineMs": -1000}
    punctual = {"request": {"text": "punctual"}}
    outcomes = ask([punctual, late, punctual])
    assert [outcome["timeout"] for outcome in outcomes] == [False, True, False]
