"""Events that a hostile or broken producer may send: mutants of good ones, each format of its own, from a seed."""

from __future__ import annotations

import base64
import io
import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import orjson
from PIL import Image

Headers = list[tuple[str, bytes]]
Rng = np.random.Generator

#: What a mutant becomes: codes of dead letters, `indexed`, or, without any of them, whatever has a name.
INDEXED = "indexed"
FORMATS = ("jpeg", "png", "webp", "binary", "structured", "claim")
_STRUCTURED: Headers = [("content-type", b"application/cloudevents+json")]
_PILLOW = {"jpeg": "JPEG", "png": "PNG", "webp": "WEBP"}


@dataclass(frozen=True)
class Mutant:
    """A record for the topic `images`, and which outcomes are right (any, if none is named)."""

    name: str
    key: bytes | None
    value: bytes | None
    headers: Headers = field(default_factory=list)
    expected: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Corpus:
    """Mutants of every format, mixed, with a good event after each 50; the same seed gives the same ones."""

    seed: int
    per_format: int
    folder: Path
    """An allowed folder, for the files of claim checks."""
    tag: str

    def __iter__(self) -> Iterator[Mutant]:
        self.folder.mkdir(parents=True, exist_ok=True)
        for number in range(self.per_format):
            for order, name in enumerate(FORMATS):
                rng = np.random.default_rng([self.seed, order, number])
                yield _MAKERS[name](self, rng, number, f"{self.tag}-{name}-{number}")
            if number % 8 == 7:
                yield self.event(f"{self.tag}-good-{number}", picture("jpeg", number), expected=(INDEXED,))

    def event(self, key: str, value: bytes | None, *more: tuple[str, bytes], expected: tuple[str, ...] = ()) -> Mutant:
        """A binary event; `more` headers come last."""
        return Mutant(key, key.encode(), value, [*self.headers(key), *more], frozenset(expected))

    def headers(self, key: str) -> Headers:
        return [
            ("ce_specversion", b"1.0"),
            ("ce_type", b"image.uploaded.v1"),
            ("ce_id", key.encode()),
            ("ce_source", b"/hostile"),
            ("ce_tags", self.tag.encode()),
        ]


def picture(name: str, number: int = 0, **options: object) -> bytes:
    """A good small picture; each number has other pixels."""
    rng = np.random.default_rng(number)
    pixels = rng.integers(0, 256, (6, 8, 3), np.uint8)
    image = Image.fromarray(pixels).resize((96, 72), Image.Resampling.BICUBIC)
    buffer = io.BytesIO()
    image.save(buffer, _PILLOW[name], **options)
    return buffer.getvalue()


def flipped(rng: Rng, data: bytes, most: int = 8) -> bytes:
    """With 1 to `most` bits flipped anywhere."""
    found = bytearray(data)
    for place in rng.integers(0, len(found), rng.integers(1, most + 1)):
        found[place] ^= 1 << int(rng.integers(8))
    return bytes(found)


def _cut(rng: Rng, data: bytes) -> bytes:
    return data[: int(rng.integers(1, len(data)))]


def _spliced(rng: Rng, data: bytes) -> bytes:
    """The head of one file on the tail of another, of any format."""
    other = picture(str(rng.choice(list(_PILLOW))), int(rng.integers(1000)))
    head, tail = int(rng.integers(1, min(64, len(data)))), int(rng.integers(0, len(other)))
    return data[:head] + other[tail:]


def _repeated(rng: Rng, data: bytes) -> bytes:
    start, end = sorted(int(place) for place in rng.integers(0, len(data), 2))
    return data[:end] + data[start:end] * int(rng.integers(1, 20)) + data[end:]


def _noise(rng: Rng, data: bytes) -> bytes:
    start = int(rng.integers(2, len(data)))
    return data[:start] + rng.bytes(int(rng.integers(1, 2000))) + data[start:]


_DAMAGE: tuple[Callable[[Rng, bytes], bytes], ...] = (flipped, _cut, _spliced, _repeated, _noise)


