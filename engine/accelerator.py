"""The only place an Accelerator is made: everything is passed explicitly, and the world size is checked.

Observed with accelerate 1.15: `accelerate launch --cpu --num_processes 2` runs one process without a word;
two processes on a machine without a GPU each believe that they are alone; the user's own default
configuration changes precision, gradient accumulation (which divides the loss) and compilation through the
environment.
"""

from __future__ import annotations

import os
import sys
import warnings
from datetime import timedelta
from typing import Literal, get_args

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import (
    DistributedDataParallelKwargs,
    GradientAccumulationPlugin,
    InitProcessGroupKwargs,
    TorchDynamoPlugin,
)

from vidsim.common.errors import UserError
from vidsim.engine.installed import package_path, version_of

Precision = Literal["fp32", "tf32", "bf16"]
_WORLD_SIZE_VARIABLES = (
    "WORLD_SIZE",
    "OMPI_COMM_WORLD_SIZE",
    "PMI_SIZE",
    "MV2_COMM_WORLD_SIZE",
    "SLURM_STEP_NUM_TASKS",
)
_OUR_FILES = "launch with one of the files in launch/accelerate (accelerate launch --config_file ...)"
_FOREIGN_BACKENDS = {
    "ACCELERATE_USE_DEEPSPEED": ("DeepSpeed", _OUR_FILES),
    "ACCELERATE_USE_FSDP": ("its FSDP plugin", f"{_OUR_FILES} and --loop.sharded true"),
    "ACCELERATE_USE_MEGATRON_LM": ("Megatron-LM", _OUR_FILES),
    "ACCELERATE_USE_PARALLELISM_CONFIG": ("a parallelism config", _OUR_FILES),
}


def make_accelerator(
    precision: Precision,
    timeout_seconds: int = 1800,
) -> Accelerator:
    """Make the Accelerator of this process; with several processes, also their process group. Collective.

    Args:
        precision: `bf16` is autocast, weights stay fp32; `tf32` lets fp32 matrix products on CUDA round their inputs
            to 10 bits of mantissa, and is fp32 elsewhere.
        timeout_seconds: A collective that takes longer ends the run.

    Raises:
        UserError: An unknown precision, a launch that does not start as many processes as were asked for,
            more processes than GPUs, or a foreign backend in the accelerate configuration.
    """
    _check_precision(precision)
    _check_environment()
    wanted = _wanted_processes()
    # False also where a GPU was hidden; without this, several processes would each be "the only one".
    cpu = not torch.accelerator.is_available() or _is_on("ACCELERATE_USE_CPU")
    _check_devices(cpu)
    # torch 2.13 renames the argument, but accelerate passes the old name only.
    warnings.filterwarnings("ignore", message="`broadcast_buffers` is deprecated", category=FutureWarning)
    torch.set_float32_matmul_precision("high" if precision == "tf32" and not cpu else "highest")
    # The state is a singleton that keeps the first precision; a second run in one process may choose another.
    AcceleratorState._reset_state()
    try:
        accelerator = Accelerator(
            cpu=cpu,
            mixed_precision="bf16" if precision == "bf16" else "no",
            # The plain arguments lose against the environment; the plugins do not.
            # The losses are means over the whole step already: nothing may be divided.
            gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1, sync_with_dataloader=False),
            dynamo_plugin=TorchDynamoPlugin(backend="no"),
            kwargs_handlers=[
                InitProcessGroupKwargs(timeout=timedelta(seconds=timeout_seconds)),
                DistributedDataParallelKwargs(
                    broadcast_buffers=False, find_unused_parameters=False, gradient_as_bucket_view=True
                ),
            ],
        )
    except (ValueError, torch.distributed.DistError) as error:
        if wanted == 1:
            raise
        raise UserError(
            f"the environment says that {wanted} processes were started, but this one cannot reach the others",
            field="WORLD_SIZE",
            fix=f"unset it to train with one; for {wanted}: {_launch_advice(wanted)}",
        ) from error
    if accelerator.num_processes != wanted:
        raise UserError(
            f"{wanted} processes were started, but this one sees {accelerator.num_processes}: "
            "each would train alone and write the same run folder",
            field="num_processes",
            fix=_launch_advice(wanted),
        )
    return accelerator


def banner_lines(accelerator: Accelerator) -> list[str]:
    """Where and with what this run computes: processes, device, precision, package path, versions."""
    device = accelerator.device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{torch.get_num_threads()} threads"
    precision = "fp32" if accelerator.mixed_precision == "no" else accelerator.mixed_precision
    if device.type == "cuda":
        precision += f", fp32 matrix products: {torch.get_float32_matmul_precision()}"
    processes = "1 process" if accelerator.num_processes == 1 else f"{accelerator.num_processes} processes"
    packages = " · ".join(f"{package} {version_of(package)}" for package in ("torch", "accelerate", "transformers"))
    return [
        f"vidsim {version_of('vidsim')} ({package_path()})",
        f"{processes} on {device.type} ({name}), {precision}",
        f"python {sys.version.split()[0]} · {packages}",
    ]


def _is_on(variable: str) -> bool:
    return os.environ.get(variable, "").lower() in ("1", "true", "yes", "y", "t", "on")


def _check_precision(precision: str) -> None:
    if precision == "fp16":
        raise UserError(
            "fp16 is not offered: its largest number is 65504, which raw dot products overflow, and the loss "
            "scaling it needs makes a step depend on earlier overflows",
            field="precision",
            fix="use bf16 (same speed, range of fp32) or fp32",
        )
    if precision not in get_args(Precision):
        raise UserError(f"'{precision}' is not known", field="precision", fix="use fp32, tf32 or bf16")


def _check_environment() -> None:
    for variable, (name, fix) in _FOREIGN_BACKENDS.items():
        if _is_on(variable):
            raise UserError(
                f"the accelerate configuration asks for {name}, which vidsim does not support", field=variable, fix=fix
            )


def _wanted_processes() -> int:
    """How many processes the launcher meant to start, from what it left in the environment."""
    for variable in _WORLD_SIZE_VARIABLES:
        value = os.environ.get(variable)
        if value is None:
            continue
        if not value.isdecimal() or int(value) < 1:
            raise UserError(f"'{value}' is not a number of processes", field=variable, fix="unset it, or use torchrun")
        return int(value)
    # The single-process launcher of accelerate sets an address only if more than one process was asked for.
    if "ACCELERATE_DYNAMO_MODE" in os.environ and "MASTER_ADDR" in os.environ:
        raise UserError(
            "`accelerate launch` was asked for several processes on the CPU but starts only this one",
            field="num_processes",
            fix=f"{_launch_advice(2)}; for one process: --num_processes 1 (and unset MASTER_ADDR)",
        )
    return 1


def _check_devices(cpu: bool) -> None:
    local = os.environ.get("LOCAL_WORLD_SIZE", "1")
    if cpu or not local.isdecimal():
        return
    count = torch.accelerator.device_count()
    if int(local) > count:
        raise UserError(
            f"{local} processes on this machine, but it has {count} device(s)",
            field="num_processes",
            fix=f"start {count} process(es), or set ACCELERATE_USE_CPU=1",
        )


def _launch_advice(num_processes: int) -> str:
    script = sys.argv[0] or "pretrain/run.py"
    return (
        f"torchrun --standalone --nproc_per_node {num_processes} {script} ... "
        "(with ACCELERATE_USE_CPU=1 in front to use the CPU)"
    )
