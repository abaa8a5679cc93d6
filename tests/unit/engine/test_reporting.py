from __future__ import annotations

import fcntl
import json
import math
import os
import pty
import struct
import subprocess
import sys
import termios
from pathlib import Path

import pytest

from vidsim.common.errors import UserError
from vidsim.engine.metrics_file import CLOCK_FIELDS, read_metrics
from vidsim.engine.reporting import Reporter
from vidsim.engine.run_folder import RunFolder


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return RunFolder.create(tmp_path / "run", "seed: 1\n", False)


def train(reporter: Reporter, first: int, last: int) -> None:
    reporter.start(first, 10)
    for step in range(first + 1, last + 1):
        reporter.log(step, {"loss": 1 / step, "learning_rate": 0.1}, seconds=0.5 * step, num_examples=64)
        if step % 2 == 0:
            reporter.log(step, {"validation/spearman": step / 7})


def without_clock(run: RunFolder) -> list[dict[str, object]]:
    return [{k: v for k, v in line.items() if k not in CLOCK_FIELDS} for line in read_metrics(run.metrics)]


def test_each_line_is_on_the_disk_at_once(run: RunFolder) -> None:
    reporter = Reporter(run, [], enabled=True)
    reporter.start(0, 10)
    reporter.log(2, {"loss": 0.25, "learning_rate": 1e-4}, seconds=4.0, num_examples=64)
    reporter.log(2, {"validation/spearman": math.nan})
    assert [json.loads(line) for line in run.metrics.read_text().splitlines()] == [
        {"step": 2, "loss": 0.25, "learning_rate": 1e-4, "seconds": 4.0, "examples_per_second": 16.0},
        {"step": 2, "validation/spearman": None},
    ]


def test_a_resumed_file_is_the_straight_file(tmp_path: Path) -> None:
    straight, broken = (RunFolder.create(tmp_path / name, "seed: 1\n", False) for name in ("a", "b"))
    train(Reporter(straight, [], enabled=True), 0, 10)

    train(Reporter(broken, [], enabled=True), 0, 7)
    with broken.metrics.open("a") as file:
        file.write('{"step": 8, "lo')  # killed while writing
    reporter = Reporter(broken, [], enabled=True)
    reporter.rewind(4)
    assert [line["step"] for line in read_metrics(broken.metrics)] == [1, 2, 2, 3, 4, 4]
    train(reporter, 4, 10)
    assert without_clock(broken) == without_clock(straight)


def test_the_line_on_standard_error(run: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    reporter = Reporter(run, [], enabled=True)
    reporter.note(["one", "two"])
    reporter.start(100, 1000)
    metrics = {"loss": 1.23456, "loss/vtc": 0.5, "grad_norm": 2.0, "learning_rate": 5e-5}
    reporter.log(550, metrics, seconds=2.0, num_examples=640)
    reporter.log(1000, {"validation/spearman": 0.71234})
    captured = capsys.readouterr()
    assert captured.out == "one\ntwo\n"
    first, second = captured.err.splitlines()
    wanted = "step 550/1,000  loss 1.235  loss/vtc 0.5  grad norm 2  lr 5e-05  320.0 examples/s  "
    assert first.startswith(wanted)
    assert first.endswith("s left")
    assert second == "step 1,000/1,000  validation/spearman 0.7123"


def test_only_the_first_process_writes(run: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    reporter = Reporter(run, ["wandb"], enabled=False)
    reporter.note(["one"])
    reporter.rewind(0)
    train(reporter, 0, 3)
    reporter.close()
    assert not run.metrics.exists()
    assert capsys.readouterr() == ("", "")


def test_closing_writes_the_page(run: RunFolder) -> None:
    reporter = Reporter(run, [], enabled=True)
    reporter.close()
    assert not (run.path / "report.html").exists()  # nothing was logged
    train(reporter, 0, 4)
    reporter.close()
    assert "validation/spearman" in (run.path / "report.html").read_text()


def test_an_unknown_tracker_is_refused_before_anything_starts(run: RunFolder) -> None:
    with pytest.raises(UserError, match=r"'wandbb' is not known.*use some of wandb, tensorboard, trackio"):
        Reporter(run, ["wandbb"], enabled=False)


ON_A_TERMINAL = """
import sys
from vidsim.engine.reporting import Reporter
from vidsim.engine.run_folder import RunFolder
reporter = Reporter(RunFolder.create(sys.argv[1], "seed: 1", False), [], enabled=True)
reporter.start(0, 4)
reporter.log(2, {"loss": 0.5}, seconds=1.0, num_examples=10)
reporter.log(4, {"loss": 0.25}, seconds=1.0, num_examples=10)
reporter.close()
"""


def test_a_terminal_gets_a_bar_below_the_lines(tmp_path: Path) -> None:
    controller, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 120, 0, 0))
    command = [sys.executable, "-c", ON_A_TERMINAL, str(tmp_path / "run")]
    process = subprocess.Popen(command, stderr=terminal)
    os.close(terminal)
    text = b""
    while True:
        try:
            block = os.read(controller, 4096)
        except OSError:  # the terminal was closed at the other end
            break
        if not block:
            break
        text += block
    os.close(controller)
    assert process.wait() == 0
    shown = text.decode()
    assert "step 2/4  loss 0.5  10.0 examples/s" in shown
    assert "2/4 [" in shown
    assert "4/4 [" in shown
