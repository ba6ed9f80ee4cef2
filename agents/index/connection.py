"""The connection to OpenSearch, its failures as ours, and the aliases that every reader and writer uses."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import orjson
from opensearchpy import AsyncOpenSearch
from opensearchpy.exceptions import ConnectionError as OpenSearchConnectionError
from opensearchpy.exceptions import NotFoundError, RequestError, TransportError
from opensearchpy.serializer import JSONSerializer

from agents.delivery.failures import DependencyDown
from agents.index.mappings import VISIBLE, ModelIdentity, images_index, index_name, missing_engine, objects_index
from agents.settings import IndexSettings
from sightlog.errors import ConfigurationError

log = logging.getLogger(__name__)


class _OrjsonSerializer(JSONSerializer):
    """Takes float32 arrays as they are: about half the bytes and 1.4 times the rate of `tolist()`."""

    def dumps(self, data: Any) -> Any:
        # A bulk is bytes already.
        return data if isinstance(data, (str, bytes)) else orjson.dumps(data, option=orjson.OPT_SERIALIZE_NUMPY)

    def loads(self, s: str) -> Any:
        return orjson.loads(s)


def connect(url: str, *, connections: int = 16) -> AsyncOpenSearch:
    """An asynchronous client; retries are the caller's business."""
    return AsyncOpenSearch(hosts=[url], serializer=_OrjsonSerializer(), timeout=60, max_retries=0, maxsize=connections)


class Overloaded(DependencyDown):
    """OpenSearch has too much to do: a queue is full, or a breaker would trip."""


@contextmanager
def translated_failures(what: str) -> Iterator[None]:
    """Turn 'not reachable' and 5xx of OpenSearch into DependencyDown, 429 into Overloaded; other errors pass."""
    try:
        yield
    except OpenSearchConnectionError as error:
        raise DependencyDown(f"OpenSearch ({what}): {error.error}") from None
    except TransportError as error:
        if error.status_code == 429:
            raise Overloaded(f"OpenSearch ({what}): 429 {error.error}") from None
        if isinstance(error.status_code, int) and error.status_code >= 500:
            raise DependencyDown(f"OpenSearch ({what}): {error.status_code} {error.error}") from None
        raise


async def ensure_indices(client: AsyncOpenSearch, settings: IndexSettings, model: ModelIdentity) -> None:
    """Create both indices of the model where they are missing, and let their aliases point to them.

    An alias that points to another model's index moves only if the settings say `model_change=switch`; the other index
    stays as it is. Raises ConfigurationError when it must not move, DependencyDown when OpenSearch does not answer.
    Several workers may do this at once.
    """
    for alias, body in {
        settings.images: images_index(settings, model),
        settings.objects: objects_index(settings, model),
    }.items():
        if fields := missing_engine(body):
            raise ConfigurationError(f"index {alias}: vector fields without a named engine: {', '.join(fields)}")
        name = index_name(alias, model)
        with translated_failures(f"create {alias}"):
            others = await _others_behind(client, alias, name)
            if others and settings.model_change == "refuse":
                break  # check_model says it
            await _create_or_extend(client, name, body)
            changes: list[dict[str, Any]] = [{"remove": {"index": other, "alias": alias}} for other in others]
            add = {"index": name, "alias": alias, "is_write_index": True}
            changes.append({"add": {**add, "filter": VISIBLE} if alias == settings.images else add})
            await client.indices.update_aliases(body={"actions": changes})
            if others:
                log.warning("%s now means %s; %s stays as it is", alias, name, ", ".join(others))
    await check_model(client, settings, model)


async def _create_or_extend(client: AsyncOpenSearch, name: str, body: dict[str, Any]) -> None:
    """Create the index, or map in it the fields that this version has and the one that created it had not."""
    if not await client.indices.exists(index=name):
        try:
            await client.indices.create(index=name, body=body)
            log.info("created index %s", name)
        except TransportError as error:
            if error.error != "resource_already_exists_exception":
                raise
    mapped = (await client.indices.get_mapping(index=name))[name]["mappings"]["properties"]
    missing = {field: how for field, how in body["mappings"]["properties"].items() if field not in mapped}
    if missing:
        try:
            await client.indices.put_mapping(index=name, body={"properties": missing})
        except RequestError as error:
            raise ConfigurationError(
                f"index {name} is of a version that has no {', '.join(missing)}, and cannot get them ({error.error}); "
                "delete it and replay images.embedded, or use other SIGHTLOG_INDEX_IMAGES and SIGHTLOG_INDEX_OBJECTS"
            ) from None
        log.info("index %s: mapped %s", name, ", ".join(missing))


async def _others_behind(client: AsyncOpenSearch, alias: str, name: str) -> list[str]:
    """The indices that an alias points to, without `name`."""
    try:
        return [index for index in await client.indices.get_alias(name=alias) if index != name]
    except NotFoundError:
        return []


async def check_model(client: AsyncOpenSearch, settings: IndexSettings, model: ModelIdentity) -> None:
    """Refuse indices that hold vectors of another model.

    Raises ConfigurationError, or DependencyDown while OpenSearch does not answer or the indices do not exist yet.
    """
    for alias in (settings.images, settings.objects):
        try:
            with translated_failures(f"read {alias}"):
                found = await client.indices.get_mapping(index=alias)
        except NotFoundError:
            raise DependencyDown(f"OpenSearch: index {alias} does not exist yet; an indexer creates it") from None
        for index, body in found.items():
            meta = body["mappings"].get("_meta", {})
            if meta.get("model_digest") != model.digest:
                raise ConfigurationError(
                    f"index {index} holds vectors of model {meta.get('model_name')} ({meta.get('model_digest')}), this "
                    f"worker runs {model.name} ({model.digest}); use that model, another SIGHTLOG_INDEX_IMAGES and "
                    "SIGHTLOG_INDEX_OBJECTS, or an indexer with SIGHTLOG_INDEX_MODEL_CHANGE=switch"
                )
