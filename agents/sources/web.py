"""Reads `https:` references, as if whoever wrote them and whoever answers were hostile."""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import MappingProxyType

import aiohttp
from aiohttp.abc import AbstractResolver
from yarl import URL

from agents.delivery.failures import ItemBroken, NotYet
from agents.sources.addresses import AddressPolicy, AddressRefused
from agents.sources.limits import ReadLimits, shown
from agents.sources.settings import SourceSettings

_PORTS = {"https": 443, "http": 80}
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
#: Characters that no URI has, and on which readers of URIs disagree.
_FORBIDDEN = re.compile(r"[\x00-\x20\x7f\\]")
#: A name whose parts DNS can hold, or an address.
_HOST = re.compile(r"(?=.{1,253}\.?$)([^.:]{1,63}\.)*[^.:]{1,63}\.?|[0-9a-f:.]+(%[0-9a-z]+)?")
#: Later attempts may succeed. Of the other answers below 500, none will.
_NOT_YET: Mapping[int, str] = MappingProxyType(
    {404: "source_missing", 408: "source_timeout", 425: "source_throttled", 429: "source_throttled"}
)
_BROKEN: Mapping[int, str] = MappingProxyType(
    dict.fromkeys((401, 402, 403, 407, 451), "source_forbidden") | {410: "source_gone"}
)


