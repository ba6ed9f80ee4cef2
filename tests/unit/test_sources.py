"""Where image bytes may come from: the event itself, or a file inside an allowed folder."""

from __future__ import annotations

import errno
import hashlib
import os
from pathlib import Path
from typing import Any

import pytest

from agents.delivery.failures import ItemBroken, NotYet
from agents.sources.reader import SourceReader
from sightlog.events import new_upload

LIMIT = 100


@pytest.fixture
def allowed(tmp_path: Path) -> Path:
    folder = tmp_path / "allowed"
    (folder / "below").mkdir(parents=True)
    (folder / "below" / "a picture.jpg").write_bytes(b"picture")
    (folder / "large.jpg").write_bytes(b"x" * (LIMIT + 1))
    (tmp_path / "secret").write_bytes(b"secret")
    (tmp_path / "allowed-not").mkdir()
    (tmp_path / "allowed-not" / "secret").write_bytes(b"secret")
    (folder / "link").symlink_to(tmp_path / "secret")
    (folder / "folder-link").symlink_to(tmp_path)
    (folder / "loop").symlink_to(folder / "loop")
    (folder / "good-link").symlink_to(folder / "below" / "a picture.jpg")
    return folder


async def read(allowed: Path, uri: str, **facts: Any) -> bytes:
    file = await SourceReader([allowed], LIMIT).read(new_upload(source="/test", dataref=uri, **facts))
    assert file.sha256 == hashlib.sha256(file.data).hexdigest()
    return file.data


async def refusal(allowed: Path, uri: str, **facts: Any) -> str:
    with pytest.raises(ItemBroken) as refused:
        await read(allowed, uri, **facts)
    return refused.value.code


@pytest.mark.parametrize(
    "place",
    [
        "below/a%20picture.jpg",
        "below/%61 picture.jpg",
        "below/../below/a picture.jpg",
        "./below//a picture.jpg",
        "good-link",
    ],
)
async def test_file_inside_an_allowed_folder_is_read(allowed: Path, place: str) -> None:
    for host in ("", "localhost"):
        assert await read(allowed, f"file://{host}{allowed}/{place}") == b"picture"


async def test_path_as_uri_is_read_whatever_its_characters(allowed: Path) -> None:
    odd = allowed / "50% #1 grün?.jpg"
    odd.write_bytes(b"odd")
    assert await read(allowed, odd.as_uri()) == b"odd"


@pytest.mark.parametrize(
    "place",
    [
        "/../secret",
        "/%2e%2e/secret",
        "/..%2fsecret",
        "/below/../../secret",
        "/link",
        "/folder-link/secret",
        "-not/secret",
        "/../missing",
    ],
)
async def test_file_outside_is_refused(allowed: Path, place: str) -> None:
    assert await refusal(allowed, f"file://{allowed}{place}") == "source_not_allowed"


async def test_nothing_is_allowed_by_default(allowed: Path) -> None:
    with pytest.raises(ItemBroken, match="none"):
        await SourceReader([], LIMIT).read(new_upload(source="/test", dataref=f"file://{allowed}/below"))


@pytest.mark.parametrize("place", ["missing.jpg", "missing/a.jpg", "below/../missing.jpg"])
async def test_a_file_that_does_not_exist_may_come_later(allowed: Path, place: str) -> None:
    with pytest.raises(NotYet) as failure:
        await read(allowed, f"file://{allowed}/{place}")
    assert failure.value.code == "source_missing"


@pytest.mark.parametrize("place", ["below", "", "nul%00byte", "x" * 300, "loop", "below/a%20picture.jpg/x"])
async def test_what_can_never_be_a_file_is_refused(allowed: Path, place: str) -> None:
    assert await refusal(allowed, f"file://{allowed}/{place}") == "unsupported_source"


@pytest.mark.parametrize(
    ("error", "kind", "code"),
    [
        (errno.EACCES, ItemBroken, "source_forbidden"),
        (errno.EIO, NotYet, "source_failed"),
        (errno.ESTALE, NotYet, "source_failed"),
        (errno.EMFILE, NotYet, "source_failed"),
    ],
)
async def test_what_the_system_reports_decides(
    allowed: Path, monkeypatch: pytest.MonkeyPatch, error: int, kind: type[ItemBroken | NotYet], code: str
) -> None:
    def failing(*_arguments: object, **_options: object) -> int:
        raise OSError(error, os.strerror(error))

    monkeypatch.setattr(os, "open", failing)
    with pytest.raises(kind) as failure:
        await read(allowed, f"file://{allowed}/good-link")
    assert failure.value.code == code


