"""Settings of a client of the topics, and where all settings come from.

Order of precedence: arguments, environment variables `SIGHTLOG_*`, the endpoints of a stack that runs in the data
folder, defaults.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, get_args

import orjson
from pydantic import (
    BeforeValidator,
    Field,
    PlainSerializer,
    SecretStr,
    StringConstraints,
    ValidationError,
    field_validator,
)
from pydantic_settings import BaseSettings, NoDecode, PydanticBaseSettingsSource, SettingsConfigDict, SettingsError
from typing_extensions import Self

from sightlog.errors import ConfigurationError

ENV_PREFIX = "SIGHTLOG_"
ENDPOINTS_FILE = "endpoints.json"

#: What a Kafka broker takes at most in one record on these topics, keys and headers included.
MAX_RECORD_BYTES = 8 * 1024 * 1024


def default_data_dir() -> Path:
    """`$SIGHTLOG_DATA_DIR`, else `.sightlog` in the current folder."""
    return Path(os.environ.get(f"{ENV_PREFIX}DATA_DIR", ".sightlog")).absolute()


class _RunningStack(PydanticBaseSettingsSource):
    """Endpoints that a local stack wrote into its data folder."""

    def get_field_value(self, field: Any, field_name: str) -> tuple[Any, str, bool]:
        raise NotImplementedError  # __call__ answers for all fields at once

    def __call__(self) -> dict[str, Any]:
        data_dir = Path(self.current_state.get("data_dir") or default_data_dir())
        try:
            endpoints = orjson.loads((data_dir / ENDPOINTS_FILE).read_bytes())
        except FileNotFoundError:
            return {}
        except (OSError, orjson.JSONDecodeError) as error:
            raise ConfigurationError(f"cannot read {data_dir / ENDPOINTS_FILE}: {error}; remove the file") from None
        if not isinstance(endpoints, dict):
            raise ConfigurationError(f"{data_dir / ENDPOINTS_FILE} is not a JSON object; remove the file")
        known = {"kafka": "kafka", "triton_grpc": "triton", "opensearch": "opensearch"}
        return {
            field: endpoints[name]
            for name, field in known.items()
            if field in self.settings_cls.model_fields and name in endpoints
        }


class Settings(BaseSettings):
    """Base of all settings: environment variables with the prefix `SIGHTLOG_`, frozen after start."""

    model_config = SettingsConfigDict(env_prefix=ENV_PREFIX, frozen=True, extra="ignore")

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return init_settings, env_settings, _RunningStack(settings_cls)

    @classmethod
    def load(cls, **overrides: Any) -> Self:
        """Read the settings; a wrong value raises ConfigurationError with the name of the setting."""
        try:
            return cls(**overrides)
        except SettingsError as error:
            raise ConfigurationError(f"{_variable_of(cls, error)}: not JSON") from None
        except ValidationError as error:
            first = error.errors()[0]
            kind = next((c for c in _family(Settings) if c.__name__ == error.title), cls)
            name = "_".join(map(str, first["loc"][:1]))
            field = kind.model_fields.get(name)
            secret = field is not None and SecretStr in (field.annotation, *get_args(field.annotation))
            shown = "**********" if secret else repr(first.get("input"))
            raise ConfigurationError(
                f"{kind.model_config['env_prefix']}{name.upper()}={shown}: {first['msg']}"
            ) from None


def _variable_of(settings: type[Settings], error: SettingsError) -> str:
    """The variable with its value; pydantic names the field in its words only."""
    field = next((name for name in settings.model_fields if f'"{name}"' in str(error)), "")
    variable = f"{settings.model_config['env_prefix']}{field.upper()}"
    return f"{variable}={os.environ.get(variable)!r}"


def _family(settings: type[Settings]) -> Iterator[type[Settings]]:
    yield settings
    for child in settings.__subclasses__():
        yield from _family(child)


def _split(value: Any) -> Any:
    return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value


#: Fewer than the hops that a history keeps. Empty: what is not there at once is a dead letter.
Tiers = Annotated[
    tuple[Annotated[str, StringConstraints(pattern=r"^[1-9][0-9]{0,5}(ms|s|m|h)$")], ...],
    Field(max_length=8),
    NoDecode,
    BeforeValidator(_split),
    PlainSerializer(",".join, return_type=str, when_used="json"),
]


def _seconds(tier: str) -> float:
    units = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
    number = tier.rstrip("msh")
    return int(number) * units[tier.removeprefix(number)]


class Topics(Settings):
    """Names of the topics."""

    model_config = SettingsConfigDict(env_prefix=f"{ENV_PREFIX}TOPIC_", frozen=True, extra="ignore")

    images: str = "images"
    embedded: str = "images.embedded"
    indexed: str = "images.indexed"
    dead: str = "images.dead"
    closed: str = Field("images.dead.closed", description="what was done about dead letters")
    retry: str = Field("images.retry", description="prefix of the retry tiers' topics")
    retry_tiers: Tiers = Field(
        ("10s", "1m", "10m"), description="waits before the attempts of an event whose file is not there yet, as 10s,1m"
    )
    requests: str = "search.requests"
    replies: str = "search.replies"

    @property
    def retry_delays(self) -> dict[str, float]:
        """Topic of each retry tier, in order, and the seconds that a record waits there."""
        return {f"{self.retry}.{tier}": _seconds(tier) for tier in self.retry_tiers}


class ClientSettings(Settings):
    """What a producer or a searching client needs to know."""

    data_dir: Path = Field(default_factory=default_data_dir, description="state of a local stack, uploads")
    kafka: str = Field("127.0.0.1:19092", description="bootstrap servers of Kafka, host:port[,host:port]")
    topics: Topics = Field(default_factory=Topics)
    inline_limit: int = Field(
        1024 * 1024,
        gt=0,
        le=MAX_RECORD_BYTES,
        description="bytes up to which a client sends a file in the event",
    )
    search_timeout: float = Field(5.0, gt=0, description="seconds that a client waits for a reply")

    @field_validator("data_dir")
    @classmethod
    def _from_anywhere(cls, value: Path) -> Path:
        return value.absolute()

    @property
    def uploads_dir(self) -> Path:
        """Where the command line puts files above the inline limit, for the agents to read."""
        return self.data_dir / "uploads"
