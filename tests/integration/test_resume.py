"""A run that is killed and resumed is the straight run, to the bit: metrics, weights, optimizer."""

from __future__ import annotations

import hashlib
import os
import random
import signal
import time
from pathlib import Path
from typing import Any

import pytest


def fingerprint(run: Path) -> dict[str, str]:
    """Hash of every tensor file of the last checkpoint."""
    last = (run / "checkpoints/last").resolve()
    return {
        str(path.relative_to(last)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(last.rglob("*.safetensors"))
    }


def kill_after(process: Any, run: Path, num_lines: int, delay: float) -> bool:
    """SIGKILL the whole process group once metrics.jsonl has so many lines; False if the run ended before."""
    metrics = run / "metrics.jsonl"
    while process.poll() is None:
        if metrics.exists() and metrics.read_text(encoding="utf-8").count("\n") >= num_lines:
            time.sleep(delay)
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
            return True
        time.sleep(0.01)
    process.communicate()
    return False


def killed_and_resumed(scripts: Any, arguments: list[str], run: Path, kills: int, ranks: int, seed: int) -> int:
    """Run to the end, being killed at random moments on the way; how many kills hit a running process."""
    generator = random.Random(seed)
    hits = 0
    for number in range(kills):
        process = scripts.launch([*arguments, "--resume"], ranks=ranks)
        hits += kill_after(process, run, 1 + number + generator.randrange(3), generator.random() * 0.15)
    scripts.run([*arguments, "--resume"], ranks=ranks)
    return hits


@pytest.mark.multi_process
@pytest.mark.parametrize(
    ("ranks", "kills"),
    [
        (1, 2),
        pytest.param(1, 10, marks=pytest.mark.slow),
        pytest.param(2, 10, marks=pytest.mark.slow),
    ],
)
def test_pretraining_survives_kills(tiny: Any, scripts: Any, tmp_path: Path, ranks: int, kills: int) -> None:
    arguments = ["pretrain/run.py", *tiny.pretrain]
    scripts.run([*arguments, "--output_dir", str(tmp_path / "straight")], ranks=ranks)
    interrupted = [*arguments, "--output_dir", str(tmp_path / "killed")]
    assert killed_and_resumed(scripts, interrupted, tmp_path / "killed", kills, ranks, seed=kills + ranks) >= kills // 2
    assert scripts.metrics(tmp_path / "killed") == scripts.metrics(tmp_path / "straight")
    assert fingerprint(tmp_path / "killed") == fingerprint(tmp_path / "straight")


@pytest.mark.multi_process
@pytest.mark.slow
@pytest.mark.parametrize(
    "path",
    [
        ("--precision", "bf16", "--loop.num_workers", "2"),
        ("--loop.gradient_checkpointing", "true", "--loop.num_workers", "1"),
        ("--loop.micro_batch_tokens", "120", "--loop.gradient_accumulation_steps", "2"),
        ("--loop.sharded", "true", "--precision", "bf16"),
    ],
    ids=["bf16 and workers", "gradient checkpointing", "batches by tokens", "sharded"],
)
def test_every_path_survives_kills(tiny: Any, scripts: Any, tmp_path: Path, path: tuple[str, ...]) -> None:
    arguments = ["pretrain/run.py", *tiny.pretrain, *path]
    scripts.run([*arguments, "--output_dir", str(tmp_path / "straight")], ranks=2)
    interrupted = [*arguments, "--output_dir", str(tmp_path / "killed")]
    assert killed_and_resumed(scripts, interrupted, tmp_path / "killed", 3, 2, seed=5) >= 1
    assert scripts.metrics(tmp_path / "killed") == scripts.metrics(tmp_path / "straight")
    assert fingerprint(tmp_path / "killed") == fingerprint(tmp_path / "straight")


@pytest.mark.multi_process
@pytest.mark.slow
def test_finetuning_survives_kills(tiny: Any, scripts: Any, tmp_path: Path) -> None:
    untrained = tmp_path / "untrained"
    scripts.run(["pretrain/run.py", *tiny.pretrain, "--loop.max_steps", "0", "--output_dir", str(untrained)])
    extras = ["--ema.decay", "0.9", "--fgm.epsilon", "0.1", "--task.r_drop_weight", "0.5"]
    arguments = ["finetune/run.py", *tiny.finetune, "--init_from", str(untrained), *extras]
    scripts.run([*arguments, "--output_dir", str(tmp_path / "straight")])
    interrupted = [*arguments, "--output_dir", str(tmp_path / "killed")]
    assert killed_and_resumed(scripts, interrupted, tmp_path / "killed", 4, 1, seed=3) >= 2
    assert scripts.metrics(tmp_path / "killed") == scripts.metrics(tmp_path / "straight")
    assert fingerprint(tmp_path / "killed") == fingerprint(tmp_path / "straight")


@pytest.mark.multi_process
def test_ctrl_c_saves_and_resume_goes_on(tiny: Any, scripts: Any, tmp_path: Path) -> None:
    arguments = ["pretrain/run.py", *tiny.pretrain, "--output_dir", str(tmp_path / "run"), "--data.epoch_scale", "20"]
    process = scripts.launch(arguments)
    while not (tmp_path / "run/metrics.jsonl").exists():
        time.sleep(0.05)
        assert process.poll() is None
    os.kill(process.pid, signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130, output
    assert "go on with --resume" in output
    stopped = int((tmp_path / "run/checkpoints/last").resolve().name.removeprefix("step_"))
    assert 0 < stopped < 270
    # The same folder without --resume is refused, with it the run goes on.
    process = scripts.launch(arguments)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 2
    assert "already holds a run" in output
    output = scripts.run([*arguments, "--resume", "--loop.max_steps", str(stopped + 5)])
    assert f"resumed at step {stopped}" in output
