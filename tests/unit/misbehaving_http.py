"""An HTTP server that does to a client what hostile and broken ones do; each path is one misbehaviour."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
from collections.abc import AsyncIterator, Awaitable, Callable

PICTURE = b"picture" * 1000
#: Of the client in these tests.
LIMIT = 64 * 1024

Answer = Callable[[asyncio.StreamWriter], Awaitable[None]]


class MisbehavingServer:
    """Answers the paths of `_ANSWERS`, `/status/<code>` and `/to?<location>`; counts what it was asked and sent."""

    def __init__(self) -> None:
        self.requests: list[str] = []
        self.headers: list[str] = []
        self.sent = 0
        self.port = 0
        self._tasks: set[asyncio.Task[None]] = set()

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[MisbehavingServer]:
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            server.close()
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    def url(self, path: str, host: str = "127.0.0.1") -> str:
        return f"http://{host}:{self.port}{path}"

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            while not writer.is_closing():
                request = (await reader.readuntil(b"\r\n\r\n")).decode()
                path = request.split(" ")[1]
                self.requests.append(path)
                self.headers.append(request)
                await self._answer(path, writer)
                await writer.drain()
        writer.close()

    async def _answer(self, path: str, writer: asyncio.StreamWriter) -> None:
        if path.startswith("/status/"):
            _send(writer, b"", status=int(path.removeprefix("/status/").partition("?")[0]))
        elif path.startswith("/to?"):
            _send(writer, b"", status=302, headers={"Location": path.removeprefix("/to?")})
        elif path == "/endless-body":
            writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
            while not writer.is_closing():
                writer.write(b"x" * 4096)
                self.sent += 4096
                await writer.drain()
        else:
            await _ANSWERS[path.partition("?")[0]](writer)


def _send(writer: asyncio.StreamWriter, body: bytes, status: int = 200, headers: dict[str, str] | None = None) -> None:
    lines = [
        f"HTTP/1.1 {status} Said",
        *(f"{k}: {v}" for k, v in ({"Content-Length": str(len(body))} | (headers or {})).items()),
    ]
    writer.write("\r\n".join([*lines, "", ""]).encode() + body)


async def _picture(writer: asyncio.StreamWriter) -> None:
    _send(writer, PICTURE)


async def _chunked(writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    for at in range(0, len(PICTURE), 999):
        part = PICTURE[at : at + 999]
        writer.write(b"%x\r\n%s\r\n" % (len(part), part))
    writer.write(b"0\r\n\r\n")


async def _endless_chunks(writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    while not writer.is_closing():
        writer.write(b"1000\r\n" + b"x" * 0x1000 + b"\r\n")
        await writer.drain()


async def _announced_too_large(writer: asyncio.StreamWriter) -> None:
    _send(writer, b"x", headers={"Content-Length": str(LIMIT + 1)})


async def _one_byte_too_large(writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n" + b"x" * (LIMIT + 1))
    writer.close()


async def _exactly_the_limit(writer: asyncio.StreamWriter) -> None:
    _send(writer, b"x" * LIMIT)


async def _drip(writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 7000\r\n\r\n")
    while not writer.is_closing():
        writer.write(b"x")
        await writer.drain()
        await asyncio.sleep(0.02)


async def _steady(writer: asyncio.StreamWriter) -> None:
    """More than the smallest progress, for longer than the deadline."""
    writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
    while not writer.is_closing():
        writer.write(b"x" * 16)
        await writer.drain()
        await asyncio.sleep(0.01)


async def _stops(writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 7000\r\n\r\npict")
    await writer.drain()
    await asyncio.sleep(60)


async def _silent(writer: asyncio.StreamWriter) -> None:
    await asyncio.sleep(60)


async def _breaks_off(writer: asyncio.StreamWriter) -> None:
    _send(writer, PICTURE[:-1], headers={"Content-Length": str(len(PICTURE))})
    await writer.drain()
    writer.close()


async def _breaks_off_in_a_chunk(writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1000\r\npicture")
    await writer.drain()
    writer.close()


async def _more_than_announced(writer: asyncio.StreamWriter) -> None:
    """What follows looks like the answer to the next request."""
    writer.write(
        b"HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\npictureHTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nforged"
    )


async def _gzip_bomb(writer: asyncio.StreamWriter) -> None:
    _send(writer, gzip.compress(bytes(10_000_000)), headers={"Content-Encoding": "gzip"})


async def _endless_headers(writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\n")
    number = 0
    while not writer.is_closing():
        writer.write(b"X-%d: %s\r\n" % (number, b"y" * 1000))
        await writer.drain()
        number += 1


async def _endless_header(writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\nX: ")
    while not writer.is_closing():
        writer.write(b"y" * 1000)
        await writer.drain()


async def _no_http(writer: asyncio.StreamWriter) -> None:
    writer.write(b"SSH-2.0-OpenSSH_9.6\r\n")
    await writer.drain()
    writer.close()


async def _hangs_up(writer: asyncio.StreamWriter) -> None:
    writer.close()


async def _redirects_to_nowhere(writer: asyncio.StreamWriter) -> None:
    _send(writer, b"", status=302)


async def _two_lengths(writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 7\r\nContent-Length: 8\r\n\r\npicture!")


async def _loop(writer: asyncio.StreamWriter) -> None:
    _send(writer, b"", status=302, headers={"Location": "/loop"})


_ANSWERS: dict[str, Answer] = {
    "/picture": _picture,
    "/chunked": _chunked,
    "/endless-chunks": _endless_chunks,
    "/announced-too-large": _announced_too_large,
    "/one-byte-too-large": _one_byte_too_large,
    "/exactly-the-limit": _exactly_the_limit,
    "/drip": _drip,
    "/steady": _steady,
    "/stops": _stops,
    "/silent": _silent,
    "/breaks-off": _breaks_off,
    "/breaks-off-in-a-chunk": _breaks_off_in_a_chunk,
    "/more-than-announced": _more_than_announced,
    "/gzip-bomb": _gzip_bomb,
    "/endless-headers": _endless_headers,
    "/endless-header": _endless_header,
    "/no-http": _no_http,
    "/hangs-up": _hangs_up,
    "/redirects-to-nowhere": _redirects_to_nowhere,
    "/two-lengths": _two_lengths,
    "/loop": _loop,
}
