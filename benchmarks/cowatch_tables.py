"""Per-query metrics of related-video search to lines of a table, and a chart of two curves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from vidsim.common.files import atomic_path
from vidsim.data.cowatch_queries import E2T, T2E, RelatedQueries
from vidsim.engine.charts import line_chart
from vidsim.ensemble.bootstrap import percentile_interval
from vidsim.modeling.ranking_metrics import metrics_of_vectors

K = 10
NUM_RESAMPLES = 2000
_UNKNOWN = (np.nan, np.nan)
Float64 = npt.NDArray[np.float64]
Metrics = dict[str, Float64]
"""`t2e ndcg@10` and so on: one number a query."""
_HEAD = f"T2E NDCG@{K} | E2T NDCG@{K} | T2E MAP | E2T MAP | T2E recall@{K} | E2T recall@{K}"
_STYLE = (
    "text{font:12px sans-serif;fill:#5b6672}.title{font-size:13px;fill:#24292f}.grid{stroke:#dfe3e8}"
    ".curve{fill:none;stroke:#2563c9;stroke-width:1.8}.dot{fill:#2563c9}"
)


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line.

    Attributes:
        name: What was judged.
        means: Of each metric.
        differences: NDCG of each direction less that of the base, and its 95 % interval; none for the base.
        intervals: 95 % interval of each direction's NDCG.
    """

    name: str
    means: dict[str, float]
    intervals: dict[str, tuple[float, float]]
    differences: dict[str, tuple[float, float, float]]

    def line(self) -> str:
        """Of a Markdown table; metrics in percent."""
        words = []
        for direction in (T2E, E2T):
            low, high = self.intervals[direction]
            word = f"{100 * self.means[f'{direction} ndcg@{K}']:.2f} [{100 * low:.2f}, {100 * high:.2f}]"
            if direction in self.differences:
                mean, low, high = (100 * value for value in self.differences[direction])
                word += f", {mean:+.2f} [{low:+.2f}, {high:+.2f}]"
            words.append(word)
        for name in ("map", f"recall@{K}"):
            words += [f"{100 * self.means[f'{direction} {name}']:.2f}" for direction in (T2E, E2T)]
        return f"| {self.name} | " + " | ".join(words) + " |"


def query_metrics(
    queries: Mapping[str, RelatedQueries], query_vectors: npt.NDArray[np.float32], vectors: npt.NDArray[np.float32]
) -> Metrics:
    """Metrics of every query of both directions, from vectors of all videos."""
    return {
        f"{direction} {name}": values
        for direction, part in queries.items()
        for name, values in metrics_of_vectors(
            query_vectors[part.queries], vectors[part.candidates], part.rows, part.columns, K
        ).items()
    }


def row_of(name: str, found: Metrics | Sequence[Metrics], base: Metrics) -> Row:
    """Means over seeds and queries; intervals over queries.

    Args:
        name: What was judged.
        found: Metrics of the same queries, of one or of several seeds.
        base: What the differences are to.
    """
    of_seeds = [found] if isinstance(found, dict) else found
    means = {key: np.mean([one[key] for one in of_seeds], axis=0) for key in base}
    intervals, differences = {}, {}
    for direction in (T2E, E2T):
        values = means[f"{direction} ndcg@{K}"]
        gain = values - base[f"{direction} ndcg@{K}"]
        drawn = np.random.default_rng(0).integers(0, len(values), (NUM_RESAMPLES, len(values)))
        intervals[direction] = percentile_interval(values[drawn].mean(axis=1)) or _UNKNOWN
        if gain.any():
            differences[direction] = (float(gain.mean()), *(percentile_interval(gain[drawn].mean(axis=1)) or _UNKNOWN))
    overall = {key: float(values.mean()) for key, values in means.items()}
    return Row(name=name, means=overall, intervals=intervals, differences=differences)


def write_tables(path: Path, tables: Mapping[str, Sequence[str]]) -> None:
    """Write and print Markdown tables. NDCG comes with its interval and the difference to the untrained features."""
    lines = ["All figures in percent; [ ] = 95 % interval over queries; +/- = paired difference to untrained features."]
    for title, rows in tables.items():
        lines += ["", f"**{title}**", "", f"| | {_HEAD} |", "| --- |" + " ---: |" * 6, *rows]
    with atomic_path(path) as temporary:
        temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print("\n".join(lines))


def write_chart(path: Path, widths: Sequence[int], rows: Sequence[Row]) -> None:
    """Two charts side by side, NDCG of each direction over the width of the embedding, as an SVG file."""
    parts = []
    for number, direction in enumerate((T2E, E2T)):
        points = [(width, 100 * row.means[f"{direction} ndcg@{K}"]) for width, row in zip(widths, rows, strict=True)]
        title = f"{direction.upper()} NDCG@{K}, %"
        chart = line_chart(points, label=title, x_label="width of the embedding")
        place = f'<svg x="{380 * number}" y="24" width="360" height="210" '
        parts.append(f'<text class="title" x="{380 * number + 58}" y="18">{title}</text>')
        parts.append(chart.replace("<svg ", place, 1))
    head = '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 740 236" width="740" height="236">'
    background = '<rect width="100%" height="100%" fill="#fff"/>'
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as temporary:
        temporary.write_text(f"{head}<style>{_STYLE}</style>{background}{''.join(parts)}</svg>\n", encoding="utf-8")
