"""Reads `s3:`, `gs:` and `az:` references out of allowed buckets."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import obstore
from obstore.exceptions import BaseError, PermissionDeniedError, UnauthenticatedError
from obstore.store import AzureStore, GCSStore, S3Store

from agents.delivery.failures import ItemBroken, NotYet
from agents.sources.limits import ReadLimits, shown
from agents.sources.settings import SourceSettings

BUCKET_SCHEMES = frozenset({"s3", "gs", "az"})
#: The libraries of the stores say the status in words only.
_STATUS = re.compile(r"status code: (\d{3})\b.*?(SlowDown|$)", re.DOTALL)
_CHUNK = 64 * 1024


class BucketSource:
    """Reads objects; the key is what stands behind the bucket, as it is: `%` and `?` are characters of it."""

    def __init__(self, settings: SourceSettings, limits: ReadLimits) -> None:
        self._settings = settings
        self._limits = limits
        self._allowed = tuple(place.rstrip("/") for place in settings.buckets)
        self._stores: dict[str, S3Store | GCSStore | AzureStore] = {}

    async def read(self, uri: str) -> bytes:
        """The object behind `uri`. Raises ItemBroken, NotYet."""
        store, key = self._located(uri)
        place = shown(uri)
        try:
            found = await obstore.get_async(store, key)
            self._limits.check_size(found.meta["size"])
            return await self._limits.collect(_chunks(found), place)
        except FileNotFoundError:
            raise NotYet("source_missing", f"{place} does not exist") from None
        except (UnauthenticatedError, PermissionDeniedError):
            raise ItemBroken(
                "source_forbidden", f"{place} may not be read with the credentials of the worker"
            ) from None
        except (BaseError, OSError, ValueError) as error:
            raise _failure(place, error) from None

    def _located(self, uri: str) -> tuple[S3Store | GCSStore | AzureStore, str]:
        """Store and key, if the place is allowed. Raises ItemBroken."""
        scheme, _, rest = uri.partition("://")
        bucket, _, key = rest.partition("/")
        # An empty key would list the bucket; some stores read `.` and `..` as folders.
        if not bucket or any(part in ("", ".", "..") for part in key.split("/")) or re.search(r"[\x00-\x1f\x7f]", key):
            raise ItemBroken("unsupported_source", f"{shown(uri)} names no object in a bucket")
        place = f"{scheme}://{bucket}/{key}"
        if not any(place.startswith(f"{allowed}/") for allowed in self._allowed):
            raise ItemBroken("source_not_allowed", f"{shown(uri)} is in no place of SIGHTLOG_SOURCES_BUCKETS")
        name = f"{scheme}://{bucket}"
        if name not in self._stores:
            # One for each allowed bucket at most.
            self._stores[name] = self._store(scheme, bucket)
        return self._stores[name], key

    def _store(self, scheme: str, bucket: str) -> S3Store | GCSStore | AzureStore:
        settings = self._settings
        endpoint = {"s3": settings.s3_endpoint, "gs": settings.gs_endpoint, "az": settings.az_endpoint}[scheme]
        options: dict[str, Any] = {
            "client_options": {
                "connect_timeout": timedelta(seconds=settings.connect_timeout),
                "timeout": timedelta(seconds=settings.deadline),
                "allow_http": endpoint is not None and endpoint.startswith("http:"),
            },
            # The retry tiers wait; here it would hold a place in the window.
            "retry_config": {"max_retries": 0, "retry_timeout": timedelta(seconds=settings.deadline)},
        }
        if scheme == "s3":
            given = {"region": settings.s3_region, "endpoint": endpoint}
            return S3Store(bucket, **options | {name: value for name, value in given.items() if value})
        if endpoint is not None:
            options["base_url" if scheme == "gs" else "endpoint"] = endpoint
        return GCSStore(bucket, **options) if scheme == "gs" else AzureStore(bucket, **options)


async def _chunks(found: obstore.GetResult) -> AsyncIterator[bytes]:
    async for chunk in found.stream(min_chunk_size=_CHUNK):
        yield bytes(chunk)


def _failure(place: str, error: Exception) -> ItemBroken | NotYet:
    answer = _STATUS.search(str(error))
    status = int(answer[1]) if answer else 0
    if status == 429 or (answer and answer[2]):
        return NotYet("source_throttled", f"{place}: the store asks to slow down ({status})")
    if status >= 500:
        return NotYet("source_failed", f"{place}: the store answered {status}")
    if 400 <= status < 500 and status not in (408, 409):
        return ItemBroken("source_refused", f"{place}: the store answered {status}")
    reason = str(error).partition("\n")[0][:200]
    if "timed out" in str(error):
        return NotYet("source_timeout", f"{place}: {reason}")
    return NotYet("source_failed", f"{place}: {reason}")
