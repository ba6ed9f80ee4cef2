"""The clients, what the docs say about them and `sightlog search`, on the real stack."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import re
import shlex
import subprocess
import sys
import uuid
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path

import orjson
import pytest

from agents.settings import AgentSettings
from models.photos import photos
from sightlog.async_client import AsyncClient
from sightlog.client import Client
from sightlog.errors import BecameDeadLetter, NotSearchableYet, SearchFailed
from sightlog.search import SearchReply
from tests.forking import forked

ROOT = Path(__file__).parents[2]
GUIDE = (ROOT / "docs" / "client.md").read_text()
BLOCKS = re.findall(r"```python ?(\w*)\n(.*?)```", GUIDE, re.DOTALL)
COMMANDS = re.findall(r"^sightlog (search .+)$", GUIDE, re.MULTILINE)


@pytest.fixture(scope="module")
def tag(settings: AgentSettings, uploads: Path) -> str:
    """The tag of twelve scenes that are indexed; each is a file that its reference names."""
    from sightlog.events import new_upload

    tag = f"client-{uuid.uuid4().hex[:8]}"
    with Client(settings) as client:
        published = []
        for number, photo in enumerate(photos(12, 31, [(640, 480)])):
            file = uploads / f"{tag}-{number}.jpg"
            file.write_bytes(photo.jpeg)
            event = new_upload(source="/test", dataref=file.as_uri(), tags=(tag, "demo"), filename=file.name)
            published.append(client.publish(event, key=f"{tag}-{number}"))
        receipts = client.wait_until_indexed(published, timeout=120)
    assert receipts.keys() == {f"{tag}-{number}" for number in range(12)}
    return tag


def test_threads_share_one_connection(client: Client, tag: str) -> None:
    with ThreadPoolExecutor(16) as pool:
        replies = list(
            pool.map(lambda _: client.search("a circle", k=20, filters={"tags": [tag]}, timeout=60), range(100))
        )
    assert {len(reply.hits) for reply in replies} == {12}
    assert client._connection.waiting == 0


def test_a_forked_child_searches_and_publishes_while_the_parent_goes_on(
    client: Client, tag: str, settings: AgentSettings
) -> None:
    def in_child() -> None:
        reply = client.search("a circle", filters={"tags": [tag]}, k=20, timeout=30)
        assert len(reply.hits) == 12
        client.wait_until_indexed(f"{tag}-0", timeout=30)
        client.close()

    client.search("a circle", timeout=30)
    with ThreadPoolExecutor(4) as pool:
        going_on = [pool.submit(client.search, "a star", timeout=60) for _ in range(40)]
        assert [forked(in_child, seconds=60) for _ in range(2)] == [0, 0]
        assert all(isinstance(done.result(60), SearchReply) for done in going_on)
    assert client.search("a circle", timeout=30)


async def test_many_coroutines_search_publish_and_wait(settings: AgentSettings, tag: str) -> None:
    async with AsyncClient(settings) as client:
        replies = await asyncio.gather(
            *(client.search("a star", k=20, filters={"tags": [tag]}, timeout=60) for _ in range(100))
        )
        assert {len(reply.hits) for reply in replies} == {12}
        jpegs = [photo.jpeg for photo in photos(3, 77, [(320, 240)])]
        published = await asyncio.gather(*(client.publish(jpeg, key=f"{tag}-a{n}") for n, jpeg in enumerate(jpegs)))
        receipts = await client.wait_until_indexed(published, timeout=60)
        assert len(receipts) == 3


def test_a_dead_letter_is_told_from_those_before_and_after_it(client: Client, tag: str) -> None:
    key = f"{tag}-broken"
    broken = client.publish(b"no picture", key=key)
    with pytest.raises(BecameDeadLetter, match="unsupported_format") as dead:
        client.wait_until_indexed([broken, f"{tag}-0"], timeout=60)
    assert (dead.value.code, list(dead.value.receipts)) == ("unsupported_format", [f"{tag}-0"])
    mended = client.publish(photos(1, 5, [(320, 240)])[0].jpeg, key=key)
    assert client.wait_until_indexed(mended, timeout=60)[key].version == mended.version
    with pytest.raises(BecameDeadLetter):
        client.wait_until_indexed(broken, timeout=60)
    with pytest.raises(NotSearchableYet):
        client.wait_until_indexed("never published", timeout=1)


def test_error_replies_are_typed(client: Client) -> None:
    with pytest.raises(SearchFailed) as failed:
        client.search("x", filters={"classes": ["dog"]}, timeout=30)
    assert failed.value.code == "unknown_class"


def test_pages_walk_over_everything_once(client: Client, tag: str) -> None:
    found = [hit.image_id for hit in client.hits("a circle", k=5, filters={"tags": [tag]}, timeout=30)]
    assert sorted(found) == sorted(f"{tag}-{number}" for number in range(12))
    assert len(list(islice(client.hits("a circle", k=2, timeout=30), 3))) == 3


def test_what_is_like_an_indexed_image_is_itself_first(client: Client, tag: str) -> None:
    reply = client.similar(image_id=f"{tag}-3", k=3, filters={"tags": [tag]}, timeout=30)
    assert reply.hits[0].image_id == f"{tag}-3"


def run(command: list[str], settings: AgentSettings, folder: Path) -> str:
    done = subprocess.run(
        command,
        cwd=folder,
        env={**os.environ, "SIGHTLOG_DATA_DIR": str(settings.data_dir), "HOME": str(folder)},
        capture_output=True,
        text=True,
        timeout=180,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture
def workplace(tmp_path: Path) -> Path:
    """A folder with what the examples name."""
    (tmp_path / "photo.jpg").write_bytes(photos(1, 6, [(320, 240)])[0].jpeg)
    (tmp_path / "Pictures").mkdir()
    return tmp_path


def test_the_examples_of_the_guide_run(settings: AgentSettings, tag: str, workplace: Path) -> None:
    left_out = set() if importlib.util.find_spec("pandas") is not None else {"pandas"}
    program = "\n".join(code for needs, code in BLOCKS if needs not in left_out)
    printed = run([sys.executable, "-c", program], settings, workplace)
    assert "unsupported_format" in printed
    assert "SearchFilters has no clases" in printed


def test_the_command_line_shows_tables_json_and_contact_sheets(
    settings: AgentSettings, tag: str, workplace: Path
) -> None:
    def search(arguments: str) -> str:
        return run([sys.executable, "-m", "sightlog", "search", *shlex.split(arguments)], settings, workplace)

    reply = orjson.loads(search(f"'a red circle' --objects -k 5 --tag {tag} --json"))
    assert len(reply["hits"]) == 5
    assert "\N{UPPER HALF BLOCK}" in search(f"'a circle' --tag {tag} --thumbnails blocks")
    search(f"'a circle' --objects --tag {tag} --out sheet.html")
    sheet = (workplace / "sheet.html").read_text()
    assert sheet.count("data:image/jpeg;base64,") == sheet.count("<rect ") == sheet.count("<figure")


def test_the_commands_of_the_guide_run(settings: AgentSettings, tag: str, workplace: Path) -> None:
    with Client(settings) as client:
        client.wait_until_indexed(client.publish(workplace / "photo.jpg", key="photo-1"), timeout=60)
    for command in COMMANDS:
        run(["bash", "-c", f"{shlex.quote(sys.executable)} -m sightlog {command}"], settings, workplace)