class WebSource:
    """Reads from allowed hosts at public addresses. Opens its session on first use; `close` it."""

    def __init__(self, settings: SourceSettings, limits: ReadLimits, resolver: AbstractResolver | None = None) -> None:
        self._settings = settings
        self._limits = limits
        self._hosts = tuple(map(_HostPattern, settings.hosts))
        self._addresses = AddressPolicy(settings.private_networks)
        self._resolver = resolver
        self._session: aiohttp.ClientSession | None = None

    async def read(self, uri: str) -> bytes:
        """The body behind `uri`. Raises ItemBroken, NotYet."""
        url = self._checked(uri)
        try:
            for _ in range(self._settings.redirects + 1):
                async with self._opened().get(url, allow_redirects=False) as response:
                    if response.status not in _REDIRECTS:
                        return await self._body(response, url)
                    url = self._next(url, response.headers.get("Location"))
        except aiohttp.ClientConnectorError as error:
            if isinstance(error.os_error, AddressRefused):
                raise ItemBroken("source_not_allowed", f"{shown(str(url))}: {error.os_error}") from None
            raise NotYet("source_unreachable", f"{shown(str(url))}: {_reason(error)}") from None
        except aiohttp.ServerTimeoutError as error:
            raise NotYet("source_timeout", f"{shown(str(url))}: {_reason(error)}") from None
        except (aiohttp.InvalidURL, aiohttp.NonHttpUrlClientError) as error:
            raise ItemBroken("unsupported_source", f"{shown(str(url))} is no web address: {_reason(error)}") from None
        except aiohttp.ClientPayloadError as error:
            raise NotYet("source_incomplete", f"{shown(str(url))} broke off: {_reason(error)}") from None
        except (aiohttp.ClientError, OSError, ValueError) as error:
            # ValueError: a header that the parser of the client trips over.
            raise NotYet("source_failed", f"{shown(str(url))} did not answer in HTTP: {_reason(error)}") from None
        raise ItemBroken("source_redirects", f"{shown(uri)} redirects more than {self._settings.redirects} times")

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()
            self._session = None

    def _opened(self) -> aiohttp.ClientSession:
        if self._session is None:
            connector = aiohttp.TCPConnector(
                resolver=self._resolver or aiohttp.ThreadedResolver(), socket_factory=self._addresses.socket_to
            )
            stall = self._settings.stall
            self._session = aiohttp.ClientSession(
                connector=connector,
                cookie_jar=aiohttp.DummyCookieJar(),
                # A proxy would connect to addresses that nobody checked.
                trust_env=False,
                # A body must not become larger than what was counted.
                auto_decompress=False,
                headers={
                    "Accept": "image/jpeg, image/png, image/webp",
                    "Accept-Encoding": "identity",
                    "User-Agent": "sightlog",
                },
                timeout=aiohttp.ClientTimeout(sock_connect=self._settings.connect_timeout, sock_read=stall),
                read_bufsize=64 * 1024,
            )
        return self._session

    def _checked(self, uri: str) -> URL:
        """The address, if its scheme and host are allowed. Raises ItemBroken."""
        try:
            if _FORBIDDEN.search(uri):
                raise ValueError("it holds spaces, control characters or backslashes")
            # As it is, because a signature may depend on what is percent-encoded.
            url = URL(uri, encoded=uri.isascii())
            port, host = url.explicit_port, (url.raw_host or "").lower()
            if not _HOST.fullmatch(host):
                raise ValueError("it names no host")
        except ValueError as error:
            raise ItemBroken("unsupported_source", f"{shown(uri)} is no web address: {error}") from None
        if url.scheme not in _PORTS:
            raise ItemBroken("unsupported_source", f"{shown(uri)} leads to {url.scheme}:, which cannot be read")
        if url.user is not None or url.password is not None:
            raise ItemBroken("unsupported_source", "a reference may not hold a password; documents show references")
        if url.scheme == "http" and not self._settings.http:
            raise ItemBroken("source_not_allowed", f"{shown(uri)}: only https: is allowed (SIGHTLOG_SOURCES_HTTP)")
        usual = port is None or port == _PORTS[url.scheme]
        if not any(pattern.matches(host.rstrip("."), url.port or 0, usual) for pattern in self._hosts):
            raise ItemBroken("source_not_allowed", f"{shown(uri)}: the host is not in SIGHTLOG_SOURCES_HOSTS")
        return url

    def _next(self, url: URL, location: str | None) -> URL:
        if location is None:
            raise ItemBroken("source_refused", f"{shown(str(url))} redirects to nowhere")
        try:
            target = str(url.join(URL(location, encoded=location.isascii())))
        except ValueError as error:
            raise ItemBroken("unsupported_source", f"{shown(str(url))} redirects to no web address: {error}") from None
        if url.scheme == "https" and target.startswith("http:"):
            raise ItemBroken("source_not_allowed", f"{shown(str(url))} redirects from https: to http:")
        return self._checked(target)

    async def _body(self, response: aiohttp.ClientResponse, url: URL) -> bytes:
        place, status = shown(str(url)), response.status
        if status != 200:
            if status in _NOT_YET or status >= 500:
                raise NotYet(_NOT_YET.get(status, "source_failed"), f"{place} answered {status}")
            raise ItemBroken(_BROKEN.get(status, "source_refused"), f"{place} answered {status}")
        encoding = response.headers.get("Content-Encoding", "identity").strip().lower()
        if encoding not in ("", "identity"):
            raise ItemBroken("source_encoded", f"{place} sends its file as {encoding[:50]!r}, which was not asked for")
        self._limits.check_size(response.content_length or 0)
        return await self._limits.collect(response.content.iter_any(), place)


class _HostPattern:
    """`name`, `*.name` (below it only) or `*`, with `:port`, `:*` or the usual port."""

    def __init__(self, pattern: str) -> None:
        found = re.fullmatch(r"(.*?)(?::(\d+|\*))?", pattern)
        assert found is not None
        self._name, self._port = found[1], found[2]
        if pattern.startswith("["):
            bracket = pattern.index("]")
            self._name, self._port = pattern[1:bracket], pattern[bracket + 2 :] or None

    def matches(self, host: str, port: int, usual: bool) -> bool:
        if not (usual if self._port is None else self._port in ("*", str(port))):
            return False
        return self._name in ("*", host) or (self._name.startswith("*.") and host.endswith(self._name[1:]))


def _reason(error: Exception) -> str:
    return str(error)[:200] or type(error).__name__
