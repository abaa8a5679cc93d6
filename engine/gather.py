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
    """Encode rows 0..num_rows, each once, under the run's precision. Collective: call on every rank.

    Args:
        encode: From positions int64 [b] to vectors float [b, width] on the accelerator's device.
        num_rows: N.
        width: Of a vector.
        batch_size: Rows a call.
        accelerator: Of the run.

    Returns:
        float32 [N, width], the same on every rank.
    """
    world_size = accelerator.num_processes
    mine = rank_rows(num_rows, accelerator.process_index, world_size)
    vectors = []
    for start in range(mine.start, mine.stop, batch_size):
        with accelerator.autocast():
            encoded = encode(np.arange(start, min(start + batch_size, mine.stop)))
        vectors.append(encoded.float())
    local = torch.cat(vectors) if vectors else torch.zeros(0, width, device=accelerator.device)
    longest = -(-num_rows // world_size)
    padded = torch.nn.functional.pad(local, (0, 0, 0, longest - len(local)))  # gather wants equal counts
    gathered = accelerator.gather(padded).reshape(world_size, longest, width).cpu().numpy()
    counts = [len(rank_rows(num_rows, rank, world_size)) for rank in range(world_size)]
    return np.concatenate([part[:count] for part, count in zip(gathered, counts, strict=True)])
