"""Several curves over the number of ratings in one chart, as an SVG file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

from vidsim.common.files import atomic_path
from vidsim.engine.charts import ticks

_COLOURS = ("#2563c9", "#c2410c", "#15803d", "#7e22ce", "#5b6672", "#b4860b", "#0e7490")
_WIDTH, _HEIGHT, _LEFT, _TOP, _BOTTOM, _LEGEND = 460, 300, 56, 34, 40, 250


def write_curves(path: Path, title: str, numbers: Sequence[int], curves: Mapping[str, Sequence[float]]) -> None:
    """Write the chart.

    Args:
        path: The SVG file.
        title: Above the chart.
        numbers: Ratings of a user, ascending; they stand evenly spaced.
        curves: Name and one value for each of `numbers`.
    """
    values = [value for curve in curves.values() for value in curve]
    levels = ticks(min(values), max(values), 5)
    step = (_WIDTH - _LEFT) / max(len(numbers) - 1, 1)

    def y_of(value: float) -> float:
        return _HEIGHT - _BOTTOM - (value - levels[0]) / (levels[-1] - levels[0]) * (_HEIGHT - _BOTTOM - _TOP)

    parts = [f'<text class="title" x="{_LEFT}" y="18">{escape(title)}</text>']
    for level in levels:
        y = y_of(level)
        parts.append(f'<line stroke="#dfe3e8" x1="{_LEFT}" x2="{_WIDTH}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{_LEFT - 7}" y="{y + 4:.1f}" text-anchor="end">{level:g}</text>')
    for place, number in enumerate(numbers):
        x = _LEFT + place * step
        parts.append(f'<text x="{x:.1f}" y="{_HEIGHT - _BOTTOM + 17}" text-anchor="middle">{number}</text>')
    middle = (_LEFT + _WIDTH) / 2
    parts.append(f'<text x="{middle:.0f}" y="{_HEIGHT - 5}" text-anchor="middle">ratings of a user</text>')
    for place, (name, curve) in enumerate(curves.items()):
        colour = _COLOURS[place % len(_COLOURS)]
        points = [(_LEFT + number * step, y_of(value)) for number, value in enumerate(curve)]
        line = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        parts.append(f'<polyline fill="none" stroke="{colour}" stroke-width="1.8" points="{line}"/>')
        parts += [f'<circle fill="{colour}" cx="{x:.1f}" cy="{y:.1f}" r="2.6"/>' for x, y in points]
        y = _TOP + 12 + 20 * place
        parts.append(f'<rect fill="{colour}" x="{_WIDTH + 16}" y="{y - 6}" width="14" height="3"/>')
        parts.append(f'<text x="{_WIDTH + 36}" y="{y}">{escape(name)}</text>')
    size = f'viewBox="0 0 {_WIDTH + _LEGEND} {_HEIGHT}" width="{_WIDTH + _LEGEND}" height="{_HEIGHT}"'
    style = "<style>text{font:12px sans-serif;fill:#5b6672}.title{font-size:14px;fill:#24292f}</style>"
    with atomic_path(path) as temporary:
        svg = f'<svg xmlns="http://www.w3.org/2000/svg" {size}>{style}{"".join(parts)}</svg>\n'
        temporary.write_text(svg, encoding="utf-8")
