"""The FROC curve as an SVG: sensitivity over false positives per scan, which is on a logarithmic axis."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from imaging.bootstrap import estimates
from imaging.froc import Froc

_WIDTH, _HEIGHT, _LEFT, _TOP, _PLOT_WIDTH, _PLOT_HEIGHT = 760, 460, 64, 24, 470, 380
_LOWEST, _HIGHEST = 0.125, 8.0
_COLOURS = ("#1f6fb4", "#d1495b", "#3c8d5a", "#8a5fb0", "#c48a1a")
_STEPS = 96


def write_froc(path: Path, curves: Mapping[str, Froc]) -> None:
    """Draws the curves by name; the first one with its 95 % confidence band over scans."""
    rates = np.exp(np.linspace(math.log(_LOWEST), math.log(_HIGHEST), _STEPS)).tolist()
    parts = [*_axes()]
    for index, (name, froc) in enumerate(curves.items()):
        colour = _COLOURS[index % len(_COLOURS)]
        if index == 0 and froc.lesions:
            band = estimates(lambda weights, froc=froc: froc.sensitivity_at(rates, weights), froc.scans)  # type: ignore[misc]
            outline = [*zip(rates, (e.high for e in band), strict=True)]
            outline += reversed([*zip(rates, (e.low for e in band), strict=True)])
            parts.append(f'<polygon points="{_points(outline)}" fill="{colour}" fill-opacity="0.15"/>')
        if froc.lesions:
            line = [*zip(rates, froc.sensitivity_at(rates), strict=True)]
            parts.append(f'<polyline points="{_points(line)}" fill="none" stroke="{colour}" stroke-width="2"/>')
        y = _TOP + 20 + 22 * index
        x = _LEFT + _PLOT_WIDTH + 16
        parts.append(f'<line x1="{x}" y1="{y}" x2="{x + 22}" y2="{y}" stroke="{colour}" stroke-width="3"/>')
        parts.append(f'<text x="{x + 30}" y="{y + 4}">{name} (n={froc.lesions})</text>')
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" font-family="sans-serif" '
        f'font-size="13"><rect width="{_WIDTH}" height="{_HEIGHT}" fill="white"/>\n' + "\n".join(parts) + "\n</svg>\n",
        encoding="utf-8",
    )


def _x(rate: float) -> float:
    return _LEFT + _PLOT_WIDTH * math.log(rate / _LOWEST) / math.log(_HIGHEST / _LOWEST)


def _y(sensitivity: float) -> float:
    return _TOP + _PLOT_HEIGHT * (1.0 - sensitivity)


def _points(line: Sequence[tuple[float, float]]) -> str:
    return " ".join(f"{_x(rate):.1f},{_y(sensitivity):.1f}" for rate, sensitivity in line)


def _axes() -> list[str]:
    parts = []
    for tick in np.arange(0.0, 1.01, 0.1):
        y = _y(float(tick))
        parts.append(f'<line x1="{_LEFT}" y1="{y:.1f}" x2="{_LEFT + _PLOT_WIDTH}" y2="{y:.1f}" stroke="#ddd"/>')
        parts.append(f'<text x="{_LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{tick:.1f}</text>')
    rate = _LOWEST
    while rate <= _HIGHEST:
        x = _x(rate)
        parts.append(f'<line x1="{x:.1f}" y1="{_TOP}" x2="{x:.1f}" y2="{_TOP + _PLOT_HEIGHT}" stroke="#ddd"/>')
        parts.append(f'<text x="{x:.1f}" y="{_TOP + _PLOT_HEIGHT + 18}" text-anchor="middle">{rate:g}</text>')
        rate *= 2
    middle = _TOP + _PLOT_HEIGHT / 2
    parts.append(
        f'<text x="{_LEFT + _PLOT_WIDTH / 2}" y="{_HEIGHT - 12}" text-anchor="middle">false positives per scan</text>'
    )
    parts.append(
        f'<text x="16" y="{middle}" text-anchor="middle" transform="rotate(-90 16 {middle})">lesion sensitivity</text>'
    )
    return parts
