"""Metrics of a run: one JSON line each time, a readable line on standard error, dashboards on request."""

from __future__ import annotations

import errno
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

from tqdm import tqdm

from vidsim.common.errors import UserError
from vidsim.common.files import atomic_path, disk_full
from vidsim.engine.metrics_file import format_duration, format_number, read_metrics, to_line
from vidsim.engine.report_page import write_report
from vidsim.engine.run_folder import RunFolder
from vidsim.engine.trackers import Tracker, check_trackers, open_tracker

_SHORT = {"learning_rate": "lr", "grad_norm": "grad norm"}


class Reporter:
    """Writes `metrics.jsonl` of a run and shows its progress.

    Args:
        run: The run folder.
        trackers: Some of wandb, tensorboard, trackio.
        enabled: False on every rank but the first: then nothing is written.

    Raises:
        UserError: A tracker is unknown or not installed.
    """

    def __init__(self, run: RunFolder, trackers: Sequence[str], enabled: bool) -> None:
        """Check the trackers; they are started by `start`."""
        check_trackers(trackers)
        self._run = run
        self._names = list(trackers)
        self._enabled = enabled
        self._trackers: list[Tracker] = []
        self._bar: tqdm[Any] | None = None
        self._first_step = self._last_step = 0
        self._started = time.monotonic()

    def note(self, lines: Sequence[str]) -> None:
        """Print lines once, on the first process."""
        if self._enabled:
            print("\n".join(lines), flush=True)

    def rewind(self, step: int) -> None:
        """Forget the lines after `step`: the run goes on from there and will write them again."""
        if not self._enabled or not self._run.metrics.is_file():
            return
        kept = [line for line in read_metrics(self._run.metrics) if line["step"] <= step]
        with atomic_path(self._run.metrics) as temporary:
            temporary.write_text("".join(f"{to_line(line)}\n" for line in kept), encoding="utf-8")

    def start(self, step: int, last_step: int) -> None:
        """Begin to show progress from `step` towards `last_step`."""
        self._first_step, self._last_step = step, last_step
        self._started = time.monotonic()
        if not self._enabled:
            return
        self._trackers = [open_tracker(name, self._run, step) for name in self._names]
        if sys.stderr.isatty():
            self._bar = tqdm(initial=step, total=last_step, unit="step", dynamic_ncols=True, file=sys.stderr)

    def log(
        self,
        step: int,
        metrics: Mapping[str, float],
        *,
        seconds: float | None = None,
        num_examples: int | None = None,
    ) -> None:
        """Write one line.

        Args:
            step: Optimizer steps taken.
            metrics: Numbers by name; one that is not finite is written as null.
            seconds: Time that the steps since the last such line took.
            num_examples: Rows that were trained on in this time, on all ranks.
        """
        if not self._enabled:
            return
        clock: dict[str, float] = {}
        if seconds is not None:
            clock["seconds"] = round(seconds, 4)
            if num_examples is not None and seconds > 0:
                clock["examples_per_second"] = round(num_examples / seconds, 2)
        line = {"step": step, **{name: float(value) for name, value in metrics.items()}, **clock}
        try:
            with open(self._run.metrics, "a", encoding="utf-8") as file:
                file.write(to_line(line) + "\n")
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise disk_full(self._run.metrics) from error
            raise
        for tracker in self._trackers:
            tracker.log({name: value for name, value in line.items() if name != "step"}, step)
        self._show(step, metrics, clock)

    def close(self) -> None:
        """End the trackers and the bar, and write `report.html` of what was logged."""
        for tracker in self._trackers:
            tracker.close()
        self._trackers = []
        if self._bar is not None:
            self._bar.close()
            self._bar = None
        if self._enabled and self._run.metrics.is_file():
            try:
                write_report(self._run.path)
            except UserError as error:  # must not hide what ended the run: a full disk, for one
                print(f"no report is written: {error}", file=sys.stderr, flush=True)

    def _show(self, step: int, metrics: Mapping[str, float], clock: Mapping[str, float]) -> None:
        parts = [f"step {step:,}/{self._last_step:,}"]
        parts += [f"{_SHORT.get(name, name)} {format_number(value)}" for name, value in metrics.items()]
        if "examples_per_second" in clock:
            parts.append(f"{clock['examples_per_second']:,.1f} examples/s")
        if clock and self._first_step < step < self._last_step:
            elapsed = time.monotonic() - self._started
            remaining = elapsed / (step - self._first_step) * (self._last_step - step)
            parts.append(f"{format_duration(remaining)} left")
        if self._bar is not None:
            self._bar.update(step - self._bar.n)
            self._bar.write("  ".join(parts), file=sys.stderr)
        else:
            print("  ".join(parts), file=sys.stderr, flush=True)
