"""The pages' pictures as SVG: bars for figures side by side, lines for growth."""

from __future__ import annotations

import math
from collections.abc import Sequence
from xml.sax.saxutils import escape

from benchmarks.page import Figure, Growth, Row

_WIDTH, _NAME_WIDTH, _BAR_WIDTH, _BAR, _HEAD = 860, 270, 440, 20, 30
_OURS, _OTHERS, _FLOOR = "#1f6fb4", "#b9bec5", "#d1495b"
_COLOURS = ("#1f6fb4", "#d1495b", "#3c8d5a", "#8a5fb0", "#c48a1a", "#555555")
_PLOT_WIDTH, _PLOT_HEIGHT, _LEFT, _TOP = 420, 260, 70, 20


def bars(rows: Sequence[Row]) -> str:
    """Every row as a group of bars, ours first and coloured, the floor as a line across the group."""
    parts, top = [], 8
    for row in rows:
        figures = [row.ours, *row.others]
        most = max(figure.median for figure in figures)
        if row.floor is not None:
            most = max(most, row.floor.value)
        better = "more" if row.higher_is_better else "less"
        parts.append(_text(8, top + 18, f"{row.what} ({row.unit}, {better} is better)", weight="bold"))
        top += _HEAD
        begin = top
        for figure in figures:
            parts.append(_bar(figure, top, most, _OURS if figure is row.ours else _OTHERS))
            top += _BAR
        if row.floor is not None:
            x = _NAME_WIDTH + _BAR_WIDTH * row.floor.value / most
            parts.append(
                f'<line x1="{x:.1f}" y1="{begin - 4}" x2="{x:.1f}" y2="{top}" stroke="{_FLOOR}" stroke-width="2"/>'
            )
            parts.append(_text(x, begin - 6, f"floor {number(row.floor.value)}", anchor="middle", fill=_FLOOR))
        top += 12
    return _svg(_WIDTH, top, parts)


def lines(growths: Sequence[Growth]) -> str:
    """Cost over size, both logarithmic: a line of slope 1 is linear. Every growth relative to its first point."""
    xs = [size / growth.points[0][0] for growth in growths for size, _ in growth.points]
    ys = [cost / growth.points[0][1] for growth in growths for _, cost in growth.points]
    right, top, bottom = max(xs), max(*ys, max(xs)), min(ys)

    def place(x: float, y: float) -> tuple[float, float]:
        return (
            _LEFT + _PLOT_WIDTH * math.log(x) / math.log(right),
            _TOP + _PLOT_HEIGHT * (1 - math.log(y / bottom) / math.log(top / bottom)),
        )

    parts = [f'<rect x="{_LEFT}" y="{_TOP}" width="{_PLOT_WIDTH}" height="{_PLOT_HEIGHT}" fill="none" stroke="#ccc"/>']
    (x1, y1), (x2, y2) = place(1, 1), place(right, right)
    parts.append(
        f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="#999" stroke-dasharray="4 4"/>'
    )
    parts.append(_text(x2 - 4, y2 + 14, "linear", anchor="end", fill="#777"))
    for index, growth in enumerate(growths):
        colour = _COLOURS[index % len(_COLOURS)]
        first_size, first_cost = growth.points[0]
        where = [place(size / first_size, cost / first_cost) for size, cost in growth.points]
        joined = " ".join(f"{x:.1f},{y:.1f}" for x, y in where)
        parts.append(f'<polyline points="{joined}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>' for x, y in where]
        parts.append(_text(_LEFT + _PLOT_WIDTH + 14, _TOP + 14 + 20 * index, growth.what, fill=colour))
    parts.append(_text(_LEFT, _TOP + _PLOT_HEIGHT + 18, "1 x the smallest size"))
    parts.append(_text(_LEFT + _PLOT_WIDTH, _TOP + _PLOT_HEIGHT + 18, f"{number(right)} x", anchor="end"))
    parts.append(_text(_LEFT - 8, _TOP + 10, f"{number(top)} x", anchor="end"))
    parts.append(_text(_LEFT - 8, place(1, 1)[1] + 4, "1 x", anchor="end"))
    height = max(_TOP + _PLOT_HEIGHT + 32, _TOP + 24 + 20 * len(growths))
    return _svg(_WIDTH, height, parts)


def number(value: float) -> str:
    """Three digits that count: 1343, 12.4, 0.0123."""
    return f"{value:,.0f}".replace(",", " ") if abs(value) >= 100 else f"{value:.3g}"


def _bar(figure: Figure, top: float, most: float, colour: str) -> str:
    width = max(_BAR_WIDTH * figure.median / most, 1.0)
    return (
        _text(_NAME_WIDTH - 8, top + 14, figure.name, anchor="end")
        + f'<rect x="{_NAME_WIDTH}" y="{top + 2}" width="{width:.1f}" height="{_BAR - 4}" fill="{colour}"/>'
        + _text(_NAME_WIDTH + width + 6, top + 14, number(figure.median))
    )


def _text(x: float, y: float, text: str, *, anchor: str = "start", fill: str = "#222", weight: str = "normal") -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{fill}" font-weight="{weight}">'
        f"{escape(text)}</text>"
    )


def _svg(width: float, height: float, parts: Sequence[str]) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height:.0f}" font-family="sans-serif" '
        f'font-size="13"><rect width="{width}" height="{height:.0f}" fill="white"/>\n' + "\n".join(parts) + "\n</svg>\n"
    )
