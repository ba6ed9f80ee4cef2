"""References into a real S3-compatible server (moto's), also where it throttles."""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import Iterator

import boto3
import pytest
from moto.server import ThreadedMotoServer

from agents.delivery.failures import ItemBroken, NotYet
from agents.sources.reader import SourceReader
from agents.sources.settings import SourceSettings
from sightlog.events import new_upload
from tests.pictures import good_pictures

_LIMIT = 1024 * 1024
_THROTTLED = b"<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    """URL of an S3 with the bucket `photos`, and credentials for it in the environment."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    url = "http://{}:{}".format(*server.get_host_and_port())
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("AWS_ACCESS_KEY_ID", "test")
        patched.setenv("AWS_SECRET_ACCESS_KEY", "test")
        client = boto3.client("s3", endpoint_url=url, region_name="us-east-1")
        client.create_bucket(Bucket="photos")
        client.create_bucket(Bucket="private")
        for key in ("2024/a b+c%20d.jpg", "2024/grün#?.jpg", "2025/a.jpg"):
            client.put_object(Bucket="photos", Key=key, Body=_picture())
        client.put_object(Bucket="photos", Key="2024/large.jpg", Body=bytes(_LIMIT + 1))
        client.put_object(Bucket="photos", Key="2024/limit.jpg", Body=bytes(_LIMIT))
        client.put_object(Bucket="private", Key="2024/a.jpg", Body=b"secret")
        yield url
    server.stop()


def _picture() -> bytes:
    return good_pictures()["jpeg"]


def reader_of(endpoint: str) -> SourceReader:
    settings = SourceSettings(buckets=("s3://photos/2024", "s3://gone"), s3_endpoint=endpoint, s3_region="us-east-1")
    return SourceReader([], _LIMIT, settings)


async def outcome(endpoint: str, uri: str, sha256: str | None = None) -> bytes | tuple[str, str]:
    async with reader_of(endpoint) as reader:
        try:
            return (await reader.read(new_upload(source="/test", dataref=uri, sha256=sha256))).data
        except (ItemBroken, NotYet) as failure:
            return type(failure).__name__, failure.code


async def test_an_object_is_read_and_verified_whatever_its_key(s3: str) -> None:
    digest = hashlib.sha256(_picture()).hexdigest()
    for key in ("a b+c%20d.jpg", "grün#?.jpg"):
        assert await outcome(s3, f"s3://photos/2024/{key}", digest) == _picture()
    assert await outcome(s3, "s3://photos/2024/a b+c%20d.jpg", "0" * 64) == ("ItemBroken", "sha256_mismatch")


async def test_what_is_not_there_may_come(s3: str) -> None:
    assert await outcome(s3, "s3://photos/2024/missing.jpg") == ("NotYet", "source_missing")
    assert await outcome(s3, "s3://gone/a.jpg") == ("NotYet", "source_missing")


async def test_other_buckets_and_folders_are_refused(s3: str) -> None:
    for uri in ("s3://private/2024/a.jpg", "s3://photos/2025/a.jpg"):
        assert await outcome(s3, uri) == ("ItemBroken", "source_not_allowed")


async def test_the_size_limit_holds(s3: str) -> None:
    assert await outcome(s3, "s3://photos/2024/large.jpg") == ("ItemBroken", "too_large")
    assert len(await outcome(s3, "s3://photos/2024/limit.jpg")) == _LIMIT


async def test_a_store_that_throttles_is_asked_once_and_later_again(s3: str) -> None:
    asked = 0

    async def proxy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Throttles the first request and passes the others on."""
        nonlocal asked
        asked += 1
        request = await reader.readuntil(b"\r\n\r\n")
        if asked == 1:
            writer.write(b"HTTP/1.1 503 Slow Down\r\nContent-Length: %d\r\n\r\n%s" % (len(_THROTTLED), _THROTTLED))
        else:
            behind, to = await asyncio.open_connection("127.0.0.1", int(s3.rpartition(":")[2]))
            to.write(request.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
            writer.write(await behind.read(-1))
            to.close()
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(proxy, "127.0.0.1", 0)
    endpoint = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        async with reader_of(endpoint) as reader:
            event = new_upload(source="/test", dataref="s3://photos/2024/a b+c%20d.jpg")
            with pytest.raises(NotYet) as failure:
                await reader.read(event)
            assert failure.value.code == "source_throttled"
            assert asked == 1
            assert (await reader.read(event)).data == _picture()
    finally:
        server.close()
