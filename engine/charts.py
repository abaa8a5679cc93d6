"""Small line charts as inline SVG, without any library."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

from vidsim.engine.metrics_file import format_number

_WIDTH, _HEIGHT = 360, 210
_LEFT, _RIGHT, _TOP, _BOTTOM = 58, 14, 12, 38
_MAX_POINTS = 1500


def line_chart(points: Sequence[tuple[int, float]], *, label: str, x_label: str = "step") -> str:
    """One curve with axes, as an `<svg>` element that follows the colours of the page.

    Args:
        points: (step, value) in order of steps; values that are not finite leave a gap.
        label: What is drawn, for screen readers and the tips of the points.
        x_label: Under the horizontal axis.
    """
    points = _thinned(points)
    finite = [(x, y) for x, y in points if math.isfinite(y)]
    if not finite:
        return f'<p class="empty">no finite value among {len(points)}</p>'
    y_ticks = ticks(min(y for _, y in finite), max(y for _, y in finite), 4)
    x_low, x_high = finite[0][0], max(finite[-1][0], finite[0][0] + 1)
    x_ticks = [tick for tick in ticks(x_low, x_high, 5) if x_low <= tick <= x_high and tick == int(tick)]
    y_low, y_high = y_ticks[0], y_ticks[-1]

    def x_of(x: float) -> float:
        return _LEFT + (x - x_low) / (x_high - x_low) * (_WIDTH - _LEFT - _RIGHT)

    def y_of(y: float) -> float:
        return _HEIGHT - _BOTTOM - (y - y_low) / (y_high - y_low) * (_HEIGHT - _TOP - _BOTTOM)

    parts = [f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(label)}">']
    for tick in y_ticks:
        y = y_of(tick)
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text class="tick" x="{_LEFT - 7}" y="{y + 4:.1f}" text-anchor="end">{_tick_label(tick)}</text>')
    for tick in x_ticks:
        parts.append(
            f'<text class="tick" x="{x_of(tick):.1f}" y="{_HEIGHT - _BOTTOM + 16}" text-anchor="middle">'
            f"{_tick_label(tick)}</text>"
        )
    parts.append(
        f'<text class="axis" x="{(_LEFT + _WIDTH - _RIGHT) / 2:.0f}" y="{_HEIGHT - 5}" text-anchor="middle">'
        f"{escape(x_label)}</text>"
    )
    for run in _runs(points):
        path = " ".join(f"{x_of(x):.1f},{y_of(y):.1f}" for x, y in run)
        parts.append(f'<polyline class="curve" points="{path}"/>')
    # A dot on each of few points, otherwise on the last alone; hovering tells its numbers.
    for x, y in finite if len(finite) <= 40 else finite[-1:]:
        tip = f"{escape(x_label)} {x:,}: {format_number(y)}"
        parts.append(f'<circle class="dot" cx="{x_of(x):.1f}" cy="{y_of(y):.1f}" r="2.6"><title>{tip}</title></circle>')
    parts.append("</svg>")
    return "".join(parts)


def ticks(low: float, high: float, count: int) -> list[float]:
    """Round numbers (1, 2 or 5 times a power of ten apart) that enclose [low, high]; at least two.

    Args:
        low: Smallest value.
        high: Largest value; may equal `low`.
        count: About so many steps between the ticks.
    """
    if high - low < 1e-9 * max(abs(high), abs(low)) or high == low:
        margin = abs(high) * 0.1 or 1.0
        low, high = low - margin, high + margin
    raw = (high - low) / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [float(f"{index * step:.12g}") for index in range(first, last + 1)]


def _tick_label(value: float) -> str:
    if value != 0 and (abs(value) < 1e-3 or abs(value) >= 1e5):
        mantissa, exponent = f"{value:.6e}".split("e")
        return f"{float(mantissa):g}e{int(exponent)}"
    return f"{value:,.6g}" if abs(value) < 1e3 else f"{value:,.0f}"


def _thinned(points: Sequence[tuple[int, float]]) -> list[tuple[int, float]]:
    """At most `_MAX_POINTS`, evenly chosen, always with the last."""
    stride = math.ceil(len(points) / _MAX_POINTS)
    if stride <= 1:
        return list(points)
    kept = list(points[::stride])
    return kept if kept[-1] == points[-1] else [*kept, points[-1]]


def _runs(points: Sequence[tuple[int, float]]) -> list[list[tuple[int, float]]]:
    """Stretches of finite points."""
    runs: list[list[tuple[int, float]]] = [[]]
    for point in points:
        if math.isfinite(point[1]):
            runs[-1].append(point)
        elif runs[-1]:
            runs.append([])
    return [run for run in runs if run]
