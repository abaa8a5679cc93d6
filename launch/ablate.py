"""`vidsim ablate LIST.yaml --out DIR`: variants by seeds, to mean ± sd of Spearman on test pairs, seed by seed.

A cell is pretrain → finetune → embed → score. Started again, it computes what is missing: finished cells are kept as
long as their settings and data are the same, a cell that was cut off goes on.
"""

from __future__ import annotations

import difflib
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vidsim.common.arguments import ArgumentParser
from vidsim.common.entry import EXIT_USER_ERROR, run_entry
from vidsim.common.errors import UserError
from vidsim.common.files import atomic_path, read_json, write_json
from vidsim.engine.metrics_file import format_duration
from vidsim.launch.ablation_cells import Cell, Job, plan_cells, run_cell, run_pretraining
from vidsim.launch.ablation_data import make_data
from vidsim.launch.ablation_list import Ablation, read_ablation
from vidsim.launch.ablation_table import Row, differences, dot_plot, markdown


def main(argv: list[str] | None = None) -> int:
    """Entry point of `vidsim ablate`."""
    options = _parser().parse_args(argv)
    if options.seeds < 1:
        raise UserError(f"{options.seeds} is below 1", field="--seeds")
    out: Path = options.out
    ablations = [read_ablation(path, out) for path in options.lists]
    _check_names(ablations, options.only)
    if options.dry_run:
        for ablation in ablations:
            print("\n".join(describe(ablation, options.seeds)))
        return 0
    plans = []
    for ablation in ablations:
        if not ablation.files.exist():
            print(f"{ablation.name}: a corpus is generated in {ablation.files.folder}", flush=True)
            make_data(ablation.data, ablation.files)
        ablation.files.check()
        plans.append(Plan(ablation, plan_cells(ablation, out, options.seeds, ablation.files.fingerprint())))
    board = Board(plans, options.only)
    for plan, cell in board.missing():
        board.run(plan, cell)
        write_results(out, plans)
    tables = write_results(out, plans)
    print(f"\n{tables}\nthe same with plots: {out / 'results.md'}")
    return EXIT_USER_ERROR if any(plan.errors for plan in plans) else 0


def _parser() -> ArgumentParser:
    parser = ArgumentParser(
        prog="vidsim ablate",
        description="Train every variant of a list under several seeds and compare them on the same test pairs: mean, "
        "standard deviation and the difference seed by seed. Started again, it goes on where it stopped.",
        epilog="example: vidsim ablate launch/recipes/ablations/tasks.yaml --out runs/ablations --seeds 3",
    )
    parser.add_argument(
        "lists", type=Path, nargs="+", metavar="LIST", help="YAML; the lists of one call share what is equal"
    )
    parser.add_argument("--out", type=Path, required=True, help="folder of all runs, results.md and results.json")
    parser.add_argument("--seeds", type=int, default=3, help="seeds 0, 1, ... of each variant (default: %(default)s)")
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="only these variants, and their teachers")
    parser.add_argument("--dry_run", action="store_true", help="check the lists, say what would be done, do nothing")
    return parser


def _check_names(ablations: Sequence[Ablation], only: Sequence[str]) -> None:
    names = [ablation.name for ablation in ablations]
    for ablation in ablations:
        if names.count(ablation.name) > 1:
            raise UserError("two lists have this name, so they would share a table", file=ablation.path)
    known = [variant.name for ablation in ablations for variant in ablation.variants]
    for name in only:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            fix = f"did you mean {near[0]!r}?" if near else f"they are {', '.join(known)}"
            raise UserError(f"there is no variant {name!r}", field="--only", fix=fix)


def describe(ablation: Ablation, seeds: int) -> list[str]:
    """What a list would do, line by line."""
    pretrained = {str(variant.pretrain) for variant in ablation.variants if variant.pretrain is not None}
    lines = [
        f"{ablation.name}: {len(ablation.variants)} variants x {seeds} seeds = {len(ablation.variants) * seeds} cells, "
        f"{len(pretrained) * seeds} pretrainings, baseline {ablation.baseline!r}"
    ]
    for variant in ablation.variants:
        lines.append(f"  {variant.name}: {'; '.join(variant.changes) or 'as it stands'}")
    return lines


@dataclass
class Plan:
    """A list with its cells, and why some of them failed: the message by variant and seed."""

    ablation: Ablation
    cells: list[Cell]
    errors: dict[tuple[str, int], str] = field(default_factory=dict)

    def rows(self) -> list[Row]:
        """The table as it is now."""
        scores: dict[str, dict[int, float]] = {variant.name: {} for variant in self.ablation.variants}
        for cell in self.cells:
            if (score := cell.score) is not None:
                scores[cell.variant.name][cell.seed] = score
        rows = []
        for variant in self.ablation.variants:
            own = [cell for cell in self.cells if cell.variant.name == variant.name]
            found = dict(sorted(scores[variant.name].items()))
            rows.append(
                Row(
                    name=variant.name,
                    scores=found,
                    seconds=_mean_seconds([cell.finetuning for cell in own]),
                    pretrain_seconds=_mean_seconds([cell.pretraining for cell in own if cell.pretraining]),
                    against=variant.against,
                    differences=differences(found, scores[variant.against]) if variant.against else {},
                    errors={seed: text for (name, seed), text in self.errors.items() if name == variant.name},
                )
            )
        return rows


