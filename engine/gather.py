"""Compute one vector a row, split over the ranks, and bring all of them back in order."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor


def rank_rows(num_rows: int, rank: int, world_size: int) -> range:
    """The contiguous rows of one rank; every row belongs to exactly one."""
    base, extra = divmod(num_rows, world_size)
    start = rank * base + min(rank, extra)
    return range(start, start + base + (rank < extra))


@torch.no_grad()
def map_rows(
    encode: Callable[[np.ndarray], Tensor], num_rows: int, width: int, *, batch_size: int, accelerator: Accelerator
) -> np.ndarray:
    """Encode rows 0..num_rows under the run's precision. Collective: call on every rank.

    Args:
        encode: From positions int64 [b] to vectors float [b, width] on the accelerator's device.
        num_rows: N.
        width: Of a vector.
        batch_size: Rows a call.
        accelerator: Of the run.

    Returns:
        float32 [N, width], the same on every rank.
    """
    if not num_rows:
        return np.zeros((0, width), np.float32)
    world_size = accelerator.num_processes
    first = rank_rows(num_rows, accelerator.process_index, world_size).start
    # Of a sharded module every call is collective: all ranks make as many, of as many rows, and surplus is cut below.
    longest = -(-num_rows // world_size)
    vectors = []
    for start in range(0, longest, batch_size):
        rows = first + np.arange(start, min(start + batch_size, longest))
        with accelerator.autocast():
            vectors.append(encode(np.minimum(rows, num_rows - 1)).float())
    gathered = accelerator.gather(torch.cat(vectors)).reshape(world_size, longest, width).cpu().numpy()
    counts = [len(rank_rows(num_rows, rank, world_size)) for rank in range(world_size)]
    return np.concatenate([part[:count] for part, count in zip(gathered, counts, strict=True)])
