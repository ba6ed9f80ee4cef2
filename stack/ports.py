"""Ports of a stack, and the endpoints that clients use."""

from __future__ import annotations

import errno
import http.client
import socket
from collections.abc import Iterable
from pathlib import Path

import psutil
from pydantic import BaseModel, ConfigDict

from stack.errors import PreflightError
from stack.settings import HOST, StackSettings

KAFKA, KAFKA_CONTROLLER = 19092, 19093
TRITON_HTTP, TRITON_GRPC, TRITON_METRICS = 18000, 18001, 18002
OPENSEARCH_HTTP, OPENSEARCH_TRANSPORT = 19200, 19300
MAX_PORT = 32767  # above it the kernel hands ports to outgoing connections


class Endpoints(BaseModel):
    """Where the parts of a stack answer; also the content of `<data>/endpoints.json`."""

    model_config = ConfigDict(frozen=True)

    kafka: str
    triton_grpc: str
    triton_http: str
    triton_metrics: str
    opensearch: str

    @classmethod
    def of(cls, settings: StackSettings) -> Endpoints:
        """The endpoints at the settings' port offset."""
        return cls(
            kafka=f"{HOST}:{settings.port(KAFKA)}",
            triton_grpc=f"{HOST}:{settings.port(TRITON_GRPC)}",
            triton_http=f"{HOST}:{settings.port(TRITON_HTTP)}",
            triton_metrics=f"{HOST}:{settings.port(TRITON_METRICS)}",
            opensearch=f"http://{HOST}:{settings.port(OPENSEARCH_HTTP)}",
        )

    @classmethod
    def path(cls, data_dir: Path) -> Path:
        """Where a data folder keeps them."""
        return data_dir / "endpoints.json"


def in_use(port: int, host: str = HOST) -> bool:
    """Whether somebody listens on the port. Connections in TIME_WAIT do not count."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
            probe.listen(1)
        except OSError as error:
            if error.errno in (errno.EADDRINUSE, errno.EACCES):
                return True
            raise
    return False


def free_offset(base_ports: Iterable[int], step: int = 10) -> int:
    """The smallest offset above zero, a multiple of `step`, at which nobody listens on any of the ports."""
    bases = list(base_ports)
    for offset in range(step, MAX_PORT - max(bases), step):
        if not any(in_use(base + offset) for base in bases):
            return offset
    raise PreflightError("no free block of ports: stop other stacks with `sightlog down`")


def listener(port: int) -> str:
    """Who listens, as `pid 7 (java)`; empty if this user may not see it."""
    try:
        for connection in psutil.net_connections("tcp"):
            # The address is a (host, port) pair, or empty; the type stubs know the pair only by name.
            address: tuple[object, ...] = tuple(connection.laddr)
            if connection.status == psutil.CONN_LISTEN and address[1:] == (port,) and connection.pid:
                return f"pid {connection.pid} ({psutil.Process(connection.pid).name()})"
    except psutil.Error:
        return ""
    return ""


def answers(port: int, host: str = HOST, timeout_s: float = 0.2) -> bool:
    """Whether a TCP connection is accepted."""
    try:
        with socket.create_connection((host, port), timeout=timeout_s):
            return True
    except OSError:
        return False


def http_get(port: int, path: str, host: str = HOST, timeout_s: float = 2.0) -> tuple[int, bytes]:
    """Status and body of a GET, past any configured proxy; status 0 if nobody answers."""
    connection = http.client.HTTPConnection(host, port, timeout=timeout_s)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        return response.status, response.read()
    except (OSError, http.client.HTTPException):
        return 0, b""
    finally:
        connection.close()
