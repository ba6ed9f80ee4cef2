"""The timeline of a chaos run as SVG text: what came out each second, and from when to when something was broken."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from xml.sax.saxutils import escape

from load_tests.chaos_faults import Recovery
from load_tests.charts import COLOURS

_LEFT, _WIDTH, _TOP, _HEIGHT, _ROW = 130, 900, 60, 180, 18
_BIN_S = 2.0


def timeline(arrivals: Sequence[float], recoveries: Sequence[Recovery]) -> str:
    """`arrivals`: seconds since the beginning at which an event came out."""
    rows = list(dict.fromkeys(one.component for one in recoveries))
    end = max([*arrivals, *(one.at + one.recovery_s for one in recoveries), 1.0])
    bins = Counter(int(at / _BIN_S) for at in arrivals if at >= 0)
    top = max(bins.values(), default=1)
    base = _TOP + _HEIGHT
    height = base + 40 + len(rows) * _ROW + 20

    def x(seconds: float) -> float:
        return _LEFT + seconds / end * _WIDTH

    drawn = [_text(20, 26, "events that came out, and faults until all was well again", 16)]
    drawn.append(_text(20, 44, f"events/s, at most {top / _BIN_S:.0f}; SIGKILL dark, SIGTERM middle, SIGSTOP light"))
    for number, count in sorted(bins.items()):
        bar = count / top * _HEIGHT
        width = max(_BIN_S / end * _WIDTH - 0.5, 0.5)
        drawn.append(
            _box(x(number * _BIN_S), base - bar, width, bar, COLOURS[0], 1.0, f"{count / _BIN_S:.1f} events/s")
        )
    for mark in range(11):
        drawn.append(_text(x(end * mark / 10), base + 15, f"{end * mark / 10:.0f} s", anchor="middle"))
    for row, name in enumerate(rows):
        y = base + 30 + row * _ROW
        drawn.append(_text(_LEFT - 8, y + 11, name, anchor="end"))
        for one in (found for found in recoveries if found.component == name):
            told = f"{one.signal} at {one.at:.0f} s, well again after {one.recovery_s:.1f} s"
            shade = {"SIGKILL": 1.0, "SIGTERM": 0.7}.get(one.signal, 0.45)
            colour = COLOURS[row % len(COLOURS)] if one.recovered else "#d00"
            width = max(one.recovery_s / end * _WIDTH, 2)
            drawn.append(_box(x(one.at), _TOP, 0.7, _HEIGHT, "#999", 0.6, told))
            drawn.append(_box(x(one.at), y, width, _ROW - 5, colour, shade, told))
    head = f"<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {_LEFT + _WIDTH + 40} {height}'"
    page = "<rect width='100%' height='100%' fill='#fff'/>"
    return "\n".join([f"{head} font-family='Helvetica, Arial, sans-serif'>", page, *drawn, "</svg>"]) + "\n"


def _box(x: float, y: float, width: float, height: float, fill: str, opacity: float, title: str) -> str:
    place = f"x='{x:.1f}' y='{y:.1f}' width='{width:.1f}' height='{height:.1f}'"
    return f"<rect {place} fill='{fill}' fill-opacity='{opacity}'><title>{escape(title)}</title></rect>"


def _text(x: float, y: float, text: str, size: int = 11, anchor: str = "start") -> str:
    return f"<text x='{x:.1f}' y='{y:.1f}' font-size='{size}' fill='#222' text-anchor='{anchor}'>{escape(text)}</text>"
