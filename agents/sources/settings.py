"""Which places outside this machine a reference may name, and how long one may take."""

from __future__ import annotations

from ipaddress import IPv4Network, IPv6Network
from typing import Annotated, Any, TypeVar

from pydantic import BeforeValidator, Field, PlainSerializer, StringConstraints
from pydantic_settings import NoDecode, SettingsConfigDict

from sightlog.settings import ENV_PREFIX, Settings

HOST_PATTERN = r"^(\*|(\*\.)?[a-z0-9_-]+(\.[a-z0-9_-]+)*|\[[0-9a-f:.]+\])(:([0-9]{1,5}|\*))?$"
BUCKET_PATTERN = r"^(s3|gs|az)://[a-z0-9][a-z0-9._-]*(/[^/\x00-\x1f]+)*/?$"


def _split(value: Any) -> Any:
    return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value


Item = TypeVar("Item")
#: Written as `a,b` in the environment and by `sightlog config`.
Listed = Annotated[
    tuple[Item, ...],
    NoDecode,
    BeforeValidator(_split),
    PlainSerializer(lambda items: ",".join(map(str, items)), return_type=str, when_used="json"),
]


class SourceSettings(Settings):
    """What references to files elsewhere may name; nothing, unless it is allowed here."""

    model_config = SettingsConfigDict(env_prefix=f"{ENV_PREFIX}SOURCES_", frozen=True, extra="ignore")

    buckets: Listed[Annotated[str, StringConstraints(pattern=BUCKET_PATTERN)]] = Field(
        (), description="buckets, or folders in them, that may be read, as s3://photos,gs://shop/public,az://container"
    )
    hosts: Listed[Annotated[str, StringConstraints(pattern=HOST_PATTERN)]] = Field(
        (),
        description="hosts that https: references may name, as images.example.org,*.example.net,cdn.example.com:8443; "
        "without a port only the usual one, :* any; * is every public host",
    )
    http: bool = Field(False, description="http: is allowed as well, where nothing proves who answers")
    private_networks: Listed[IPv4Network | IPv6Network] = Field(
        (), description="networks whose addresses may be connected to although they are not public, as 10.1.0.0/16"
    )
    s3_endpoint: str | None = Field(None, description="URL of an S3 that is not Amazon's")
    s3_region: str | None = Field(None, description="region of the s3: buckets; else AWS_REGION")
    gs_endpoint: str | None = Field(None, description="URL of a Google Cloud Storage that is not Google's")
    az_endpoint: str | None = Field(None, description="URL of the Azure storage account, if it is not the usual one")

    deadline: float = Field(30.0, gt=0, description="seconds that one file may take")
    connect_timeout: float = Field(5.0, gt=0, description="seconds until a host must have accepted the connection")
    stall: float = Field(5.0, gt=0, description="seconds within which `min_progress` bytes must come")
    min_progress: int = Field(1024, gt=0, description="bytes; a file that comes slower waits for its retry")
    redirects: int = Field(5, ge=0, le=20, description="redirects that are followed, each checked like the first place")
