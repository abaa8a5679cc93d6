"""A worker that dies is restarted by torchrun as launch/README.md says, and the run is the straight run."""

from __future__ import annotations

import hashlib
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def torchrun(arguments: list[str]) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--max-restarts", "3"]
    environment = os.environ | {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1", "ACCELERATE_USE_CPU": "true"}
    return subprocess.Popen(
        [*command, "--master-port", str(free_port()), *arguments, "--resume", "true"],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def worker(process: subprocess.Popen[str], rank: int) -> psutil.Process:
    """The process of one rank."""
    for child in psutil.Process(process.pid).children(recursive=True):
        if child.environ().get("RANK") == str(rank):
            return child
    raise AssertionError(f"torchrun has no worker of rank {rank}")


def weights(run: Path) -> str:
    return hashlib.sha256((run / "checkpoints" / "last" / "model.safetensors").read_bytes()).hexdigest()


@pytest.mark.slow
@pytest.mark.multi_process
def test_a_killed_worker_comes_back(tiny: Any, scripts: Any, tmp_path: Path) -> None:
    recipe = yaml.safe_load((tiny.folder / "pretrain.yaml").read_text(encoding="utf-8"))
    recipe["data"]["stages"][0]["num_epochs"] = 30  # some seconds, to be killed in the middle
    longer = tmp_path / "longer.yaml"
    longer.write_text(yaml.safe_dump(recipe), encoding="utf-8")
    arguments = ["pretrain/run.py", "--config", str(longer), "--output_dir"]

    straight = torchrun([*arguments, str(tmp_path / "straight")])
    output, _ = straight.communicate(timeout=240)
    assert straight.returncode == 0, output

    run = tmp_path / "killed"
    process = torchrun([*arguments, str(run)])
    while process.poll() is None and not list((run / "checkpoints").glob("step_*")):
        time.sleep(0.01)
    worker(process, 1).send_signal(signal.SIGKILL)
    output, _ = process.communicate(timeout=240)
    assert process.returncode == 0, output
    assert "resumed at step" in output
    assert scripts.metrics(run) == scripts.metrics(tmp_path / "straight")
    assert weights(run) == weights(tmp_path / "straight")