def _mean_seconds(jobs: Sequence[Job]) -> float | None:
    timed = [job.result["seconds"] for job in jobs if job.result and job.result["seconds"] is not None]
    return sum(timed) / len(timed) if timed else None


class Board:
    """Runs cells, one after the other, and says how far it is.

    Args:
        plans: All lists.
        only: Names of variants; empty: all.
    """

    def __init__(self, plans: Sequence[Plan], only: Sequence[str]) -> None:
        """Find what is wanted."""
        self._start = time.monotonic()
        self._failed: dict[Path, str] = {}  # pretrainings, each of which is tried once
        self._seconds: dict[str, list[float]] = {"pretrained": [], "cells": []}
        self._wanted = []
        for plan in plans:
            teachers = [v.teacher for v in plan.ablation.variants if v.name in only and v.teacher]
            names = {*only, *teachers}
            self._wanted += [(plan, cell) for cell in plan.cells if not only or cell.variant.name in names]
        self._num_cells = len({cell.finetuning.folder for _, cell in self._wanted})

    def missing(self) -> Iterator[tuple[Plan, Cell]]:
        """The cells that are not finished, as it comes to them: equal ones of another list may have been meanwhile."""
        num_done = self._num_cells - len(self._open_folders("cells"))
        self._say(f"{self._num_cells} cells, {num_done} of them finished before")
        for plan, cell in self._wanted:
            if cell.score is None:
                yield plan, cell

    def run(self, plan: Plan, cell: Cell) -> None:
        """Compute a cell; one that fails is noted under its variant."""
        name = f"{plan.ablation.name}: {cell.variant.name}, seed {cell.seed}"
        try:
            if cell.teacher is not None and cell.teacher.score is None:
                raise UserError(f"its teacher {cell.teacher.variant.name!r} failed")
            if cell.pretraining is not None and cell.pretraining.result is None:
                self._pretrain(cell.pretraining, name)
            seconds = self._timed("cells", lambda: run_cell(cell, plan.ablation.files))
        except UserError as error:
            plan.errors[cell.variant.name, cell.seed] = str(error)
            self._say(f"{name}: failed: {error}")
            return
        self._say(f"{name}: test Spearman {cell.score:.4f} ({seconds:.0f} s)")

    def _pretrain(self, job: Job, name: str) -> None:
        if job.folder in self._failed:
            raise UserError(self._failed[job.folder])
        try:
            seconds = self._timed("pretrained", lambda: run_pretraining(job))
        except UserError as error:
            self._failed[job.folder] = f"pretraining: {error}"
            raise UserError(self._failed[job.folder]) from error
        self._say(f"{name}: pretrained ({seconds:.0f} s)")

    def _timed(self, kind: str, action: Any) -> float:
        start = time.monotonic()
        action()
        self._seconds[kind].append(time.monotonic() - start)
        return self._seconds[kind][-1]

    def _open_folders(self, kind: str) -> set[Path]:
        cells = [cell for plan, cell in self._wanted if (cell.variant.name, cell.seed) not in plan.errors]
        cells = [cell for cell in cells if cell.score is None]
        jobs = [cell.finetuning if kind == "cells" else cell.pretraining for cell in cells]
        return {job.folder for job in jobs if job is not None and job.result is None and job.folder not in self._failed}

    def _say(self, text: str) -> None:
        """A line with the time since the start and about how long the rest takes."""
        waiting = {kind: len(self._open_folders(kind)) for kind in self._seconds}
        left = 0.0
        for kind, seconds in self._seconds.items():
            left += waiting[kind] * (sum(seconds) / len(seconds) if seconds else 0.0)
        rest = f"; cells left: {waiting['cells']}" if waiting["cells"] else ""
        rest += f", about {format_duration(left)}" if rest and self._seconds["cells"] else ""
        print(f"[{time.monotonic() - self._start:6.0f} s] {text}{rest}", file=sys.stderr, flush=True)


def write_results(out: Path, plans: Sequence[Plan]) -> str:
    """Write results.json, results.md and a plot a list; lists of earlier calls keep their tables.

    Returns:
        The tables of these lists as Markdown.
    """
    file = out / "results.json"
    results: dict[str, Any] = read_json(file) if file.is_file() else {}
    for plan in plans:
        name, title, rows = plan.ablation.name, plan.ablation.title, plan.rows()
        folders = {
            row.name: [str(cell.finetuning.folder.name) for cell in plan.cells if cell.variant.name == row.name]
            for row in rows
        }
        text = markdown(title, rows)
        results[name] = {
            "title": title,
            "baseline": plan.ablation.baseline,
            "variants": [{**row.as_dict(), "cells": folders[row.name]} for row in rows],
            "markdown": text,
        }
        plot = dot_plot(title, rows, plan.ablation.baseline)
        if plot:
            with atomic_path(out / f"{name}.svg") as temporary:
                temporary.write_text(plot, encoding="utf-8")
    write_json(file, results)
    with atomic_path(out / "results.md") as temporary:
        parts = [f"{part['markdown']}\n![{part['title']}]({name}.svg)\n" for name, part in results.items()]
        temporary.write_text("\n".join(parts), encoding="utf-8")
    return "\n".join(results[plan.ablation.name]["markdown"] for plan in plans)


if __name__ == "__main__":
    sys.exit(run_entry(main))
