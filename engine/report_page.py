"""`vidsim report RUN`: one self-contained HTML page about a run, curves included."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from vidsim.common.arguments import ArgumentParser
from vidsim.common.errors import UserError
from vidsim.common.files import atomic_path, read_json
from vidsim.engine.charts import line_chart
from vidsim.engine.metrics_file import CLOCK_FIELDS, format_duration, format_number, read_metrics
from vidsim.engine.run_folder import CHECKPOINTS, CONFIG, ENVIRONMENT, METRICS, REPORT

Series = dict[str, list[tuple[int, float]]]

_STYLE = """
:root { color-scheme: light dark; --paper: #fff; --card: #f6f7f9; --ink: #1b1f24; --soft: #59636e;
  --line: #dfe3e8; --curve: #2563c9; }
@media (prefers-color-scheme: dark) { :root { --paper: #14171b; --card: #1d2126; --ink: #e7eaee;
  --soft: #9aa5b1; --line: #333a42; --curve: #74a9ff; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1240px; padding: 28px 24px 60px; background: var(--paper);
  color: var(--ink); font: 15px/1.5 system-ui, -apple-system, "Segoe UI", sans-serif; }
h1 { font-size: 26px; margin: 0 0 2px; }
h2 { font-size: 19px; margin: 36px 0 12px; }
h3 { font-size: 15px; margin: 0; overflow-wrap: anywhere; }
.soft { color: var(--soft); margin: 0; }
.charts { display: grid; grid-template-columns: repeat(auto-fill, minmax(330px, 1fr)); gap: 16px; }
figure { margin: 0; padding: 14px 14px 8px; background: var(--card); border: 1px solid var(--line);
  border-radius: 8px; }
figcaption { display: flex; justify-content: space-between; align-items: baseline; gap: 12px; }
figcaption b { font-variant-numeric: tabular-nums; font-size: 17px; }
svg { display: block; width: 100%; height: auto; margin-top: 6px; }
.grid { stroke: var(--line); }
.tick, .axis { fill: var(--soft); font-size: 12px; }
.curve { fill: none; stroke: var(--curve); stroke-width: 1.8; stroke-linejoin: round; }
.dot { fill: var(--curve); }
table { border-collapse: collapse; width: 100%; }
th, td { text-align: left; padding: 5px 14px 5px 0; vertical-align: top; overflow-wrap: anywhere;
  border-bottom: 1px solid var(--line); }
th { color: var(--soft); font-weight: 600; white-space: nowrap; }
.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
.wide { overflow-x: auto; }
pre { background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: 14px;
  overflow-x: auto; font-size: 13px; line-height: 1.45; }
"""


def main(argv: list[str] | None = None) -> int:
    """Write the page of one or several runs."""
    parser = ArgumentParser(
        prog="vidsim report",
        description="Write one self-contained HTML page about a run: curves, numbers, settings, machine.",
        epilog="example: vidsim report runs/pretrain/base",
    )
    parser.add_argument("run", nargs="+", type=Path, help="run folder")
    parser.add_argument("--out", type=Path, help="file to write (default: RUN/report.html); one run only")
    arguments = parser.parse_args(argv)
    if arguments.out is not None and len(arguments.run) > 1:
        raise UserError("takes one run only", field="--out", fix="leave it out: each page goes into its run folder")
    for run in arguments.run:
        print(write_report(run, arguments.out))
    return 0


def write_report(run: Path, out: Path | None = None) -> Path:
    """Write the page of a run, finished or still going on.

    Args:
        run: Run folder.
        out: Where to; None: `report.html` in the folder.

    Returns:
        The file.

    Raises:
        UserError: This is not a run folder, or one of its files is damaged.
    """
    if not (run / METRICS).is_file():
        raise UserError(
            f"has no {METRICS}, so it is no run folder (or nothing was logged yet)",
            file=run,
            fix="name the folder that was given as --output_dir",
        )
    page = render(run)
    file = out if out is not None else run / REPORT
    with atomic_path(file) as temporary:
        temporary.write_text(page, encoding="utf-8")
    return file


def render(run: Path) -> str:
    """The page as HTML text; it loads nothing from anywhere."""
    lines = read_metrics(run / METRICS)
    environment = read_json(run / ENVIRONMENT) if (run / ENVIRONMENT).is_file() else {}
    config = (run / CONFIG).read_text(encoding="utf-8") if (run / CONFIG).is_file() else ""
    evaluation, training, optimisation, speed = series_by_section(lines)
    name = run.resolve().name
    last_step = max((line["step"] for line in lines), default=0)
    seconds = sum(line.get("seconds") or 0.0 for line in lines)
    facts = [f"{last_step:,} steps", f"{format_duration(seconds)} of training"]
    facts += [str(environment[key]) for key in ("started_at", "device") if environment.get(key)]
    body = [
        f'<h1>{escape(name)}</h1><p class="soft">{escape(" · ".join(facts))}</p>',
        _charts("Evaluation", evaluation),
        _charts("Training losses", training),
        _charts("Optimisation", optimisation),
        _charts("Speed", speed),
        _numbers({**evaluation, **training, **optimisation, **speed}),
        _checkpoints(run / CHECKPOINTS),
        _environment(environment),
        f"<h2>Configuration</h2><pre>{escape(config)}</pre>" if config else "",
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(name)} · vidsim</title><style>{_STYLE}</style></head>\n<body>\n"
        + "\n".join(part for part in body if part)
        + "\n</body></html>\n"
    )


def series_by_section(lines: Sequence[Mapping[str, Any]]) -> tuple[Series, Series, Series, Series]:
    """Sort the numbers of all lines: evaluation, training losses, optimisation, speed.

    A training line is one that has a `learning_rate`; null stands for a number that was not finite.
    """
    evaluation: Series = {}
    training: Series = {}
    optimisation: Series = {}
    speed: Series = {}
    for line in lines:
        for name, value in line.items():
            if name == "step" or not (value is None or isinstance(value, int | float)):
                continue
            if name in CLOCK_FIELDS:
                section = speed
            elif "learning_rate" not in line:
                section = evaluation
            elif name == "loss" or name.startswith("loss/"):
                section = training
            else:
                section = optimisation
            section.setdefault(name, []).append((line["step"], math.nan if value is None else float(value)))
    speed.pop("seconds", None)
    return evaluation, training, optimisation, speed


def _charts(title: str, series: Series) -> str:
    if not series:
        return ""
    figures = [
        f"<figure><figcaption><h3>{escape(name)}</h3><b>{format_number(points[-1][1])}</b></figcaption>"
        f"{line_chart(points, label=name)}</figure>"
        for name, points in series.items()
    ]
    return f'<h2>{escape(title)}</h2><div class="charts">{"".join(figures)}</div>'


def _numbers(series: Series) -> str:
    rows = []
    for name, points in series.items():
        finite = [(value, step) for step, value in points if math.isfinite(value)]
        low, high = (min(finite), max(finite)) if finite else ((math.nan, 0), (math.nan, 0))
        cells = [
            format_number(points[0][1]),
            format_number(points[-1][1]),
            *(f"{format_number(value)} (step {step:,})" for value, step in (low, high)),
        ]
        rows.append(f"<tr><td>{escape(name)}</td>" + "".join(f'<td class="number">{cell}</td>' for cell in cells))
    if not rows:
        return ""
    head = "<tr><th>metric</th>" + "".join(
        f'<th class="number">{title}</th>' for title in ("first", "last", "lowest", "highest")
    )
    return f'<h2>Numbers</h2><div class="wide"><table>{head}{"".join(rows)}</table></div>'


def _checkpoints(folder: Path) -> str:
    if not folder.is_dir():
        return ""
    targets = {name: os.readlink(folder / name) for name in ("last", "best") if (folder / name).is_symlink()}
    rows = []
    for path in sorted(folder.glob("step_*")):
        size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
        marks = ", ".join(name for name, target in targets.items() if target == path.name)
        cells = f'<td>{escape(path.name)}</td><td>{marks}</td><td class="number">{size / 1e6:,.1f} MB</td>'
        rows.append(f"<tr>{cells}</tr>")
    return f"<h2>Checkpoints</h2><table>{''.join(rows)}</table>" if rows else ""


def _environment(environment: Mapping[str, Any]) -> str:
    rows = []
    for name, value in environment.items():
        if name == "earlier_starts":
            text = ", ".join(str(start.get("started_at")) for start in value)
        elif isinstance(value, Mapping):
            text = ", ".join(f"{key} {item}" for key, item in value.items())
        else:
            text = str(value)
        if text and value is not None:
            rows.append(f"<tr><th>{escape(name.replace('_', ' '))}</th><td>{escape(text)}</td></tr>")
    return f"<h2>Environment</h2><table>{''.join(rows)}</table>" if rows else ""
