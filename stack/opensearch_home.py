"""Assembles an OpenSearch home (server, modules, k-NN plugin) from pinned artifacts; safe to repeat, heals itself."""

from __future__ import annotations

import re
import shutil
import zipfile
import zlib
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path

from sightlog.atomic_write import write_atomically
from stack.artifacts import Artifact, ArtifactCache, link_file

VERSION = "3.4.0"
ROOT = "opensearch/"
DESCRIPTOR_NAME = "plugin-descriptor.properties"

#: Module folder to its plugin class and the module it extends.
MODULES: Mapping[str, tuple[str, str]] = {
    "transport-netty4": ("org.opensearch.transport.Netty4ModulePlugin", ""),
    "lang-painless": ("org.opensearch.painless.PainlessModulePlugin", ""),
    "reindex": ("org.opensearch.index.reindex.ReindexModulePlugin", ""),
    "analysis-common": ("org.opensearch.analysis.common.CommonAnalysisModulePlugin", "lang-painless"),
    "mapper-extras": ("org.opensearch.index.mapper.MapperExtrasModulePlugin", ""),
    "ingest-common": ("org.opensearch.ingest.common.IngestCommonModulePlugin", "lang-painless"),
    "parent-join": ("org.opensearch.join.ParentJoinModulePlugin", ""),
    "percolator": ("org.opensearch.percolator.PercolatorModulePlugin", ""),
}

_DESCRIPTOR = """\
description={name}
version={version}
name={name}
classname={classname}
java.version=21
opensearch.version={version}
extended.plugins={extends}
has.native.controller=false
"""


def assemble(
    cache: ArtifactCache, folders: Mapping[str, tuple[Artifact, ...]], home: Path, without: Iterable[str] = ()
) -> None:
    """Make `home` hold exactly these artifacts. `folders` maps `opensearch/<folder>` to what lies there.

    `without` names modules to leave out.
    """
    wanted = {folder.removeprefix(ROOT): artifacts for folder, artifacts in folders.items()}
    for module in without:
        wanted.pop(f"modules/{module}", None)
    # The node makes `bin` if it is missing, which it cannot do in a home that is not its own.
    (home / "bin").mkdir(parents=True, exist_ok=True)
    for kind in ("modules", "plugins"):
        (home / kind).mkdir(exist_ok=True)
        for stray in [path for path in (home / kind).iterdir() if f"{kind}/{path.name}" not in wanted]:
            shutil.rmtree(stray)
    for folder, artifacts in wanted.items():
        _fill(cache, home / folder, artifacts)
        if folder.startswith("modules/"):
            _describe_module(home / folder)


def _fill(cache: ArtifactCache, folder: Path, artifacts: tuple[Artifact, ...]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    keep = {DESCRIPTOR_NAME}
    for artifact in artifacts:
        if artifact.packaging == "zip":
            keep |= _extract_plugin(cache.path(artifact), folder)
        else:
            link_file(cache.path(artifact), folder / artifact.filename)
            keep.add(artifact.filename)
    for stray in [path for path in folder.iterdir() if path.name not in keep]:
        stray.unlink()


def _extract_plugin(archive: Path, folder: Path) -> set[str]:
    """Unpack a flat plugin archive; returns the names in it. Files that are whole already stay."""
    names = set()
    with zipfile.ZipFile(archive) as plugin:
        for member in plugin.infolist():
            names.add(member.filename)
            target = folder / member.filename
            if member.filename == DESCRIPTOR_NAME:
                write_atomically(target, _detached(plugin.read(member).decode("utf-8")))
                continue
            with suppress(FileNotFoundError):
                if target.stat().st_size == member.file_size and zlib.crc32(target.read_bytes()) == member.CRC:
                    continue
            target.unlink(missing_ok=True)
            plugin.extract(member, folder)
    return names


def _detached(descriptor: str) -> str:
    """Without the gRPC transport, which is not published for this version; k-NN brings its interface itself."""
    return re.sub(r"(?m)^extended\.plugins=.*$", "extended.plugins=lang-painless", descriptor)


def _describe_module(folder: Path) -> None:
    classname, extends = MODULES[folder.name]
    text = _DESCRIPTOR.format(name=folder.name, version=VERSION, classname=classname, extends=extends)
    write_atomically(folder / DESCRIPTOR_NAME, text)
