"""Sharded training on two processes: metrics and checkpoints of one process, and a checkpoint that anything reads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from vidsim.finetune.run import main as finetune
from vidsim.modeling.encoder import VideoTextEncoder
from vidsim.pretrain.run import main as pretrain

WITHOUT_DROPOUT = ["--model.dropout", "0", "--loop.max_steps", "9"]
SHARDED = ["--loop.sharded", "true"]

pytestmark = [pytest.mark.slow, pytest.mark.multi_process]


def same(first: Path, second: Path, scripts: Any) -> None:
    """The runs have the same metrics, and checkpoints of the same tensors."""
    lines, others = scripts.metrics(first), scripts.metrics(second)
    assert len(lines) == len(others) > 0
    for line, other in zip(lines, others, strict=True):
        assert other == pytest.approx(line, rel=2e-5, abs=2e-5)
    tensors, other_tensors = last_tensors(first), last_tensors(second)
    assert tensors.keys() == other_tensors.keys()
    for name, tensor in tensors.items():
        torch.testing.assert_close(other_tensors[name], tensor, rtol=1e-4, atol=1e-6, msg=name)


def last_tensors(run: Path) -> dict[str, torch.Tensor]:
    """Exported model, module and optimizer of the last checkpoint."""
    files = sorted((run / "checkpoints/last/").resolve().rglob("*.safetensors"))
    return {f"{file.name} {name}": tensor for file in files for name, tensor in load_file(file).items()}


@pytest.fixture(scope="module")
def one_process(tiny: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "one"
    assert pretrain([*tiny.pretrain, *WITHOUT_DROPOUT, "--output_dir", str(run)]) == 0
    return run


@pytest.mark.parametrize(
    "batches",
    [
        ["--loop.micro_batch_size", "8"],
        ["--loop.micro_batch_size", "2", "--loop.gradient_accumulation_steps", "4"],
        ["--loop.micro_batch_size", "8", "--loop.gradient_checkpointing", "true"],
    ],
    ids=["plain", "accumulation", "gradient checkpointing"],
)
def test_pretraining(tiny: Any, scripts: Any, one_process: Path, tmp_path: Path, batches: list[str]) -> None:
    run = tmp_path / "run"
    arguments = [*tiny.pretrain, *WITHOUT_DROPOUT, *batches, *SHARDED, "--output_dir", str(run)]
    output = scripts.run(["pretrain/run.py", *arguments], ranks=2)
    assert "the first process keeps 8,542 of 17,051 parameters" in output
    same(one_process, run, scripts)
    model = VideoTextEncoder.from_pretrained(run / "checkpoints/best")
    exported = load_file(run / "checkpoints/best/model.safetensors")
    assert model.state_dict().keys() == exported.keys()


def test_finetuning(tiny: Any, scripts: Any, one_process: Path, tmp_path: Path) -> None:
    arguments = [*tiny.finetune, "--init_from", str(one_process), "--loop.max_steps", "6"]
    assert finetune([*arguments, "--output_dir", str(tmp_path / "one")]) == 0
    two = [*arguments, "--loop.micro_batch_size", "4", *SHARDED, "--output_dir", str(tmp_path / "two")]
    scripts.run(["finetune/run.py", *two], ranks=2)
    same(tmp_path / "one", tmp_path / "two", scripts)
