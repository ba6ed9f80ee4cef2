"""References to web servers: which are followed, and what a server can do to the one who reads them."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import socket
from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiohttp.abc import AbstractResolver, ResolveResult
from yarl import URL

from agents.delivery.failures import ItemBroken, NotYet
from agents.sources.limits import ReadLimits
from agents.sources.reader import SourceReader
from agents.sources.settings import SourceSettings
from agents.sources.web import WebSource
from sightlog.events import new_upload
from tests.unit.misbehaving_http import LIMIT, PICTURE, MisbehavingServer


@pytest.fixture
async def server() -> AsyncIterator[MisbehavingServer]:
    async with MisbehavingServer().running() as server:
        yield server


#: For what never ends: how long a reader that is not patient waits, in seconds.
HURRY = {"deadline": 0.8, "stall": 0.2}
NEVER_ENDING = {"/drip", "/steady", "/stops", "/silent"}


def settings(**overrides: Any) -> SourceSettings:
    """Lets tests reach their own server, and waits as long as a busy machine may need."""
    allowed = {"hosts": ("127.0.0.1:*",), "http": True, "private_networks": ("127.0.0.0/8",)}
    patience = {"deadline": 60.0, "stall": 30.0, "min_progress": 100, "connect_timeout": 30.0}
    return SourceSettings(**{**allowed, **patience, **overrides})


async def outcome(uri: str, **overrides: Any) -> bytes | tuple[str, str]:
    """The bytes, or the class and the code of the failure."""
    async with SourceReader([], LIMIT, settings(**overrides)) as reader:
        try:
            return (await reader.read(new_upload(source="/test", dataref=uri))).data
        except (ItemBroken, NotYet) as failure:
            said = failure
    assert len(said.message) < 700
    return type(said).__name__, said.code


async def test_a_file_is_read_and_its_digest_verified(server: MisbehavingServer) -> None:
    async with SourceReader([], LIMIT, settings()) as reader:
        digest = hashlib.sha256(PICTURE).hexdigest()
        for path in ("/picture", "/chunked", "/picture?X-Amz-Credential=a%2Fb&x=%7e+%20"):
            event = new_upload(source="/test", dataref=server.url(path), sha256=digest)
            assert (await reader.read(event)).data == PICTURE
            # A signature depends on how its request is spelt.
            assert server.requests[-1] == path
        with pytest.raises(ItemBroken) as refused:
            await reader.read(new_upload(source="/test", dataref=server.url("/picture"), sha256="0" * 64))
        assert refused.value.code == "sha256_mismatch"


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/exactly-the-limit", b"x" * LIMIT),
        ("/announced-too-large", ("ItemBroken", "too_large")),
        ("/one-byte-too-large", ("ItemBroken", "too_large")),
        ("/endless-body", ("ItemBroken", "too_large")),
        ("/endless-chunks", ("ItemBroken", "too_large")),
        ("/gzip-bomb", ("ItemBroken", "source_encoded")),
        ("/drip", ("NotYet", "source_timeout")),
        ("/steady", ("NotYet", "source_timeout")),
        ("/stops", ("NotYet", "source_timeout")),
        ("/silent", ("NotYet", "source_timeout")),
        ("/breaks-off", ("NotYet", "source_incomplete")),
        ("/breaks-off-in-a-chunk", ("NotYet", "source_incomplete")),
        ("/endless-headers", ("NotYet", "source_failed")),
        ("/endless-header", ("NotYet", "source_failed")),
        ("/two-lengths", ("NotYet", "source_failed")),
        ("/no-http", ("NotYet", "source_failed")),
        ("/hangs-up", ("NotYet", "source_failed")),
        ("/redirects-to-nowhere", ("ItemBroken", "source_refused")),
        ("/loop", ("ItemBroken", "source_redirects")),
    ],
)
async def test_every_misbehaviour_has_its_outcome(
    server: MisbehavingServer, path: str, expected: bytes | tuple[str, str]
) -> None:
    hurry = HURRY if path in NEVER_ENDING else {}
    assert await outcome(server.url(path), **hurry) == expected


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        (204, ("ItemBroken", "source_refused")),
        (206, ("ItemBroken", "source_refused")),
        (304, ("ItemBroken", "source_refused")),
        (400, ("ItemBroken", "source_refused")),
        (401, ("ItemBroken", "source_forbidden")),
        (403, ("ItemBroken", "source_forbidden")),
        (404, ("NotYet", "source_missing")),
        (408, ("NotYet", "source_timeout")),
        (410, ("ItemBroken", "source_gone")),
        (425, ("NotYet", "source_throttled")),
        (429, ("NotYet", "source_throttled")),
        (451, ("ItemBroken", "source_forbidden")),
        (500, ("NotYet", "source_failed")),
        (503, ("NotYet", "source_failed")),
    ],
)
async def test_every_status_has_its_outcome(server: MisbehavingServer, status: int, expected: tuple[str, str]) -> None:
    assert await outcome(server.url(f"/status/{status}")) == expected


async def test_a_drip_is_left_long_before_the_deadline(server: MisbehavingServer) -> None:
    with pytest.raises(NotYet, match="too slow"):
        async with SourceReader([], LIMIT, settings(stall=0.2)) as reader:
            await reader.read(new_upload(source="/test", dataref=server.url("/drip")))


async def test_an_endless_body_is_left_at_the_limit(server: MisbehavingServer) -> None:
    assert await outcome(server.url("/endless-body"), deadline=30.0, stall=30.0) == ("ItemBroken", "too_large")
    # Beside the limit only what the buffers of two sockets hold.
    assert server.sent < LIMIT + 16 * 1024 * 1024


async def test_nothing_is_asked_for_encoded_and_no_cookie_is_kept(server: MisbehavingServer) -> None:
    await outcome(server.url("/picture"))
    assert "Accept-Encoding: identity" in server.headers[0]


async def test_what_follows_an_answer_is_not_taken_for_the_next_one(server: MisbehavingServer) -> None:
    async with SourceReader([], LIMIT, settings()) as reader:

        async def read(path: str) -> bytes:
            return (await reader.read(new_upload(source="/test", dataref=server.url(path)))).data

        for _ in range(3):
            assert await read("/picture") == PICTURE
            # Whether the client notices in time that there is more is a matter of luck.
            with contextlib.suppress(NotYet):
                assert await read("/more-than-announced") == b"picture"
        assert await read("/picture") == PICTURE


async def test_one_host_that_hangs_does_not_hold_the_others_up(server: MisbehavingServer) -> None:
    async with SourceReader([], LIMIT, settings(deadline=20.0, stall=20.0)) as reader:

        async def read(path: str) -> bytes:
            return (await reader.read(new_upload(source="/test", dataref=server.url(path)))).data

        hanging = [asyncio.ensure_future(read("/silent")) for _ in range(30)]
        assert await read("/picture") == PICTURE
        assert not any(task.done() for task in hanging)
        for task in hanging:
            task.cancel()
        await asyncio.gather(*hanging, return_exceptions=True)


async def test_redirects_are_followed_and_each_is_checked(server: MisbehavingServer) -> None:
    async def through(location: str, **overrides: Any) -> bytes | tuple[str, str]:
        return await outcome(server.url(f"/to?{location}"), **overrides)

    assert await through("/picture") == PICTURE
    assert await through(server.url("/picture")) == PICTURE
    not_allowed = ("ItemBroken", "source_not_allowed")
    assert await through(server.url("/picture", host="localhost")) == not_allowed
    assert await through("http://example.org/") == not_allowed
    assert await through("https://169.254.169.254/latest/meta-data/") == not_allowed
    everywhere = {"hosts": ("*:*",)}
    for private in ("10.0.0.1", "[::1]", "169.254.169.254", "[::ffff:10.0.0.1]", "0.0.0.0"):
        assert await through(f"http://{private}/", **everywhere) == not_allowed, private
    for uri in ("file:///etc/passwd", "ftp://127.0.0.1/", "gopher://127.0.0.1/", "data:,x", "javascript:1"):
        assert (await through(uri, **everywhere))[1] == "unsupported_source", uri
    assert server.requests.count("/picture") == 2


async def test_a_redirect_from_https_to_http_is_refused() -> None:
    source = WebSource(settings(hosts=("*",)), ReadLimits(LIMIT, 1, 1))
    assert str(source._next(URL("https://example.org/a"), "/b")) == "https://example.org/b"
    for location in ("http://example.org/b", "HTTP://example.org/b"):
        with pytest.raises(ItemBroken, match="from https"):
            source._next(URL("https://example.org/a"), location)


async def test_private_addresses_are_refused_whoever_names_them(server: MisbehavingServer) -> None:
    public: dict[str, Any] = {"hosts": ("*:*",), "private_networks": ()}
    for host in ("127.0.0.1", "localhost", "[::1]", "[::ffff:127.0.0.1]", "[::ffff:7f00:1]", "0.0.0.0", "[::]"):
        assert await outcome(server.url("/picture", host=host), **public) == ("ItemBroken", "source_not_allowed"), host
    for old_spelling in ("127.1", "2130706433", "0x7f.1", "0177.0.0.1"):
        assert (await outcome(server.url("/picture", host=old_spelling), **public))[0] == "ItemBroken", old_spelling
    assert server.requests == []


class Rebinding(AbstractResolver):
    """Gives out each of its addresses once, the last one for ever, for whatever name."""

    def __init__(self, *answers: tuple[str, ...]) -> None:
        self.answers = list(answers)
        self.asked = 0

    async def resolve(self, host: str, port: int = 0, family: Any = socket.AF_INET) -> list[ResolveResult]:
        self.asked += 1
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        return [
            ResolveResult(
                hostname=host,
                host=address,
                port=port,
                family=socket.AF_INET6 if ":" in address else socket.AF_INET,
                proto=0,
                flags=socket.AI_NUMERICHOST,
            )
            for address in answer
        ]

    async def close(self) -> None:
        pass


async def resolved(server: MisbehavingServer, *answers: tuple[str, ...], **overrides: Any) -> bytes | str:
    source = WebSource(
        settings(hosts=("images.example.org:*",), **overrides), ReadLimits(LIMIT, 1, 1), Rebinding(*answers)
    )
    try:
        return await source.read(server.url("/picture", host="images.example.org"))
    except (ItemBroken, NotYet) as failure:
        return failure.code
    finally:
        await source.close()


async def test_an_allowed_name_does_not_lead_to_a_private_address(server: MisbehavingServer) -> None:
    assert await resolved(server, ("127.0.0.1",)) == PICTURE
    private: dict[str, Any] = {"private_networks": ()}
    assert await resolved(server, ("127.0.0.1",), **private) == "source_not_allowed"
    assert (
        await resolved(server, ("127.0.0.1", "10.0.0.1", "::1", "::ffff:127.0.0.1"), **private) == "source_not_allowed"
    )
    assert await resolved(server, ("64:ff9b::7f00:1",), **private) == "source_not_allowed"
    assert server.requests == ["/picture"]


async def test_the_address_that_was_checked_is_the_one_connected_to(server: MisbehavingServer) -> None:
    # 127.0.0.2 is checked and connected to as the first answer; a second answer is never asked for in one connection.
    resolver = Rebinding(("127.0.0.1",), ("10.0.0.1",))
    source = WebSource(settings(hosts=("a.example.org:*",)), ReadLimits(LIMIT, 1, 1), resolver)
    try:
        assert await source.read(server.url("/picture", host="a.example.org")) == PICTURE
        assert resolver.asked == 1
    finally:
        await source.close()


async def test_a_host_that_does_not_answer_is_tried_later(server: MisbehavingServer) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        uri = f"http://127.0.0.1:{closed.getsockname()[1]}/"
        assert await outcome(uri) == ("NotYet", "source_unreachable")


@pytest.mark.parametrize(
    "uri",
    [
        "https://",
        "https:///a",
        "https://exa mple.org/",
        "https://example.org/\r\nX: y",
        "https://example.org/\x00",
        "https://example.org\\@127.0.0.1/",
        "https://user:secret@example.org/a",
        "https://user@example.org/a",
        "https://[::1/",
        "https://example.org:99999/",
        "https://example.org:port/",
        "https://" + "a" * 300 + ".org/",
        "https://\u2100/x",
        "https://..example.org/",
    ],
)
async def test_what_is_no_web_address_is_refused(uri: str) -> None:
    event = new_upload(source="/test").model_copy(update={"dataref": uri})
    async with SourceReader([], LIMIT, settings(hosts=("*:*",), private_networks=())) as reader:
        with pytest.raises((ItemBroken, NotYet)) as refused:
            await reader.read(event)
    assert refused.value.code in ("unsupported_source", "source_unreachable")
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize(
    ("pattern", "uri", "allowed"),
    [
        ("a.org", "https://a.org/x", True),
        ("a.org", "https://A.ORG./x", True),
        ("a.org", "https://a.org:443/x", True),
        ("a.org", "https://a.org:8443/x", False),
        ("a.org", "http://a.org/x", True),
        ("a.org", "http://a.org:443/x", False),
        ("a.org:8443", "https://a.org:8443/x", True),
        ("a.org:8443", "https://a.org/x", False),
        ("a.org:*", "https://a.org:1/x", True),
        ("a.org", "https://b.a.org/x", False),
        ("a.org", "https://a.org.evil.net/x", False),
        ("a.org", "https://evil-a.org/x", False),
        ("*.a.org", "https://b.a.org/x", True),
        ("*.a.org", "https://c.b.a.org/x", True),
        ("*.a.org", "https://a.org/x", False),
        ("*.a.org", "https://evila.org/x", False),
        ("*", "https://anything.example/x", True),
        ("*", "https://anything.example:22/x", False),
        ("[2001:db8::1]:8443", "https://[2001:db8::1]:8443/x", True),
        ("[2001:db8::1]", "https://[2001:db8::1]/x", True),
        ("[2001:db8::1]", "https://[2001:db8::2]/x", False),
    ],
)
def test_hosts_are_allowed_by_pattern(pattern: str, uri: str, allowed: bool) -> None:
    source = WebSource(SourceSettings(hosts=(pattern,), http=True), ReadLimits(LIMIT, 1, 1))
    if allowed:
        source._checked(uri)
    else:
        with pytest.raises(ItemBroken, match="SIGHTLOG_SOURCES_HOSTS"):
            source._checked(uri)


async def test_nothing_is_allowed_by_default() -> None:
    async with SourceReader([], LIMIT) as reader:
        for uri in ("https://example.org/a.jpg", "http://example.org/a.jpg", "s3://b/k", "gs://b/k", "az://b/k"):
            with pytest.raises(ItemBroken) as refused:
                await reader.read(new_upload(source="/test", dataref=uri))
            assert refused.value.code == "source_not_allowed"


async def test_a_signature_is_in_no_message(server: MisbehavingServer) -> None:
    async with SourceReader([], LIMIT, settings()) as reader:
        with pytest.raises(NotYet) as failure:
            await reader.read(new_upload(source="/test", dataref=server.url("/status/404?") + "signature=secret"))
    assert "secret" not in str(failure.value)
