"""The micro-batches of one rank as a torch data loader that can start at any step."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from vidsim.data.collators import Batch
from vidsim.data.samplers import MicroBatchSampler


def step_batches(
    rows: Dataset[dict[str, Any]],
    sampler: MicroBatchSampler,
    collator: Callable[[Sequence[dict[str, Any]]], Batch],
    *,
    num_workers: int,
    seed: int,
) -> Iterable[Batch]:
    """Load what a sampler asks for.

    Args:
        rows: Asked by (epoch, row).
        sampler: Of this rank, from the first step that is wanted.
        collator: Rows to a batch.
        num_workers: Loader processes; 0: this process.
        seed: Of the run.
    """
    # An own generator: otherwise each new iterator draws from the global one, and a resumed run differs.
    return DataLoader(
        rows,
        batch_sampler=sampler,
        collate_fn=collator,
        num_workers=num_workers,
        generator=torch.Generator().manual_seed(seed),
        pin_memory=torch.cuda.is_available(),
    )
