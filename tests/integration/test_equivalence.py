"""Same training, different arithmetic: one process or two, one large micro-batch or four small ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from vidsim.finetune.run import main as finetune
from vidsim.pretrain.run import main as pretrain

WITHOUT_DROPOUT = ["--model.dropout", "0", "--loop.max_steps", "9"]


def close(first: list[dict[str, Any]], second: list[dict[str, Any]], tolerance: float) -> None:
    assert len(first) == len(second)
    for one, other in zip(first, second, strict=True):
        assert one.keys() == other.keys()
        for key, value in one.items():
            assert other[key] == pytest.approx(value, rel=tolerance, abs=tolerance), (one["step"], key)


@pytest.fixture(scope="module")
def straight(tiny: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "straight"
    assert pretrain([*tiny.pretrain, *WITHOUT_DROPOUT, "--output_dir", str(run)]) == 0
    return run


def test_accumulation(tiny: Any, scripts: Any, straight: Path, tmp_path: Path) -> None:
    split = ["--loop.micro_batch_size", "4", "--loop.gradient_accumulation_steps", "4"]
    assert pretrain([*tiny.pretrain, *WITHOUT_DROPOUT, *split, "--output_dir", str(tmp_path / "run")]) == 0
    close(scripts.metrics(straight), scripts.metrics(tmp_path / "run"), 2e-5)


@pytest.mark.multi_process
def test_two_processes(tiny: Any, scripts: Any, straight: Path, tmp_path: Path) -> None:
    arguments = [*tiny.pretrain, *WITHOUT_DROPOUT, "--loop.micro_batch_size", "8"]
    scripts.run(["pretrain/run.py", *arguments, "--output_dir", str(tmp_path / "run")], ranks=2)
    close(scripts.metrics(straight), scripts.metrics(tmp_path / "run"), 2e-5)


@pytest.mark.multi_process
@pytest.mark.parametrize(
    "loss", ["mse", pytest.param("lbpc", marks=pytest.mark.slow), pytest.param("cosent", marks=pytest.mark.slow)]
)
def test_finetuning_on_two_processes(tiny: Any, scripts: Any, straight: Path, tmp_path: Path, loss: str) -> None:
    arguments = [*tiny.finetune, "--init_from", str(straight), "--task.loss", loss, "--loop.max_steps", "6"]
    assert finetune([*arguments, "--output_dir", str(tmp_path / "one")]) == 0
    two = [*arguments, "--loop.micro_batch_size", "4", "--output_dir", str(tmp_path / "two")]
    scripts.run(["finetune/run.py", *two], ranks=2)
    close(scripts.metrics(tmp_path / "one"), scripts.metrics(tmp_path / "two"), 2e-5)
