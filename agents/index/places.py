"""Where a search looks: in an index as it is now, or in a point in time of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from opensearchpy import AsyncOpenSearch
from opensearchpy.exceptions import TransportError

from agents.delivery.failures import DependencyDown
from agents.index.connection import Overloaded, translated_failures
from sightlog.errors import ContractError


@dataclass(frozen=True)
class Place:
    """An index by its name, or a point in time, which knows its index."""

    index: str | None = None
    pit: str | None = None
    lifetime_s: float = 0.0
    """How long the point in time lives on after each search in it."""

    @property
    def header(self) -> dict[str, Any]:
        """Its part of the first line of a search."""
        return {} if self.index is None else {"index": self.index}

    @property
    def body(self) -> dict[str, Any]:
        """Its part of the body of a search."""
        return {} if self.pit is None else {"pit": {"id": self.pit, "keep_alive": f"{int(self.lifetime_s) + 1}s"}}


async def open_point_in_time(client: AsyncOpenSearch, index: str, lifetime_s: float, timeout: float) -> str:
    """Keep the index as it is now for searches, until so long after the last of them.

    Raises ContractError `too_many_cursors` where a node holds as many as it may, NotFoundError, DependencyDown.
    """
    params = {"keep_alive": f"{int(lifetime_s) + 1}s", "request_timeout": timeout}
    try:
        with translated_failures("point in time"):
            return str((await client.create_pit(index=index, params=params))["pit_id"])
    except Overloaded:
        raise ContractError("too_many_cursors", "too many pages are being read; ask again later") from None


async def close_point_in_time(client: AsyncOpenSearch, pit: str) -> None:
    """Let go of it; one that is gone already, or cannot be reached, ends by itself."""
    try:
        with translated_failures("point in time"):
            await client.delete_pit(body={"pit_id": [pit]})
    except (DependencyDown, TransportError):
        pass
