"""Two plain charts as SVG text: bars that are stacked, and lines. No drawing library is needed, and files are small."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from xml.sax.saxutils import escape

#: Distinct also for people who do not see all colours (Okabe and Ito).
COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#f0e442", "#999999", "#000000")
_FONT = "font-family='Helvetica, Arial, sans-serif'"
_ROW, _LEFT, _PLOT, _TOP = 44, 240, 620, 76
_HEIGHT = 260  # of lines
_LABELLED = 0.045  # of the axis: a narrower piece has no room for its number


def stacked_bars(title: str, unit: str, bars: Mapping[str, Mapping[str, float]]) -> str:
    """One horizontal bar for each entry of `bars`, its parts in their order; the same part has the same colour."""
    parts = list(dict.fromkeys(part for bar in bars.values() for part in bar))
    colours = {part: COLOURS[number % len(COLOURS)] for number, part in enumerate(parts)}
    top, step = _axis(max((sum(bar.values()) for bar in bars.values()), default=1.0))
    legend, legend_height = _legend(colours)
    base = _TOP + legend_height
    height = base + len(bars) * _ROW + 40
    drawn = []
    for row, (name, bar) in enumerate(bars.items()):
        y, x = base + row * _ROW, float(_LEFT)
        drawn.append(_text(_LEFT - 8, y + 20, name, "end"))
        for part, value in bar.items():
            width = value / top * _PLOT
            drawn.append(
                f"<rect x='{x:.1f}' y='{y + 4}' width='{width:.1f}' height='24' fill='{colours[part]}'>"
                f"<title>{escape(part)}: {value:.2f} {escape(unit)}</title></rect>"
            )
            if value / top >= _LABELLED:
                drawn.append(_text(x + width / 2, y + 20, f"{value:.2f}", "middle", "#fff"))
            x += width
        drawn.append(_text(x + 6, y + 20, f"{sum(bar.values()):.2f}"))
    marks = [step * number for number in range(round(top / step) + 1)]
    grid = [_vertical(_LEFT + mark / top * _PLOT, base, height - 34, f"{mark:g}") for mark in marks]
    return _page(_LEFT + _PLOT + 60, height, title, unit, [*grid, *legend, *drawn])


def lines(title: str, x_label: str, y_label: str, series: Mapping[str, Sequence[tuple[float, float]]]) -> str:
    """Points (x, y) of each series, joined; both axes begin at zero."""
    points = [point for one in series.values() for point in one]
    right, x_step = _axis(max((x for x, _ in points), default=1.0))
    top, y_step = _axis(max((y for _, y in points), default=1.0))
    colours = {name: COLOURS[number % len(COLOURS)] for number, name in enumerate(series)}
    legend, legend_height = _legend(colours)
    base = _TOP + legend_height

    def place(x: float, y: float) -> tuple[float, float]:
        return 60 + x / right * (_PLOT + 100), base + _HEIGHT * (1 - y / top)

    drawn = []
    for number in range(round(right / x_step) + 1):
        x, _ = place(x_step * number, 0)
        drawn.append(_vertical(x, base, base + _HEIGHT, f"{x_step * number:g}"))
    for number in range(round(top / y_step) + 1):
        _, y = place(0, y_step * number)
        drawn.append(f"<line x1='60' x2='{_PLOT + 160}' y1='{y:.1f}' y2='{y:.1f}' stroke='#ddd'/>")
        drawn.append(_text(54, y + 4, f"{y_step * number:g}", "end"))
    for name, one in series.items():
        placed = [place(*point) for point in one]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in placed)
        drawn.append(f"<polyline points='{path}' fill='none' stroke='{colours[name]}' stroke-width='2'/>")
        drawn += [f"<circle cx='{x:.1f}' cy='{y:.1f}' r='3.5' fill='{colours[name]}'/>" for x, y in placed]
    drawn.append(_text(60 + _PLOT / 2, base + _HEIGHT + 34, x_label, "middle"))
    return _page(_PLOT + 200, base + _HEIGHT + 48, title, y_label, [*legend, *drawn])


def _axis(largest: float) -> tuple[float, float]:
    """The end of an axis that holds `largest`, and the step of its marks."""
    largest = max(largest, 1e-9)
    magnitude = 10.0 ** math.floor(math.log10(largest))
    step = next(part * magnitude for part in (0.2, 0.5, 1.0, 2.0) if largest / (part * magnitude) <= 6)
    return step * math.ceil(largest / step - 1e-9), step


def _legend(colours: Mapping[str, str]) -> tuple[list[str], int]:
    drawn, x, y = [], 20, 58
    for name, colour in colours.items():
        width = 26 + 7 * len(name)
        if x + width > _LEFT + _PLOT:
            x, y = 20, y + 20
        drawn += [f"<rect x='{x}' y='{y}' width='12' height='12' fill='{colour}'/>", _text(x + 17, y + 10, name)]
        x += width + 12
    return drawn, y - 58


def _vertical(x: float, top: float, bottom: float, label: str) -> str:
    line = f"<line x1='{x:.1f}' x2='{x:.1f}' y1='{top}' y2='{bottom}' stroke='#ddd'/>"
    return line + _text(x, bottom + 15, label, "middle", "#555")


def _text(x: float, y: float, text: str, anchor: str = "start", fill: str = "#222", size: int = 12) -> str:
    return (
        f"<text x='{x:.1f}' y='{y:.1f}' text-anchor='{anchor}' fill='{fill}' font-size='{size}'>{escape(text)}</text>"
    )


def _page(width: float, height: float, title: str, unit: str, drawn: Sequence[str]) -> str:
    head = (
        f"<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {width:.0f} {height:.0f}' width='{width:.0f}' {_FONT}>"
    )
    background = "<rect width='100%' height='100%' fill='#fff'/>"
    heading = [_text(20, 26, title, size=16), _text(20, 44, unit, fill="#555")]
    return "\n".join([head, background, *heading, *drawn, "</svg>"]) + "\n"
