"""Results of ablations: a row a variant with mean and standard deviation over seeds, as Markdown, JSON and a plot."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Any

from vidsim.engine.charts import ticks

_LEFT_CHARACTER, _LEFT_MARGIN, _RIGHT, _PLOT, _ROW, _TOP, _BOTTOM = 7.6, 20, 20, 460, 26, 14, 46
_STYLE = """
text { font: 13px system-ui, -apple-system, "Segoe UI", sans-serif; fill: #1b1f24; }
.title { font-weight: 600; }
.soft { fill: #59636e; font-size: 12px; }
.grid { stroke: #dfe3e8; }
.baseline { stroke: #59636e; stroke-dasharray: 4 4; }
.sd { stroke: #2563c9; stroke-width: 2; }
.mean { stroke: #2563c9; stroke-width: 3; }
.seed { fill: #2563c9; fill-opacity: .45; }
"""


@dataclass(frozen=True, kw_only=True)
class Row:
    """A variant.

    Attributes:
        name: Of the variant.
        scores: Seed to Spearman on the test pairs, finished cells only.
        seconds: Mean seconds of a cell, the pretraining left out; None where none was timed.
        pretrain_seconds: Mean seconds of its pretraining, which other variants may share.
        against: Variant that it is compared with.
        differences: Seed to score minus the other's, where both are finished.
        errors: Seed to why its cell failed.
    """

    name: str
    scores: dict[int, float]
    seconds: float | None = None
    pretrain_seconds: float | None = None
    against: str | None = None
    differences: dict[int, float]
    errors: dict[int, str] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "name": self.name,
            "test_spearman": self.scores,
            **_summary(self.scores.values()),
            "against": self.against,
            "differences": self.differences,
            "difference": _summary(self.differences.values()),
            "seconds": self.seconds,
            "pretrain_seconds": self.pretrain_seconds,
            "errors": self.errors,
        }


def differences(scores: dict[int, float], others: dict[int, float]) -> dict[int, float]:
    """Seed by seed, for the seeds that both have."""
    return {seed: score - others[seed] for seed, score in scores.items() if seed in others}


def markdown(title: str, rows: Sequence[Row]) -> str:
    """A section with one table: mean ± sd, the seeds, the paired difference, seconds, and what failed."""
    lines = [
        f"## {title}",
        "",
        "| variant | test Spearman, mean ± sd | seeds | against | difference, mean ± sd | seed by seed | s a cell |",
        "|---|---|---|---|---|---|---:|",
    ]
    for row in rows:
        cells = [
            row.name,
            _mean_and_spread(list(row.scores.values()), "{:.4f}") or "not finished",
            ", ".join(f"{score:.4f}" for score in row.scores.values()),
            row.against or "",
            _mean_and_spread(list(row.differences.values()), "{:+.4f}"),
            ", ".join(f"{difference:+.4f}" for difference in row.differences.values()),
            " + ".join(f"{seconds:.0f}" for seconds in (row.pretrain_seconds, row.seconds) if seconds is not None),
        ]
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    lines += [
        "",
        "sd: over seeds, n - 1. Seconds: pretraining, where there is one (shared between equal ones), + the rest.",
    ]
    lines += [f"- **{row.name}**, seed {seed}, failed: {error}" for row in rows for seed, error in row.errors.items()]
    return "\n".join(lines) + "\n"


def dot_plot(title: str, rows: Sequence[Row], baseline: str, x_label: str = "test Spearman") -> str:
    """A dot a seed, a bar from mean - sd to mean + sd, the baseline's mean as a line, as a complete SVG file.

    Args:
        title: Above the plot.
        rows: Variants; those without a finished cell have an empty line.
        baseline: Name of the row whose mean is the line.
        x_label: Under the horizontal axis.
    """
    found = [score for row in rows for score in row.scores.values()]
    if not found:
        return ""
    spreads = [edge for row in rows for edge in _edges(row)]
    marks = ticks(min([*found, *spreads]), max([*found, *spreads]), 5)
    left = _LEFT_MARGIN + _LEFT_CHARACTER * max(len(row.name) for row in rows)
    width, height = left + _PLOT + _RIGHT, _TOP + 24 + _ROW * len(rows) + _BOTTOM
    top, bottom = _TOP + 24, height - _BOTTOM

    def x_of(score: float) -> float:
        return left + (score - marks[0]) / (marks[-1] - marks[0]) * _PLOT

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height}" width="{width:.0f}" role="img" '
        f'aria-label="{escape(title)}">',
        f'<style>{_STYLE}</style><rect width="100%" height="100%" fill="#fff"/>',
        f'<text x="{_LEFT_MARGIN}" y="{_TOP + 8}" class="title">{escape(title)}</text>',
    ]
    for mark in marks:
        x = x_of(mark)
        parts.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{top}" y2="{bottom}"/>')
        parts.append(f'<text class="soft" x="{x:.1f}" y="{bottom + 18}" text-anchor="middle">{mark:g}</text>')
    middle = left + _PLOT / 2
    parts.append(f'<text class="soft" x="{middle:.1f}" y="{bottom + 38}" text-anchor="middle">{escape(x_label)}</text>')
    for number, row in enumerate(rows):
        parts += _plot_row(row, top + _ROW * (number + 0.5), left, x_of)
        if row.name == baseline and row.scores:
            x = x_of(statistics.mean(row.scores.values()))
            parts.append(f'<line class="baseline" x1="{x:.1f}" x2="{x:.1f}" y1="{top}" y2="{bottom}"/>')
    return "\n".join([*parts, "</svg>"]) + "\n"


def _plot_row(row: Row, y: float, left: float, x_of: Any) -> list[str]:
    parts = [f'<text x="{left - 10:.1f}" y="{y + 4:.1f}" text-anchor="end">{escape(row.name)}</text>']
    edges = _edges(row)
    if edges:
        low, high = x_of(edges[0]), x_of(edges[1])
        parts.append(f'<line class="sd" x1="{low:.1f}" x2="{high:.1f}" y1="{y:.1f}" y2="{y:.1f}"/>')
    if row.scores:
        x = x_of(statistics.mean(row.scores.values()))
        parts.append(f'<line class="mean" x1="{x:.1f}" x2="{x:.1f}" y1="{y - 8:.1f}" y2="{y + 8:.1f}"/>')
    for seed, score in row.scores.items():
        tip = f"<title>{escape(row.name)}, seed {seed}: {score:.4f}</title>"
        parts.append(f'<circle class="seed" cx="{x_of(score):.1f}" cy="{y:.1f}" r="4.5">{tip}</circle>')
    return parts


def _edges(row: Row) -> list[float]:
    """Mean - sd and mean + sd, where there are two seeds at least."""
    summary = _summary(row.scores.values())
    if summary["sd"] is None:
        return []
    return [summary["mean"] - summary["sd"], summary["mean"] + summary["sd"]]


def _summary(values: Any) -> dict[str, Any]:
    found = list(values)
    return {
        "mean": statistics.mean(found) if found else None,
        "sd": statistics.stdev(found) if len(found) > 1 else None,
    }


def _mean_and_spread(values: Sequence[float], form: str) -> str:
    summary = _summary(values)
    if summary["mean"] is None:
        return ""
    mean = form.format(summary["mean"])
    return mean if summary["sd"] is None else f"{mean} ± {summary['sd']:.4f}"
