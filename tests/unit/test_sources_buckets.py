"""References into object stores: which are read, and what each answer of a store means."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import unquote

import pytest

from agents.delivery.failures import ItemBroken, NotYet
from agents.sources.reader import SourceReader
from agents.sources.settings import SourceSettings
from sightlog.errors import ConfigurationError
from sightlog.events import new_upload

LIMIT = 10_000
THROTTLED = b"<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"


class Store:
    """Answers every request with one status and body."""

    def __init__(
        self, status: int = 200, body: bytes = b"picture", length: int | None = None, pause: float = 0
    ) -> None:
        self.status, self.body, self.length, self.pause = status, body, length, pause
        self.requests: list[str] = []
        self.url = ""

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[Store]:
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        try:
            yield self
        finally:
            server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.requests.append((await reader.readuntil(b"\r\n\r\n")).decode().split(" ")[1])
        await asyncio.sleep(self.pause)
        length = len(self.body) if self.length is None else self.length
        head = f'HTTP/1.1 {self.status} Said\r\nContent-Length: {length}\r\nETag: "a"\r\n'
        writer.write(f"{head}Last-Modified: Wed, 21 Oct 2015 07:28:00 GMT\r\n\r\n".encode() + self.body)
        with contextlib.suppress(ConnectionError):
            await writer.drain()
        writer.close()


@pytest.fixture(autouse=True)
def credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    monkeypatch.setenv("GOOGLE_SKIP_SIGNATURE", "true")
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_NAME", "test")
    monkeypatch.setenv("AZURE_SKIP_SIGNATURE", "true")


async def outcome(uri: str, store: Store, **overrides: Any) -> bytes | tuple[str, str]:
    """The bytes, or the class and the code of the failure."""
    endpoints = {f"{scheme}_endpoint": store.url for scheme in ("s3", "gs", "az")}
    given = {
        "buckets": ("s3://photos", "gs://photos", "az://photos"), "s3_region": "us-east-1", "deadline": 0.5,
        "stall": 0.3,
        **endpoints, **overrides,
    }  # fmt: skip
    async with SourceReader([], LIMIT, SourceSettings(**given)) as reader:
        try:
            # As a newer, or a careless, writer may have made it.
            event = new_upload(source="/test").model_copy(update={"dataref": uri})
            return (await reader.read(event)).data
        except (ItemBroken, NotYet) as failure:
            said = failure
    # The library's own words go on for a page.
    assert len(said.message) < 500
    assert "Debug" not in said.message
    return type(said).__name__, said.code


@pytest.mark.parametrize("scheme", ["s3", "gs", "az"])
async def test_an_object_of_every_store_is_read(scheme: str) -> None:
    async with Store().running() as store:
        assert await outcome(f"{scheme}://photos/2024/a b.jpg", store) == b"picture"
        assert unquote(store.requests[0]) == "/photos/2024/a b.jpg"


@pytest.mark.parametrize("scheme", ["s3", "gs", "az"])
@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (Store(404), ("NotYet", "source_missing")),
        (Store(403), ("ItemBroken", "source_forbidden")),
        (Store(401), ("ItemBroken", "source_forbidden")),
        (Store(400), ("ItemBroken", "source_refused")),
        (Store(429), ("NotYet", "source_throttled")),
        (Store(503, THROTTLED), ("NotYet", "source_throttled")),
        (Store(500), ("NotYet", "source_failed")),
        (Store(503), ("NotYet", "source_failed")),
        (Store(302, b""), ("NotYet", "source_failed")),
        (Store(pause=5), ("NotYet", "source_timeout")),
        (Store(length=100), ("NotYet", "source_failed")),
        (Store(body=b"x" * (LIMIT + 1)), ("ItemBroken", "too_large")),
        (Store(body=b"x", length=LIMIT + 1), ("ItemBroken", "too_large")),
        (Store(body=b"x" * LIMIT), b"x" * LIMIT),
    ],
)
async def test_every_answer_has_its_outcome(scheme: str, answer: Store, expected: bytes | tuple[str, str]) -> None:
    # A busy machine may take its time with what does answer.
    patience = {"deadline": 2.0, "stall": 1.0} if answer.pause else {"deadline": 20.0, "stall": 20.0}
    async with answer.running() as store:
        assert await outcome(f"{scheme}://photos/a.jpg", store, **patience) == expected


async def test_a_store_that_does_not_answer_is_tried_later() -> None:
    store = Store()
    async with store.running():
        pass
    assert await outcome("s3://photos/a.jpg", store) == ("NotYet", "source_failed")


@pytest.mark.parametrize(
    ("allowed", "uri", "code"),
    [
        ("s3://photos", "s3://photos/a", None),
        ("s3://photos/", "s3://photos/a", None),
        ("s3://photos/2024", "s3://photos/2024/a", None),
        ("s3://photos/2024/", "s3://photos/2024/x/a", None),
        ("s3://photos/2024", "s3://photos/2024-private/a", "source_not_allowed"),
        ("s3://photos/2024", "s3://photos/2025/a", "source_not_allowed"),
        ("s3://photos/2024", "s3://photos/2024/../2025/a", "unsupported_source"),
        ("s3://photos/2024", "s3://photos/2024/./a", "unsupported_source"),
        ("s3://photos/2024", "s3://photos/2024//a", "unsupported_source"),
        ("s3://photos", "s3://photos-private/a", "source_not_allowed"),
        ("s3://photos", "s3://other/a", "source_not_allowed"),
        ("s3://photos", "gs://photos/a", "source_not_allowed"),
        ("s3://photos", "s3://PHOTOS/a", "source_not_allowed"),
        ("s3://photos", "s3://photos", "unsupported_source"),
        ("s3://photos", "s3://photos/", "unsupported_source"),
        ("s3://photos", "s3://photos/a/", "unsupported_source"),
        ("s3://photos", "s3://photos/a\nb", "unsupported_source"),
        ("s3://photos", "s3:photos/a", "unsupported_source"),
        ("s3://photos", "s3:///photos/a", "unsupported_source"),
        ("s3://photos", "s3://user@photos/a", "source_not_allowed"),
        ("s3://photos", "s3://photos:80/a", "source_not_allowed"),
        ("", "s3://photos/a", "source_not_allowed"),
    ],
)
async def test_only_allowed_buckets_and_folders_are_read(allowed: str, uri: str, code: str | None) -> None:
    async with Store().running() as store:
        expected = b"picture" if code is None else ("ItemBroken", code)
        assert await outcome(uri, store, buckets=(allowed,) if allowed else ()) == expected
        assert len(store.requests) == (code is None)


def test_a_wrong_setting_is_refused_at_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (
        ("BUCKETS", "photos"),
        ("BUCKETS", "ftp://photos"),
        ("HOSTS", "https://example.org"),
        ("HOSTS", "exa*mple.org"),
        ("PRIVATE_NETWORKS", "10.0.0.1/8"),
        ("DEADLINE", "0"),
    ):
        with monkeypatch.context() as patched:
            patched.setenv(f"SIGHTLOG_SOURCES_{name}", value)
            with pytest.raises(ConfigurationError, match=f"SIGHTLOG_SOURCES_{name}"):
                SourceSettings.load()


def test_settings_are_lists_with_commas(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SIGHTLOG_SOURCES_BUCKETS", "s3://photos, gs://shop/public")
    monkeypatch.setenv("SIGHTLOG_SOURCES_HOSTS", "*.example.org,cdn.example.com:8443")
    monkeypatch.setenv("SIGHTLOG_SOURCES_PRIVATE_NETWORKS", "10.1.0.0/16,fd00::/8")
    settings = SourceSettings.load()
    assert settings.buckets == ("s3://photos", "gs://shop/public")
    assert settings.hosts == ("*.example.org", "cdn.example.com:8443")
    assert list(map(str, settings.private_networks)) == ["10.1.0.0/16", "fd00::/8"]