async def test_a_link_that_takes_the_place_of_a_checked_part_is_not_followed(
    allowed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "a picture.jpg").write_bytes(b"secret")
    resolve = Path.resolve

    def resolve_and_swap(path: Path, strict: bool = False) -> Path:
        resolved = resolve(path, strict)
        if path.name == "a picture.jpg" and not (allowed / "below").is_symlink():
            (allowed / "below").rename(tmp_path / "moved")
            (allowed / "below").symlink_to(tmp_path / "elsewhere")
        return resolved

    monkeypatch.setattr(Path, "resolve", resolve_and_swap)
    assert await refusal(allowed, f"file://{allowed}/below/a%20picture.jpg") == "unsupported_source"


async def test_no_descriptor_is_left_open(allowed: Path) -> None:
    before = len(list(Path("/dev/fd").iterdir()))
    for place in ("good-link", "below/a picture.jpg", "large.jpg", "below", "missing/x", "below/a%20picture.jpg/x"):
        try:
            await read(allowed, f"file://{allowed}/{place}")
        except (ItemBroken, NotYet):
            continue
    assert len(list(Path("/dev/fd").iterdir())) == before


@pytest.mark.parametrize(
    "uri",
    [
        "FILE:///etc/passwd",
        "ftp://example.org/a.jpg",
        "file://example.org/a.jpg",
        "/etc/passwd",
        "below/a picture.jpg",
        "",
        " ",
        "://",
        "file://[",
        "file://[x]/a",
        "//\u2100/x",
        "file\x00:///etc/passwd",
    ],
)
async def test_every_other_reference_is_unsupported(allowed: Path, uri: str) -> None:
    event = new_upload(source="/test").model_copy(update={"dataref": uri})
    with pytest.raises(ItemBroken) as refused:
        await SourceReader([allowed], LIMIT).read(event)
    assert refused.value.code == "unsupported_source"


async def test_file_above_the_limit_is_too_large(allowed: Path) -> None:
    assert await refusal(allowed, f"file://{allowed}/large.jpg") == "too_large"
    (allowed / "large.jpg").write_bytes(b"x" * LIMIT)
    assert len(await read(allowed, f"file://{allowed}/large.jpg")) == LIMIT


@pytest.mark.parametrize("outcome", [OSError(95, "not supported"), OSError(11, "not in memory"), 3])
async def test_a_file_that_is_not_in_memory_is_read_all_the_same(
    allowed: Path, monkeypatch: pytest.MonkeyPatch, outcome: OSError | int
) -> None:
    def preadv(*_arguments: object) -> int:
        if isinstance(outcome, OSError):
            raise outcome
        return outcome

    monkeypatch.setattr(os, "preadv", preadv)
    assert await read(allowed, f"file://{allowed}/good-link") == b"picture"
    assert await refusal(allowed, f"file://{allowed}/large.jpg") == "too_large"


async def test_inline_bytes_have_the_same_limit(allowed: Path) -> None:
    reader = SourceReader([allowed], LIMIT)
    assert (await reader.read(new_upload(b"x" * LIMIT, source="/test"))).data == b"x" * LIMIT
    with pytest.raises(ItemBroken) as refused:
        await reader.read(new_upload(b"x" * (LIMIT + 1), source="/test"))
    assert refused.value.code == "too_large"


async def test_bytes_must_have_the_announced_digest(allowed: Path) -> None:
    uri, digest = f"file://{allowed}/good-link", hashlib.sha256(b"picture").hexdigest()
    assert await read(allowed, uri, sha256=digest) == b"picture"
    assert await refusal(allowed, uri, sha256="0" * 64) == "sha256_mismatch"
    with pytest.raises(ItemBroken) as refused:
        await SourceReader([], LIMIT).read(new_upload(b"other", source="/test", sha256=digest))
    assert refused.value.code == "sha256_mismatch"


async def test_pipe_is_not_waited_for(allowed: Path) -> None:
    os.mkfifo(allowed / "pipe")
    writer = os.open(allowed / "pipe", os.O_RDWR)  # so that a reader that opens it does not hang in this test
    os.write(writer, b"x" * (LIMIT + 1))
    try:
        assert await refusal(allowed, f"file://{allowed}/pipe") == "unsupported_source"
    finally:
        os.close(writer)
