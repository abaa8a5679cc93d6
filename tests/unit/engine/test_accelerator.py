from __future__ import annotations

import os
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pytest
import torch
from accelerate.utils import DynamoBackend

from vidsim.common.errors import UserError
from vidsim.engine.accelerator import banner_lines, make_accelerator
from vidsim.engine.installed import package_path, version_of

RANKS = """
import os
import torch
from torch import nn
from vidsim.common.entry import leave
from vidsim.engine.accelerator import banner_lines, make_accelerator

accelerator = make_accelerator("fp32")
rank = accelerator.process_index
torch.manual_seed(0)
module = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1)).eval()
rows = torch.randn(8, 3)

# Both processes together must have the gradient of one process over all rows.
module(rows).pow(2).sum().backward()
wanted = [parameter.grad.clone() for parameter in module.parameters()]
module.zero_grad(set_to_none=True)
wrapped = accelerator.prepare_model(module)
mine = rows[rank::2]
with accelerator.no_sync(wrapped):
    accelerator.backward(wrapped(mine[:2]).pow(2).sum() * accelerator.num_processes)
accelerator.backward(wrapped(mine[2:]).pow(2).sum() * accelerator.num_processes)
for parameter, gradient in zip(module.parameters(), wanted):
    torch.testing.assert_close(parameter.grad, gradient)
total = accelerator.reduce(torch.tensor(float(rank + 1)), reduction="sum").item()
line = f"rank {rank} of {accelerator.num_processes} {accelerator.device.type} {total}\\n"
os.write(1, line.encode())  # in one piece: the other process writes to the same pipe
accelerator.wait_for_everyone()
leave(0)
"""

ALONE = """
import sys
from vidsim.common.errors import UserError
from vidsim.engine.accelerator import make_accelerator
try:
    print("made", make_accelerator("fp32").num_processes)
except UserError as error:
    print(error)
    sys.exit(2)
"""


