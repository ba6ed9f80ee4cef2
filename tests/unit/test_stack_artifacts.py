"""The download cache: what is wrong in it heals, what cannot be had is one clear error."""

from __future__ import annotations

import dataclasses
import hashlib
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from stack.artifacts import DOWNLOAD_TRIES, Artifact, ArtifactCache, pinned
from stack.errors import DownloadError
from stack.opensearch_home import DESCRIPTOR_NAME, MODULES, ROOT, assemble

Report = Callable[[str, int, int, int], None]


def quiet(name: str, size: int, done: int, total: int) -> None:
    """Report nothing."""


def artifact_of(coordinate: str, content: bytes) -> Artifact:
    return Artifact.parse(coordinate, hashlib.sha256(content).hexdigest(), len(content))


class Registry:
    """A resolver over a dictionary; answers in `broken` are served first, one a request."""

    def __init__(self, contents: dict[str, bytes]) -> None:
        self.contents = contents
        self.broken: list[bytes | Exception] = []
        self.asked: list[str] = []

    def __call__(self, artifact: Artifact, folder: Path, arrived: Callable[[int], None]) -> Path:
        self.asked.append(str(artifact))
        content = self.broken.pop(0) if self.broken else self.contents[str(artifact)]
        if isinstance(content, Exception):
            raise content
        file = folder / artifact.filename
        file.write_bytes(content)
        arrived(len(content))
        return file


JAR = b"jar" * 1000
ONE = artifact_of("org.example:one:1.0", JAR)


@pytest.fixture
def registry() -> Registry:
    return Registry({str(ONE): JAR})


@pytest.fixture
def cache(tmp_path: Path, registry: Registry) -> Iterator[ArtifactCache]:
    cache = ArtifactCache(tmp_path / "cache", registry)
    with cache.exclusive():
        yield cache


def test_what_is_cached_is_not_asked_for_again(cache: ArtifactCache, registry: Registry) -> None:
    assert cache.fetch([ONE, ONE], quiet) == 1
    assert cache.fetch([ONE], quiet) == 0
    assert registry.asked == [str(ONE)]
    assert cache.path(ONE).read_bytes() == JAR


@pytest.mark.parametrize("damaged", [b"", JAR[:-1], b"x" + JAR[1:]], ids=["empty", "cut short", "changed, same size"])
def test_a_damaged_entry_is_downloaded_again(cache: ArtifactCache, damaged: bytes) -> None:
    cache.fetch([ONE], quiet)
    cache.path(ONE).write_bytes(damaged)
    assert cache.missing([ONE]) == [ONE]
    cache.fetch([ONE], quiet)
    assert cache.path(ONE).read_bytes() == JAR


def test_what_an_interrupted_download_left_never_becomes_an_entry(cache: ArtifactCache) -> None:
    leftover = cache.folder / "partial" / "abc" / "one-1.0.jar"
    leftover.parent.mkdir(parents=True)
    leftover.write_bytes(JAR[:10])
    cache.fetch([ONE], quiet)
    assert cache.path(ONE).read_bytes() == JAR
    assert not (cache.folder / "partial").exists()


def test_a_broken_off_download_is_tried_again(cache: ArtifactCache, registry: Registry) -> None:
    registry.broken = [OSError("connection reset"), JAR[:100]]
    cache.fetch([ONE], quiet)
    assert cache.path(ONE).read_bytes() == JAR
    assert len(registry.asked) == 3


def test_bytes_of_a_failed_try_do_not_count_as_progress(cache: ArtifactCache, registry: Registry) -> None:
    registry.broken = [JAR[:100]]
    seen: list[tuple[int, int]] = []
    cache.fetch([ONE], lambda name, size, done, total: seen.append((done, total)))
    assert seen == [(100, len(JAR)), (0, len(JAR)), (len(JAR), len(JAR))]


def test_a_file_that_is_not_the_pinned_one_is_refused_and_not_kept(cache: ArtifactCache, registry: Registry) -> None:
    registry.contents[str(ONE)] = b"something else"
    with pytest.raises(DownloadError, match=r"org\.example:one:1\.0.*sha256"):
        cache.fetch([ONE], quiet)
    assert len(registry.asked) == DOWNLOAD_TRIES
    assert not cache.path(ONE).exists()


