"""How many steps a finetuning run takes, and the micro-batches of each; the same for every task."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from accelerate import Accelerator
from torch.utils.data import Dataset

from vidsim.data.collators import Batch
from vidsim.data.loading import step_batches
from vidsim.data.samplers import MicroBatchSampler, RowOrder, num_steps
from vidsim.engine.loop import Stage
from vidsim.engine.loop_config import LoopConfig
from vidsim.engine.schedule import ScheduleConfig


def epoch_steps(num_rows: int, num_epochs: float, loop: LoopConfig, world_size: int) -> int:
    """Optimizer steps of so many passes over the rows."""
    return num_steps(
        RowOrder([np.arange(num_rows)], seed=0),
        num_epochs,
        micro_batch_size=loop.micro_batch_size,
        gradient_accumulation_steps=loop.gradient_accumulation_steps,
        world_size=world_size,
    )


def task_stage(
    rows: Dataset[dict[str, Any]],
    collator: Callable[[Sequence[dict[str, Any]]], Batch],
    schedule: ScheduleConfig,
    loop: LoopConfig,
    accelerator: Accelerator,
    seed: int,
    total: int,
) -> Stage:
    """All `total` steps of a task, over rows that are shuffled anew in every epoch."""
    order = RowOrder([np.arange(len(rows))], seed=seed)  # type: ignore[arg-type]  # Dataset does not promise a length

    def batches(start: int) -> Iterable[Batch]:
        sampler = MicroBatchSampler(
            order,
            micro_batch_size=loop.micro_batch_size,
            gradient_accumulation_steps=loop.gradient_accumulation_steps,
            rank=accelerator.process_index,
            world_size=accelerator.num_processes,
            start_step=start,
            num_steps=total,
        )
        return step_batches(rows, sampler, collator, num_workers=loop.num_workers)

    return Stage(num_steps=total, schedule=schedule, batches=batches)