def run(script: str, folder: Path, *command: str, **variables: str) -> subprocess.CompletedProcess[str]:
    file = folder / "script.py"
    file.write_text(script)
    environment = {key: value for key, value in os.environ.items() if not key.startswith("ACCELERATE_")}
    return subprocess.run(
        [*command, str(file)],
        env=environment | {"ACCELERATE_USE_CPU": "1", "HF_HOME": str(folder)} | variables,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """One process on the CPU is initialised, whatever the tests then put into the environment."""
    for name in [*os.environ]:
        if name.startswith("ACCELERATE_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("ACCELERATE_USE_CPU", "1")
    assert make_accelerator("fp32").num_processes == 1


@pytest.mark.multi_process
def test_two_processes_are_one_run(tmp_path: Path) -> None:
    torchrun = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")
    result = run(RANKS, tmp_path, *torchrun)
    assert result.returncode == 0, result.stderr
    assert "FutureWarning" not in result.stderr
    assert sorted(result.stdout.splitlines()) == ["rank 0 of 2 cpu 3.0", "rank 1 of 2 cpu 3.0"]


@pytest.mark.slow
@pytest.mark.multi_process
def test_the_launch_that_silently_starts_one_process_is_refused(tmp_path: Path) -> None:
    accelerate = (str(Path(sys.executable).parent / "accelerate"), "launch", "--cpu", "--num_processes")
    result = run(ALONE, tmp_path, *accelerate, "2")
    assert result.returncode != 0
    assert "torchrun --standalone --nproc_per_node 2" in result.stdout
    assert run(ALONE, tmp_path, *accelerate, "1").stdout.strip() == "made 1"


def test_a_launch_that_asked_for_more_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    # What `accelerate launch --cpu --num_processes 2` leaves in the environment.
    monkeypatch.setenv("ACCELERATE_DYNAMO_MODE", "default")
    assert make_accelerator("fp32").num_processes == 1
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    with pytest.raises(UserError, match=r"starts only this one.*torchrun --standalone"):
        make_accelerator("fp32")


@pytest.mark.parametrize("variable", ["WORLD_SIZE", "OMPI_COMM_WORLD_SIZE", "SLURM_STEP_NUM_TASKS"])
def test_a_process_that_believes_to_be_alone_is_refused(variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(variable, "2")
    with pytest.raises(UserError, match=r"2 processes were started, but this one sees 1.*nproc_per_node 2"):
        make_accelerator("fp32")
    monkeypatch.setenv(variable, "1")
    assert make_accelerator("fp32").num_processes == 1
    monkeypatch.setenv(variable, "two")
    with pytest.raises(UserError, match=f"field '{variable}'"):
        make_accelerator("fp32")


def test_the_users_own_accelerate_configuration_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")
    monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", "INDUCTOR")
    accelerator = make_accelerator("fp32", timeout_seconds=77)
    assert accelerator.mixed_precision == "no"
    assert accelerator.state.dynamo_plugin.backend == DynamoBackend.NO
    assert accelerator.init_handler.timeout == timedelta(seconds=77)
    assert accelerator.ddp_handler.to_kwargs() == {"broadcast_buffers": False, "gradient_as_bucket_view": True}
    # It would divide the loss.
    weight = torch.nn.Parameter(torch.tensor(2.0))
    accelerator.backward(weight * 3)
    assert weight.grad is not None
    assert weight.grad.item() == 3.0


@pytest.mark.parametrize("variable", ["ACCELERATE_USE_DEEPSPEED", "ACCELERATE_USE_FSDP"])
def test_foreign_backends_are_refused(variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(variable, "true")
    with pytest.raises(UserError, match="does not support"):
        make_accelerator("fp32")
    monkeypatch.setenv(variable, "false")
    make_accelerator("fp32")


def test_losses_are_not_divided_by_what_the_environment_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")
    weight = torch.nn.Parameter(torch.tensor(2.0))
    make_accelerator("fp32").backward(weight * 3)
    assert weight.grad is not None
    assert weight.grad.item() == 3.0


def test_bf16_is_autocast_over_fp32_weights_and_can_follow_fp32_in_one_process() -> None:
    class Product(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = torch.nn.Linear(2, 2)
            self.seen: torch.dtype | None = None

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.linear(x)
            self.seen = y.dtype
            return y

    for precision, inside in (("fp32", torch.float32), ("bf16", torch.bfloat16), ("fp32", torch.float32)):
        module = Product()
        wrapped = make_accelerator(precision).prepare_model(module)  # type: ignore[arg-type]
        assert wrapped(torch.ones(1, 2)).dtype == torch.float32
        assert module.seen == inside
        assert module.linear.weight.dtype == torch.float32


@pytest.mark.parametrize(("precision", "reason"), [("fp16", "65504.*use bf16"), ("fp8", "'fp8' is not known")])
def test_other_precisions_are_refused_with_the_reason(precision: str, reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        make_accelerator(precision)  # type: ignore[arg-type]


def test_tf32_is_fp32_where_there_is_no_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_USE_CPU", "1")
    accelerator = make_accelerator("tf32")
    assert accelerator.mixed_precision == "no"
    assert torch.get_float32_matmul_precision() == "highest"


def test_the_banner_says_what_is_running() -> None:
    text = "\n".join(banner_lines(make_accelerator("bf16")))
    for part in ("1 process on cpu", "bf16", str(package_path()), f"torch {torch.__version__}", "transformers"):
        assert part in text
    assert (package_path() / "engine" / "accelerator.py").is_file()
    assert version_of("no-such-package") is None


@pytest.mark.gpu
def test_a_gpu_is_used_where_there_is_one(tmp_path: Path) -> None:
    script = (
        "from vidsim.engine.accelerator import banner_lines, make_accelerator\n"
        "a = make_accelerator('tf32')\n"
        "print(a.device, *banner_lines(a))\n"
    )
    result = run(script, tmp_path, sys.executable, ACCELERATE_USE_CPU="0")
    assert result.stdout.startswith("cuda"), result.stderr
    assert "fp32 matrix products: high" in result.stdout
    crowd = run(ALONE, tmp_path, sys.executable, ACCELERATE_USE_CPU="0", WORLD_SIZE="99", LOCAL_WORLD_SIZE="99")
    assert crowd.returncode == 2
    assert "99 processes on this machine" in crowd.stdout
