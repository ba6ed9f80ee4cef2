"""Where models come from, and which of them a data folder runs."""

from __future__ import annotations

import os
from pathlib import Path

from pydantic import Field, field_validator

from models.manifest import MANIFEST_FILE, ModelManifest
from sightlog.atomic_write import write_atomically
from sightlog.errors import ConfigurationError
from sightlog.settings import ClientSettings

#: In the data folder: sets by the first digits of their digests, and the name of the one in use.
SETS = "models"
ACTIVE = "active"


def default_models_dir() -> Path:
    """`$XDG_DATA_HOME/sightlog/models`, else `~/.local/share/sightlog/models`."""
    base = os.environ.get("XDG_DATA_HOME")
    return (Path(base) if base else Path.home() / ".local" / "share") / "sightlog" / "models"


class ModelSettings(ClientSettings):
    """Settings of everything that runs models."""

    models: Path | None = Field(
        None, description="folder of a model manifest; else what `sightlog models use` chose, else the tiny models"
    )
    models_dir: Path = Field(default_factory=default_models_dir, description="the store of exported models")

    @field_validator("models_dir")
    @classmethod
    def _absolute(cls, value: Path) -> Path:
        return value.expanduser().absolute()

    @property
    def model_folder(self) -> Path | None:
        """For `load_manifest`: the models in use."""
        return chosen_folder(self.data_dir, self.models)


def chosen_folder(data_dir: Path, models: Path | None = None) -> Path | None:
    """Folder of the manifest in use: `models` if given, else what was chosen for the data folder; None = tiny.

    Raises ConfigurationError when the chosen folder is gone.
    """
    if models is not None:
        return models
    pointer = data_dir / SETS / ACTIVE
    try:
        folder = data_dir / SETS / pointer.read_text(encoding="utf-8").strip()
    except FileNotFoundError:
        return None
    if not (folder / MANIFEST_FILE).is_file():
        raise ConfigurationError(f"{pointer} names {folder}, which is gone; choose again with `sightlog models use`")
    return folder


def choose(data_dir: Path, manifest: ModelManifest) -> None:
    """Make a set that lies in the data folder the one in use, in one step."""
    write_atomically(data_dir / SETS / ACTIVE, manifest.folder.name + "\n")