def _image(kind: str) -> Callable[[Corpus, Rng, int, str], Mutant]:
    specials = {"jpeg": _jpeg_specials, "png": _png_specials, "webp": _webp_specials}[kind]()

    def make(corpus: Corpus, rng: Rng, number: int, key: str) -> Mutant:
        if number % 8 == 0:
            data, expected = specials[number // 8 % len(specials)]
            return corpus.event(key, data, expected=expected)
        whole = picture(kind, number)
        damage = _DAMAGE[number % len(_DAMAGE)]
        return corpus.event(key, damage(rng, whole))

    return make


Special = tuple[bytes, tuple[str, ...]]


def _jpeg_specials() -> list[Special]:
    plain, progressive = picture("jpeg"), picture("jpeg", progressive=True)
    last, end = progressive.rindex(b"\xff\xda"), progressive.rindex(b"\xff\xd9")
    frame = plain.index(b"\xff\xc0")
    huge = bytearray(plain)
    huge[frame + 5 : frame + 9] = struct.pack(">HH", 60_000, 60_000)
    nothing = bytearray(plain)
    nothing[frame + 5 : frame + 9] = bytes(4)
    exif = b"Exif\0\0MM\0*\0\0\0\x08\xff\xff" + b"\x01\x12\0\3\0\0\0\1\0\6\0\0" * 4000
    return [
        (b"", ("empty",)),
        (bytes(huge), ("too_many_pixels",)),
        (bytes(nothing), ("undecodable",)),
        (progressive[:end] + progressive[last:end] * 1000 + progressive[end:], ("too_complex",)),
        (plain[:2] + b"\xff\xfe\0\2" * 100_000 + plain[2:], ("too_complex",)),
        (plain[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + plain[2:], ("indexed",)),
        (plain[:2] + (b"\xff\xe2\xff\xffICC_PROFILE\0\1\1" + bytes(65_519)) * 10 + plain[2:], ("indexed",)),
        (b"\xff\xd8\xff", ("undecodable",)),
        (b"GIF89a" + plain, ("unsupported_format",)),
        (b"<svg xmlns='http://www.w3.org/2000/svg'><image href='file:///etc/passwd'/></svg>", ("unsupported_format",)),
    ]


def png_chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def _png_specials() -> list[Special]:
    plain = picture("png")
    head, rest = plain[:33], plain[33:]
    zeros = zlib.compress(bytes(20_000_000))

    def sized(width: int, height: int, rows: bytes) -> bytes:
        header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
        return plain[:8] + png_chunk(b"IHDR", header) + png_chunk(b"IDAT", rows) + png_chunk(b"IEND", b"")

    return [
        (sized(50_000, 50_000, zeros), ("too_many_pixels",)),
        (sized(2**31 - 1, 2**31 - 1, zeros), ("too_many_pixels", "undecodable")),
        (sized(0, 10, zeros), ("undecodable",)),
        (sized(8, 8, zeros), ("indexed", "undecodable")),
        (head + png_chunk(b"zTXt", b"k\0\0" + zeros) + rest, ("undecodable",)),
        (head + png_chunk(b"iCCP", b"k\0\0" + zeros) + rest, ("undecodable",)),
        (head + png_chunk(b"prVt", b"") * 60_000 + rest, ("too_complex",)),
        (head + png_chunk(b"eXIf", b"MM\0*" + b"\xff" * 500_000) + rest, ("indexed",)),
        (head + png_chunk(b"acTL", struct.pack(">II", 2**31 - 1, 0)) + rest, ()),
        (plain[:8], ("undecodable",)),
    ]


def _webp_specials() -> list[Special]:
    frames = [Image.new("RGB", (96, 72), (number, 0, 0)) for number in range(30)]
    animation = picture("webp", save_all=True, append_images=frames)
    huge = bytearray(animation)
    huge[24:30] = (16_383).to_bytes(3, "little") * 2
    long = bytearray(picture("webp"))
    long[4:8] = b"\xff\xff\xff\xff"
    return [
        (animation, ("indexed",)),
        (bytes(huge), ("too_many_pixels",)),
        (bytes(long), ()),
        (b"RIFF\0\0\0\0WEBP", ("undecodable",)),
        (picture("webp", exif=b"MM\0*\0\0\0\x08\xff\xff" + b"\xff" * 300_000), ("indexed",)),
        (b"BM" + bytes(100), ("unsupported_format",)),
        (b"II*\0" + bytes(100), ("unsupported_format",)),
    ]


def _deep(levels: int) -> bytes:
    return b'{"a":' * levels + b"1" + b"}" * levels


#: Header, content, and what becomes of a good event that has it besides.
_BAD_HEADERS: tuple[tuple[str, bytes, tuple[str, ...]], ...] = (
    ("ce_specversion", b"0.3", ("bad_event",)),
    ("ce_type", b"image.painted.v1", ("unsupported_type",)),
    ("ce_type", b"\xff\xfe", ("bad_event",)),
    ("ce_type", b"x" * 100_000, ("unsupported_type",)),
    ("ce_id", b"", ("bad_event",)),
    ("ce_id", b"x" * 513, ("bad_event",)),
    ("ce_id", b"a\0b", ("bad_event",)),
    ("ce_source", b"\x1b[2J", ("bad_event",)),
    ("ce_time", b"yesterday", ("bad_event",)),
    ("ce_time", b"9999-12-31T23:59:59-14:00", ("bad_event",)),
    ("ce_time", b"1" * 400, ("bad_event",)),
    ("ce_capturedat", b"0000-00-00", ("bad_event",)),
    ("ce_sha256", b"0" * 64, ("sha256_mismatch",)),
    ("ce_sha256", b"zz", ("bad_event",)),
    ("ce_tenant", b"t" * 257, ("bad_event",)),
    ("ce_filename", b"../../etc/passwd\0.jpg", ("bad_event",)),
    ("ce_filename", "\u202egpj.exe".encode(), ("indexed",)),
    ("ce_tags", b",".join(b"t%d" % number for number in range(300)), ("bad_event",)),
    ("ce_tags", b"\x00,\x01", ("bad_event",)),
    ("ce_dataref", b"file:///etc/passwd", ("bad_event",)),
    ("ce_metadata", b"{", ("bad_event",)),
    ("ce_metadata", b"[]", ("bad_event",)),
    ("ce_metadata", b"null", ("bad_event",)),
    ("ce_metadata", _deep(17), ("bad_event",)),
    ("ce_metadata", _deep(20_000), ("bad_event",)),
    ("ce_metadata", b'{"":1}', ("bad_event",)),
    ("ce_metadata", b'{".":1}', ("bad_event",)),
    ("ce_metadata", b'{"a..b":1}', ("bad_event",)),
    ("ce_metadata", b'{"a.b":1,"a":{"b":2}}', ("indexed",)),
    ("ce_metadata", b'{"a\\u0000":1}', ("bad_event",)),
    ("ce_metadata", b'{"a":"\\ud800"}', ("bad_event",)),
    ("ce_metadata", b'{"a":NaN}', ("bad_event",)),
    ("ce_metadata", b'{"a":1e999}', ()),
    ("ce_metadata", b'{"a":' + b"9" * 400 + b"}", ()),
    ("ce_metadata", b'{"a":"' + b"x" * 40_000 + b'"}', ("bad_event",)),
    ("ce_metadata", orjson.dumps({"a": {str(number): number for number in range(2000)}}), ("bad_event",)),
    ("ce_metadata", orjson.dumps({"k" * 600: 1}), ("bad_event",)),
    ("ce_metadata", orjson.dumps({"_id": 1, "_source": {"_routing": 2}, "$ne": {"script": "ctx"}}), ("indexed",)),
    ("x" * 1000, b"y", ("indexed",)),
    ("huge", b"y" * 300_000, ("bad_event",)),
    ("ce_data_base64", b"AAAA", ("indexed",)),
    ("content-type", b"application/cloudevents+json", ("bad_json",)),
    ("content-type", b"\xff", ("bad_event",)),
    ("sightlog_history", b"{}", ("indexed",)),
    ("sightlog_history", b'{"attempts":-1,"origin":{"topic":"images"}}', ("indexed",)),
    ("sightlog_history", _deep(5000), ("indexed",)),
)
#: They name no image.
_BAD_KEYS = (b"\xff\xfe", b"k" * 501, b"\0", b"a\x1b[2J", "\x85".encode())


def _binary(corpus: Corpus, rng: Rng, number: int, key: str) -> Mutant:
    value = picture("jpeg", number)
    turn, which = number % 4, number // 4
    if turn == 3:
        headers = [(name, flipped(rng, content, 3)) for name, content in corpus.headers(key)]
        return Mutant(key, key.encode(), value, headers)
    if turn == 2:
        if which % 3 == 0:
            bad = _BAD_KEYS[which // 3 % len(_BAD_KEYS)]
            return Mutant(key, bad, value, corpus.headers(key), frozenset({"bad_image_id"}))
        if which % 3 == 1:
            left = int(rng.integers(5))
            headers = [header for place, header in enumerate(corpus.headers(key)) if place != left]
            return Mutant(key, key.encode(), value, headers)
        return corpus.event(key, value, *[("h", b"")] * 300, expected=("bad_event",))
    name, content, expected = _BAD_HEADERS[(which * 2 + turn) % len(_BAD_HEADERS)]
    return corpus.event(key, value, (name, content), expected=expected)


#: What may stand for each attribute of a structured event.
_WRONG: tuple[object, ...] = (
    None, True, -1, 2**63, 1.5, "", "x" * 5000, "\0", "\u202e", [], [[]], ["a", 1], {}, {"a": {"b": []}}, [None] * 300,
    "2026-13-45", "file:///etc/passwd", "AAAA", "====", "\U0001f600" * 300,
)  # fmt: skip
_ATTRIBUTES = (
    "specversion", "type", "id", "source", "time", "subject", "datacontenttype", "dataref", "sha256", "tenant",
    "filename", "tags", "capturedat", "metadata", "data_base64",
)  # fmt: skip
_BAD_JSON: tuple[tuple[bytes, tuple[str, ...]], ...] = (
    (b"", ("empty",)),
    (b"null", ("not_cloudevent",)),
    (b"[]", ("not_cloudevent",)),
    (b'"specversion"', ("not_cloudevent",)),
    (b"1" * 5000, ("not_cloudevent", "bad_json")),
    (b"\xef\xbb\xbf{}", ("bad_json",)),
    (b"\xff\xfe{\0}\0", ("bad_json",)),
    (b"NaN", ("bad_json",)),
    (b"[" * 200_000, ("bad_json",)),
    (_deep(1000), ("bad_json", "not_cloudevent")),
    (b"[" + b"[]," * 200_000 + b"[]]", ("bad_json",)),
    (b'{"specversion":"1.0","specversion":"2.0"}', ("unsupported_type", "bad_event")),
    (b'{"specversion":"1.0","type":{"a":1}}', ("unsupported_type",)),
    (b'{"specversion":"1.0","type":"' + b"x" * 500_000 + b'"}', ("unsupported_type",)),
    (b'{"specversion":"\\ud800"}', ("bad_json",)),
)


def _structured(corpus: Corpus, rng: Rng, number: int, key: str) -> Mutant:
    body: dict[str, object] = {
        "specversion": "1.0",
        "type": "image.uploaded.v1",
        "id": key,
        "source": "/hostile",
        "tags": [corpus.tag],
        "data_base64": base64.b64encode(picture("jpeg", number)).decode(),
    }
    turn, which = number % 4, number // 4
    if turn == 0:
        value, expected = _BAD_JSON[which % len(_BAD_JSON)]
        return Mutant(key, key.encode(), value, _STRUCTURED, frozenset(expected))
    if turn == 1:
        body[_ATTRIBUTES[which % len(_ATTRIBUTES)]] = _WRONG[which % len(_WRONG)]
        return Mutant(key, key.encode(), orjson.dumps(body), _STRUCTURED)
    whole = orjson.dumps(body)
    return Mutant(key, key.encode(), _DAMAGE[number % len(_DAMAGE)](rng, whole), _STRUCTURED)


_BROKEN_SOURCE = ("unsupported_source", "source_not_allowed")
_BAD_REFERENCES = (
    "file:///etc/passwd", "file:///proc/self/mem", "file:///dev/zero", "file://example.org/a", "file:relative", "file:",
    "http://169.254.169.254/latest/meta-data/", "http://127.0.0.1:9200/_search", "https://[::1]/", "https://localhost/",
    "http://0x7f.1/", "https://user:secret@example.org/a", "https://example.org\\@127.0.0.1/", "https://[/", "https://",
    "gopher://127.0.0.1:25/", "ftp://example.org/a", "data:image/png;base64,AAAA", "javascript:1", "s3://", "s3://bucket",
    "s3://bucket/key", "gs://bucket/../key", "az://c/k", "S3://bucket/key", "//example.org/a", "\u2100://x", " ",
    "x" * 4000,
)  # fmt: skip


def _claim(corpus: Corpus, rng: Rng, number: int, key: str) -> Mutant:
    turn, which = number % 4, number // 4
    folder = corpus.folder.as_uri()
    if turn == 0:
        uri = _BAD_REFERENCES[which % len(_BAD_REFERENCES)]
        return corpus.event(key, None, ("ce_dataref", uri.encode()), expected=(*_BROKEN_SOURCE, "bad_event"))
    if turn == 1:
        places = ("", "/", "/..", "/../../etc/passwd", "/%2e%2e/x", "/%00", "/" + "a" * 300, "/a%0ab/..")
        uri = folder + places[which % len(places)]
        return corpus.event(key, None, ("ce_dataref", uri.encode()), expected=(*_BROKEN_SOURCE, "source_missing"))
    kind = str(rng.choice(list(_PILLOW)))
    path = corpus.folder / f"{key}.{kind}"
    path.write_bytes(_DAMAGE[which % len(_DAMAGE)](rng, picture(kind, number)))
    if turn == 2:
        return corpus.event(key, None, ("ce_dataref", path.as_uri().encode()))
    more = (("ce_dataref", path.as_uri().encode()), ("ce_sha256", b"0" * 64))
    return corpus.event(key, None, *more, expected=("sha256_mismatch",))


_MAKERS: dict[str, Callable[[Corpus, Rng, int, str], Mutant]] = {
    **{kind: _image(kind) for kind in _PILLOW},
    "binary": _binary,
    "structured": _structured,
    "claim": _claim,
}
