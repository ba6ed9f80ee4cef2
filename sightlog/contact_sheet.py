"""Search results as one HTML file that needs nothing else: small pictures in it, boxes drawn, every text escaped.

Filenames, tags and metadata are whatever somebody published. Nothing of them becomes markup, and the page forbids
scripts and loading from elsewhere on top of that.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator, Sequence
from datetime import datetime
from html import escape
from pathlib import Path
from urllib.parse import urlsplit

import orjson

from sightlog import hit_pictures
from sightlog.limits import as_name
from sightlog.search import GOOD, Hit, SearchReply

#: Hits on a sheet; the file has about 40 KB for each.
MAX_HITS = 1000
#: Pixels of a picture's longer edge.
_SIDE = 480

_HEAD = """\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<meta name="referrer" content="no-referrer">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
:root {{ color-scheme: light dark; font: 14px/1.45 system-ui, sans-serif; }}
body {{ margin: 1.5rem; }}
h1 {{ font-size: 1.2rem; overflow-wrap: anywhere; }}
.remark {{ font-weight: 600; }}
main {{ display: grid; grid-template-columns: repeat(auto-fill, minmax(15rem, 1fr)); gap: 1rem; }}
figure {{ margin: 0; border: 1px solid #8886; border-radius: 6px; overflow: hidden; }}
figure.weak {{ opacity: .6; }}
.frame {{ position: relative; background: #8882; max-height: 30rem; }}
.frame img, .frame svg {{ position: absolute; inset: 0; width: 100%; height: 100%; }}
rect {{ fill: none; stroke: #ff3b6b; stroke-width: 3; vector-effect: non-scaling-stroke; }}
figcaption {{ padding: .5rem .7rem; overflow-wrap: anywhere; }}
dl {{ display: grid; grid-template-columns: auto 1fr; gap: 0 .6rem; margin: .3rem 0 0; }}
dt {{ opacity: .7; }}
dd {{ margin: 0; }}
</style>
</head>
<body>
"""


def contact_sheet(replies: Sequence[SearchReply], title: str, folder: Path | None = None) -> str:
    """The page. `title`: what was asked; `folder`: where pictures are whose reference does not say so."""
    hits = [hit for reply in replies for hit in reply.hits]
    shown = hits[:MAX_HITS]
    readable = hit_pictures.can_read()
    parts = [_HEAD.format(title=_text(title)), f"<h1>{_text(title)}</h1>\n"]
    parts.extend(f'<p class="remark">{_text(remark)}</p>\n' for remark in _remarks(replies, len(hits), readable))
    parts.append("<main>\n")
    parts.extend(_figure(hit, folder if readable else None, readable) for hit in shown)
    parts.append("</main>\n</body>\n</html>\n")
    return "".join(parts)


def _remarks(replies: Sequence[SearchReply], hits: int, readable: bool) -> Iterator[str]:
    yield f"{hits} hits" + (f", the first {MAX_HITS} of them here" if hits > MAX_HITS else "")
    if any(reply.no_good_match for reply in replies):
        yield f"Nothing better than this: no hit reaches a relevance of {GOOD}."
    if any(reply.partial for reply in replies):
        yield "A part of the index did not answer in time: there may be better hits."
    if not readable:
        yield "Pictures need Pillow: pip install 'sightlog[scenes]'"


def _figure(hit: Hit, folder: Path | None, readable: bool) -> str:
    weak = ' class="weak"' if hit.relevance is not None and hit.relevance < GOOD else ""
    facts = "".join(f"<dt>{_text(name)}</dt><dd>{value}</dd>" for name, value in _facts(hit))
    return (
        f'<figure{weak}>\n<div class="frame" style="aspect-ratio: {int(hit.width)} / {int(hit.height)}">'
        f"{_image(hit, folder) if readable else ''}{_box(hit)}</div>\n"
        f"<figcaption><strong>{_text(hit.class_name or hit.image_id)}</strong><dl>{facts}</dl></figcaption>\n"
        "</figure>\n"
    )


def _image(hit: Hit, folder: Path | None) -> str:
    path = hit_pictures.path_of(hit, folder)
    found = None if path is None else hit_pictures.picture(path, hit, _SIDE)
    if found is None:
        return ""
    encoded = io.BytesIO()
    # Encoded anew: what the page holds is a picture, whatever the file was besides.
    found.save(encoded, "JPEG", quality=80)
    data = base64.standard_b64encode(encoded.getvalue()).decode("ascii")
    return f'<img alt="{_text(hit.image_id)}" src="data:image/jpeg;base64,{data}">'


def _box(hit: Hit) -> str:
    if hit.box is None:
        return ""
    x1, y1, x2, y2 = (float(edge) for edge in hit.box)
    size = f'viewBox="0 0 {int(hit.width)} {int(hit.height)}" preserveAspectRatio="none"'
    return (
        f'<svg {size}><rect x="{x1:.1f}" y="{y1:.1f}" width="{max(0.0, x2 - x1):.1f}"'
        f' height="{max(0.0, y2 - y1):.1f}"></rect></svg>'
    )


def _facts(hit: Hit) -> Iterator[tuple[str, str]]:
    """Name and markup of everything that is known about a hit."""
    numbers = ("relevance", hit.relevance), ("score", hit.score), ("cosine", hit.cosine), ("words", hit.lexical_score)
    yield from ((name, f"{value:.3f}") for name, value in numbers if value is not None)
    if hit.confidence is not None:
        yield "confidence", f"{hit.confidence:.2f}"
    yield "image", _text(hit.image_id)
    if hit.object_id is not None:
        yield "object", _text(hit.object_id)
    yield "source", _link(hit.source)
    yield "size", f"{int(hit.width)} x {int(hit.height)}"
    if hit.tags:
        yield "tags", _text(", ".join(hit.tags))
    for name, time in (("taken", hit.captured_at), ("uploaded", hit.uploaded_at)):
        if time is not None:
            yield name, _text(_time(time))
    if hit.metadata:
        yield "metadata", _text(orjson.dumps(hit.metadata, default=str).decode())


def _time(time: datetime) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S UTC")


def _link(source: str) -> str:
    """A link where the place can be looked at; never to `javascript:` and its like."""
    try:
        scheme = urlsplit(source).scheme
    except ValueError:
        scheme = ""
    if scheme not in ("http", "https", "file"):
        return _text(source)
    return f'<a href="{_text(source)}" rel="noreferrer noopener">{_text(source)}</a>'


def _text(text: str) -> str:
    return escape(as_name(text), quote=True)
