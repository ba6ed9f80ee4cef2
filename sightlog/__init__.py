"""Visual search over event streams. What is named here is imported when it is first used, so that this is light."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sightlog.async_client import AsyncClient
    from sightlog.client import Client
    from sightlog.filters import ClassFilter, MetadataFilter, SearchFilters, TagFilter
    from sightlog.frames import to_dataframe
    from sightlog.search import Clause, Hit, SearchReply, SearchRequest
    from sightlog.settings import ClientSettings

__all__ = [
    "AsyncClient",
    "ClassFilter",
    "Clause",
    "Client",
    "ClientSettings",
    "Hit",
    "MetadataFilter",
    "SearchFilters",
    "SearchReply",
    "SearchRequest",
    "TagFilter",
    "to_dataframe",
]

_MODULES = {
    "AsyncClient": "async_client",
    "Client": "client",
    "ClassFilter": "filters",
    "MetadataFilter": "filters",
    "SearchFilters": "filters",
    "TagFilter": "filters",
    "to_dataframe": "frames",
    "Clause": "search",
    "Hit": "search",
    "SearchReply": "search",
    "SearchRequest": "search",
    "ClientSettings": "settings",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