def test_a_failed_download_names_the_artifact_and_what_to_do(cache: ArtifactCache, registry: Registry) -> None:
    registry.broken = [OSError("name resolution failed\nand more")] * DOWNLOAD_TRIES
    with pytest.raises(DownloadError) as caught:
        cache.fetch([ONE], quiet)
    message = str(caught.value)
    assert "\n" not in message
    assert "org.example:one:1.0" in message
    assert "name resolution failed and more" in message
    assert "HTTPS_PROXY" in message


def test_one_failed_download_keeps_the_others(cache: ArtifactCache, registry: Registry) -> None:
    two = artifact_of("org.example:two:1.0", b"two")
    with pytest.raises(DownloadError):
        cache.fetch([ONE, two], quiet)
    assert cache.missing([ONE, two]) == [two]


def test_every_pinned_artifact_has_a_digest_and_every_module_a_descriptor() -> None:
    folders = pinned()
    artifacts = [artifact for files in folders.values() for artifact in files]
    assert all(len(artifact.sha256) == 64 and artifact.size > 0 for artifact in artifacts)
    modules = {folder.removeprefix(f"{ROOT}modules/") for folder in folders if "/modules/" in folder}
    assert modules == set(MODULES)


def plugin_archive(path: Path) -> bytes:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(DESCRIPTOR_NAME, "name=opensearch-knn\nextended.plugins=lang-painless,transport-grpc\n")
        archive.writestr("knn.jar", b"k-NN code")
    return path.read_bytes()


@pytest.fixture
def home_parts(cache: ArtifactCache, registry: Registry, tmp_path: Path) -> dict[str, tuple[Artifact, ...]]:
    archive = plugin_archive(tmp_path / "knn.zip")
    knn = artifact_of("org.example:knn:1.0:zip", archive)
    registry.contents[str(knn)] = archive
    cache.fetch([ONE, knn], quiet)
    return {
        f"{ROOT}lib": (ONE,),
        f"{ROOT}modules/reindex": (ONE,),
        f"{ROOT}modules/analysis-common": (ONE,),
        f"{ROOT}plugins/opensearch-knn": (knn,),
    }


def test_the_home_holds_exactly_its_parts_and_heals(
    cache: ArtifactCache, home_parts: dict[str, tuple[Artifact, ...]], tmp_path: Path
) -> None:
    home = tmp_path / "home"
    assemble(cache, home_parts, home)
    plugin = home / "plugins" / "opensearch-knn"
    (plugin / "knn.jar").write_bytes(b"k-NN c0de")
    (home / "lib" / "older.jar").write_bytes(b"of another version")
    (home / "modules" / "gone").mkdir()
    assemble(cache, home_parts, home)
    assert (plugin / "knn.jar").read_bytes() == b"k-NN code"
    assert [path.name for path in (home / "lib").iterdir()] == [ONE.filename]
    assert {path.name for path in (home / "modules").iterdir()} == {"reindex", "analysis-common"}
    assert "extended.plugins=lang-painless\n" in (plugin / DESCRIPTOR_NAME).read_text()


def test_a_healed_cache_entry_reaches_the_home(
    cache: ArtifactCache, home_parts: dict[str, tuple[Artifact, ...]], tmp_path: Path
) -> None:
    home = tmp_path / "home"
    assemble(cache, home_parts, home)
    cache.path(ONE).write_bytes(b"broken")  # linked: breaks the home too
    cache.fetch([ONE], quiet)
    assemble(cache, home_parts, home)
    assert (home / "lib" / ONE.filename).read_bytes() == JAR


def test_a_module_can_be_left_out(
    cache: ArtifactCache, home_parts: dict[str, tuple[Artifact, ...]], tmp_path: Path
) -> None:
    home = tmp_path / "home"
    assemble(cache, home_parts, home)
    assemble(cache, home_parts, home, without=("analysis-common",))
    assert not (home / "modules" / "analysis-common").exists()


def test_another_version_is_another_file() -> None:
    assert dataclasses.replace(ONE, version="1.1").path != ONE.path
