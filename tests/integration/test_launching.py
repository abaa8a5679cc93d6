"""The shipped accelerate files and Slurm jobs start as many processes as launch/README.md says."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent

REPORT = """
import os
import sys
import torch
from accelerate import Accelerator
state = Accelerator(cpu=not torch.cuda.is_available()).state
line = f"{state.process_index}/{state.num_processes} {state.backend} {sys.argv[1:]}\\n"
os.write(1, line.encode())  # in one piece, whatever the other process writes
"""

pytestmark = [pytest.mark.slow, pytest.mark.multi_process]


@pytest.fixture
def script(tmp_path: Path) -> Path:
    path = tmp_path / "report.py"
    path.write_text(REPORT)
    return path


def launch(*options: str, **variables: str) -> list[str]:
    """Lines that the processes of an `accelerate launch` report, sorted."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("ACCELERATE_")}
    run = subprocess.run(
        [str(BIN / "accelerate"), "launch", *options],
        env=environment | {"ACCELERATE_USE_CPU": "true", "CUDA_VISIBLE_DEVICES": ""} | variables,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    return sorted(line for line in run.stdout.splitlines() if "/" in line)


def config(name: str) -> list[str]:
    return ["--config_file", str(ROOT / "launch" / "accelerate" / name)]


def test_one_process_on_the_cpu(script: Path) -> None:
    assert launch(*config("cpu.yaml"), str(script), "--a", "1") == ["0/1 None ['--a', '1']"]


def test_two_processes_on_the_cpu(script: Path) -> None:
    assert launch(*config("cpu_2.yaml"), str(script)) == ["0/2 gloo []", "1/2 gloo []"]


def test_one_gpu_falls_back_to_one_process(script: Path) -> None:
    assert launch(*config("one_gpu.yaml"), str(script)) == ["0/1 None []"]


def test_the_number_of_gpus_must_be_said(script: Path) -> None:
    with pytest.raises(AssertionError, match="manually pass in `--num_processes`"):
        launch(*config("multi_gpu.yaml"), str(script))
    assert launch(*config("multi_gpu.yaml"), "--num_processes", "2", str(script)) == [
        "0/2 gloo []",
        "1/2 gloo []",
    ]


def test_the_trap_that_the_readme_warns_of_is_still_there(script: Path) -> None:
    # When this fails, accelerate has mended it and the warning can go.
    assert launch("--cpu", "--num_processes", "2", str(script)) == ["0/1 None []"]


@pytest.mark.parametrize("stage", ["pretrain", "finetune"])
def test_the_slurm_job_starts_every_process_of_every_node(stage: str, tmp_path: Path) -> None:
    # Slurm's two commands are played by scripts: `srun` runs its command once per node, at the same time.
    tools = tmp_path / "tools"
    tools.mkdir()
    (tools / "scontrol").write_text("#!/bin/bash\necho localhost\necho elsewhere\n")
    (tools / "srun").write_text(
        '#!/bin/bash\n[[ "$1" == --kill-on-bad-exit=1 ]] && shift\n'
        'for node in 0 1; do SLURM_NODEID=$node "$@" & jobs+=($!); done\n'
        'for job in "${jobs[@]}"; do wait "$job" || exit 1; done\n'
    )
    for tool in tools.iterdir():
        tool.chmod(0o755)
    activate = tmp_path / "venv" / "bin" / "activate"
    activate.parent.mkdir(parents=True)
    activate.write_text(f'PATH="{BIN}:$PATH"\n')
    shutil.copytree(ROOT / "launch", tmp_path / "launch")
    (tmp_path / stage).mkdir()
    (tmp_path / stage / "run.py").write_text(REPORT)

    job = {
        "SLURM_SUBMIT_DIR": str(tmp_path),
        "SLURM_JOB_ID": str(os.getpid()),
        "SLURM_JOB_NODELIST": "node[1-2]",
        "SLURM_NNODES": "2",
        "SLURM_GPUS_ON_NODE": "1",
        "SLURM_RESTART_COUNT": "1",
        "VIDSIM_VENV": str(tmp_path / "venv"),
        "PATH": f"{tools}:{os.environ['PATH']}",
        "ACCELERATE_USE_CPU": "true",
        "CUDA_VISIBLE_DEVICES": "",
    }
    run = subprocess.run(
        ["bash", str(ROOT / "launch" / "slurm" / f"{stage}.sbatch"), "--name", "two words"],
        env=os.environ | job,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    # A requeued job resumes.
    options = ["--name", "two words", "--resume", "true"]
    assert sorted(run.stdout.splitlines()) == [f"0/2 gloo {options}", f"1/2 gloo {options}"]
