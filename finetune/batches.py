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
from vidsim.engine.loop import LoopConfig


def epoch_steps(num_rows: int, num_epochs: float, loop: LoopConfig, world_size: int) -> int:
    """Optimizer steps of so many passes over the rows."""
    return num_steps(
        RowOrder([np.arange(num_rows)], seed=0),
        num_epochs,
        micro_batch_size=loop.micro_batch_size,
        gradient_accumulation_steps=loop.gradient_accumulation_steps,
        world_size=world_size,
    )


def task_batches(
    rows: Dataset[dict[str, Any]],
    num_rows: int,
    collator: Callable[[Sequence[dict[str, Any]]], Batch],
    loop: LoopConfig,
    accelerator: Accelerator,
    seed: int,
    total: int,
    start: int,
) -> Iterable[Batch]:
    """The micro-batches of this rank from step `start` on, up to `total` steps."""
    sampler = MicroBatchSampler(
        RowOrder([np.arange(num_rows)], seed=seed),
        micro_batch_size=loop.micro_batch_size,
        gradient_accumulation_steps=loop.gradient_accumulation_steps,
        rank=accelerator.process_index,
        world_size=accelerator.num_processes,
        start_step=start,
        num_steps=total,
    )
    return step_batches(rows, sampler, collator, num_workers=loop.num_workers)
