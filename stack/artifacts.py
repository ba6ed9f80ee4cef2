"""Pinned Maven artifacts: downloaded with jgo, verified by digest, kept in a cache that heals itself."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Protocol

from stack.errors import DownloadError

#: Downloads at once: small jars are bound by round trips, and more than this annoys registries.
PARALLEL_DOWNLOADS = 6
#: Tries of one artifact, for connections that break off half way.
DOWNLOAD_TRIES = 3


@dataclass(frozen=True)
class Artifact:
    """One pinned file: Maven coordinate, sha256 (hex) and size (bytes)."""

    group: str
    name: str
    version: str
    packaging: str
    sha256: str
    size: int

    @classmethod
    def parse(cls, coordinate: str, sha256: str = "", size: int = 0) -> Artifact:
        """From `group:name:version[:packaging]`."""
        group, name, version, *packaging = coordinate.split(":")
        return cls(group, name, version, packaging[0] if packaging else "jar", sha256, size)

    def __str__(self) -> str:
        suffix = "" if self.packaging == "jar" else f":{self.packaging}"
        return f"{self.group}:{self.name}:{self.version}{suffix}"

    @property
    def filename(self) -> str:
        """`name-version.packaging`."""
        return f"{self.name}-{self.version}.{self.packaging}"

    @property
    def path(self) -> Path:
        """Where it lies below a Maven repository folder."""
        return Path(*self.group.split("."), self.name, self.version, self.filename)


def pinned() -> dict[str, tuple[Artifact, ...]]:
    """The lock file: target folder to its artifacts."""
    text = resources.files("stack").joinpath("artifacts.json").read_text(encoding="utf-8")
    return {
        folder: tuple(Artifact.parse(row["artifact"], row["sha256"], row["size"]) for row in rows)
        for folder, rows in json.loads(text).items()
    }


class Resolver(Protocol):
    """Brings one artifact into a folder."""

    def __call__(self, artifact: Artifact, folder: Path, arrived: Callable[[int], None]) -> Path:
        """Download into `folder`, call `arrived` with the size of each piece, return the file."""


def jgo_resolver(timeout_s: int) -> Resolver:
    """A resolver that asks the registry jgo is configured for; needs neither Maven nor Java."""

    def resolve(artifact: Artifact, folder: Path, arrived: Callable[[int], None]) -> Path:
        from jgo.maven import MavenContext, PythonResolver

        @contextmanager
        def callback(_name: str, _total: int) -> Iterator[Callable[[int], None]]:
            yield arrived

        context = MavenContext(
            resolver=PythonResolver(progress_callback=callback), repo_cache=folder, timeout=timeout_s
        )
        component = context.project(artifact.group, artifact.name).at_version(artifact.version)
        return Path(component.artifact(packaging=artifact.packaging).resolve())

    return resolve


def sha256_of(path: Path) -> str:
    """Hex digest of a file's bytes."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


class ArtifactCache:
    """Artifacts below `<folder>/maven`; an entry counts only while its digest is the pinned one."""

    def __init__(self, folder: Path, resolver: Resolver) -> None:
        self.folder = folder
        self._resolver = resolver

    def path(self, artifact: Artifact) -> Path:
        """Where the artifact lies once it is fetched."""
        return self.folder / "maven" / artifact.path

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """Hold the cache against other processes; several stacks may share one cache."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / ".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def missing(self, artifacts: Iterable[Artifact]) -> list[Artifact]:
        """Those that are absent, cut short or changed; each is named once."""
        unique = list(dict.fromkeys(artifacts))
        with ThreadPoolExecutor(max_workers=os.cpu_count() or 1) as pool:
            sound = list(pool.map(self._is_sound, unique))
        return [artifact for artifact, good in zip(unique, sound, strict=True) if not good]

    def fetch(self, artifacts: Iterable[Artifact], report: Callable[[str, int, int, int], None]) -> int:
        """Download what is missing; returns how many files that were.

        `report(name, size, done, total)` is called for each piece that arrives, in bytes.
        Raises DownloadError.
        """
        wanted = self.missing(artifacts)
        if not wanted:
            return 0
        partial = self.folder / "partial"
        # Whatever lies there belongs to a download that was interrupted: `exclusive` is held.
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        total = sum(artifact.size for artifact in wanted)
        done, lock = 0, threading.Lock()

        def arrived(artifact: Artifact, size: int) -> None:
            nonlocal done
            with lock:
                done += size
                report(artifact.filename, size, min(done, total), total)

        try:
            with ThreadPoolExecutor(max_workers=PARALLEL_DOWNLOADS) as pool:
                jobs = [pool.submit(self._fetch_one, artifact, partial, arrived) for artifact in wanted]
                try:
                    for job in jobs:
                        job.result()
                except BaseException:
                    pool.shutdown(wait=False, cancel_futures=True)
                    raise
        finally:
            shutil.rmtree(partial, ignore_errors=True)
        return len(wanted)

    def _is_sound(self, artifact: Artifact) -> bool:
        path = self.path(artifact)
        with suppress(FileNotFoundError):
            return path.stat().st_size == artifact.size and sha256_of(path) == artifact.sha256
        return False

    def _fetch_one(self, artifact: Artifact, partial: Path, arrived: Callable[[Artifact, int], None]) -> None:
        reason = ""
        for _ in range(DOWNLOAD_TRIES):
            folder = Path(tempfile.mkdtemp(dir=partial))
            received = 0

            def count(size: int) -> None:
                nonlocal received
                received += size
                arrived(artifact, size)

            try:
                file = self._resolver(artifact, folder, count)
            except Exception as error:  # jgo raises RuntimeError, requests its own, sockets OSError
                reason = str(error) or type(error).__name__
            else:
                if sha256_of(file) == artifact.sha256:
                    target = self.path(artifact)
                    target.parent.mkdir(parents=True, exist_ok=True)
                    file.chmod(0o644)
                    file.replace(target)
                    return
                reason = f"its sha256 is not the pinned one ({file.stat().st_size} of {artifact.size} bytes)"
            arrived(artifact, -received)
        raise DownloadError(
            f"download of {artifact} failed {DOWNLOAD_TRIES} times: {_one_line(reason)}. Check the network (proxy: "
            "HTTPS_PROXY, own certificates: REQUESTS_CA_BUNDLE) and run the command again; what has arrived is kept "
            f"in {self.folder}"
        )


def link_file(source: Path, target: Path) -> None:
    """`target` becomes the same file as `source`: linked, or copied where links are not possible.

    A hard link: a sandboxed JVM compares real paths, so a symbolic one would point outside its home.
    """
    with suppress(FileNotFoundError):
        if target.samefile(source):
            return
    target.parent.mkdir(parents=True, exist_ok=True)
    fresh = target.with_name(f".{target.name}.{os.getpid()}")
    fresh.unlink(missing_ok=True)
    try:
        os.link(source, fresh)
    except OSError:
        shutil.copy2(source, fresh)
    fresh.replace(target)


def _one_line(text: str) -> str:
    return " ".join(text.split())[:300]
