from __future__ import annotations

import json
import math
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch

from vidsim.common.errors import UserError
from vidsim.engine.checkpoint import save_checkpoint
from vidsim.engine.report_page import main, render, series_by_section, write_report
from vidsim.engine.reporting import Reporter
from vidsim.engine.run_folder import RunFolder


class Page(HTMLParser):
    """Headings, tables and everything that would be loaded from elsewhere."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.headings: list[str] = []
        self.cells: list[str] = []
        self.loads: list[str] = []
        self.num_charts = 0
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.open.append(tag)
        self.num_charts += tag == "svg"
        self.loads += [value or "" for name, value in attrs if name in ("src", "href", "srcset")]
        self.loads += [tag] if tag in ("script", "link", "iframe") else []

    def handle_endtag(self, tag: str) -> None:
        while self.open and self.open.pop() != tag:
            pass

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] in ("h1", "h2", "h3"):
            self.headings.append(data)
        if self.open and self.open[-1] in ("td", "th"):
            self.cells.append(data)


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    """A run of 40 steps with evaluations and a checkpoint, its name in need of escaping."""
    run = RunFolder.create(tmp_path / "base <1> & co", "seed: 1\nname: <script>alert(1)</script>\n", False)
    reporter = Reporter(run, [], enabled=True)
    reporter.start(0, 40)
    for step in range(5, 41, 5):
        metrics = {"loss": 3 / step, "loss/vtc": 1 / step, "grad_norm": 2.0, "learning_rate": 1e-4}
        reporter.log(step, metrics, seconds=30.0, num_examples=100)
        if step % 20 == 0:
            reporter.log(step, {"probe/spearman": step / 100, "held_out/loss": math.nan})
    module = torch.nn.Linear(1, 1)
    save_checkpoint(
        run.checkpoints,
        40,
        module=module,
        optimizer=torch.optim.SGD(module.parameters(), lr=0.1),
        ema=None,
        state={},
        export=lambda folder: None,
        is_best=True,
        keep=2,
    )
    return run


def test_the_page_shows_everything_and_loads_nothing(run: RunFolder) -> None:
    page = Page(render(run.path))
    assert page.headings == [
        "base <1> & co",
        "Evaluation", "probe/spearman", "held_out/loss",
        "Training losses", "loss", "loss/vtc",
        "Optimisation", "grad_norm", "learning_rate",
        "Speed", "examples_per_second",
        "Numbers", "Checkpoints", "Environment", "Configuration",
    ]  # fmt: skip
    assert page.num_charts == 6  # held_out/loss has no finite value
    assert page.loads == []
    row = page.cells.index("probe/spearman")
    assert page.cells[row : row + 5] == ["probe/spearman", "0.2", "0.4", "0.2 (step 20)", "0.4 (step 40)"]
    assert "step_000040" in page.cells
    assert "last, best" in page.cells
    assert any(f"torch {torch.__version__}" in cell for cell in page.cells)


def test_text_of_the_run_is_not_markup(run: RunFolder) -> None:
    text = render(run.path)
    assert "<script" not in text
    assert "&lt;script&gt;alert(1)" in text
    assert "40 steps · 4m00s of training" in text
    assert "http" not in text


def test_lines_are_sorted_by_what_they_are() -> None:
    lines = [
        {"step": 1, "loss": 1, "loss/mlm": 2.0, "learning_rate": 0.1, "weight/mlm": 1.0, "seconds": 3.0},
        {"step": 1, "held_out/loss": None, "loss": 7.0, "note": "text"},
    ]
    evaluation, training, optimisation, speed = series_by_section(lines)
    assert list(evaluation) == ["held_out/loss", "loss"]
    assert math.isnan(evaluation["held_out/loss"][0][1])
    assert evaluation["loss"] == [(1, 7.0)]
    assert training == {"loss": [(1, 1.0)], "loss/mlm": [(1, 2.0)]}
    assert list(optimisation) == ["learning_rate", "weight/mlm"]
    assert speed == {}


def test_the_command_writes_one_page_a_run(run: RunFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(run.path)]) == 0
    assert capsys.readouterr().out.strip() == str(run.path / "report.html")
    assert main([str(run.path), "--out", str(tmp_path / "deep" / "page.html")]) == 0
    assert (tmp_path / "deep" / "page.html").read_text() == (run.path / "report.html").read_text()
    with pytest.raises(UserError, match="--out"):
        main([str(run.path), str(run.path), "--out", str(tmp_path / "page.html")])


def test_a_run_of_which_only_the_metrics_are_left_has_a_page(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text(json.dumps({"step": 1, "loss": 2.0}) + "\n")
    page = Page(write_report(tmp_path).read_text())
    assert page.headings == [tmp_path.name, "Evaluation", "loss", "Numbers"]


def test_what_is_no_run_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"has no metrics\.jsonl"):
        write_report(tmp_path)


def test_help_has_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    assert "example: vidsim report runs/" in capsys.readouterr().out
