"""Sums and gathers over the ranks; the identity where there is only one process.

`gather_rows` carries values only; `gather_rows_with_gradient` also carries the gradient back to the rank each
row came from, which a plain all-gather cuts off (that silently trains each rank on its own rows alone). Built
on the public `torch.distributed` collectives.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def is_distributed() -> bool:
    """Whether a process group of more than one rank runs."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def world_size() -> int:
    """Number of ranks, 1 without a process group."""
    return dist.get_world_size() if is_distributed() else 1


def rank() -> int:
    """This process' rank, 0 without a process group."""
    return dist.get_rank() if is_distributed() else 0


def all_reduce_sum(tensor: Tensor) -> Tensor:
    """A new tensor with the sum over the ranks, without gradient. Collective: call on every rank.

    Args:
        tensor: any dtype and shape, the same on every rank.
    """
    total = tensor.detach().clone()
    if is_distributed():
        dist.all_reduce(total)
    return total


def gather_integers(values: Sequence[int], device: torch.device | str) -> list[list[int]]:
    """Every rank's list of integers, by rank. Collective: call on every rank, with lists of equal length.

    Reading the answer waits for the device once; without a process group there is no wait.
    """
    if not is_distributed():
        return [list(values)]
    local = torch.tensor(values, dtype=torch.int64, device=device)
    parts = [torch.empty_like(local) for _ in range(world_size())]
    dist.all_gather(parts, local)
    return [[int(value) for value in part] for part in torch.stack(parts).tolist()]


def gather_rows(rows: Tensor, counts: Sequence[int] | None = None) -> Tensor:
    """All ranks' rows in rank order, without gradient. Collective: call on every rank.

    Args:
        rows: [n, ...], any dtype; `n` may differ between ranks and be 0.
        counts: Rows of every rank, if known; None asks the ranks (one more collective and one wait).

    Returns:
        [sum of n, ...], the same on every rank.

    Raises:
        ValueError: `counts` does not fit the ranks or this rank's rows.
    """
    if not is_distributed():
        return rows.detach()
    counts = _checked_counts(rows, counts)
    longest = max(counts)
    return _strip(_all_gather(_pad(rows.detach(), longest)), counts, longest)


def gather_rows_with_gradient(rows: Tensor, counts: Sequence[int] | None = None) -> Tensor:
    """As `gather_rows`, and the gradient of every rank's loss flows back to the rows' own rank (summed).

    The forward and the backward are collectives: call on every rank, in the same order, and run the backward
    on every rank. With the ranks' losses understood as summed, the gradient equals the single-process one.
    """
    if not is_distributed():
        return rows
    counts = _checked_counts(rows, counts)
    longest = max(counts)
    gathered: Tensor = _GatherWithGradient.apply(_pad(rows, longest))
    return _strip(gathered, counts, longest)


def _checked_counts(rows: Tensor, counts: Sequence[int] | None) -> Sequence[int]:
    if counts is None:
        return [part[0] for part in gather_integers([rows.shape[0]], rows.device)]
    if len(counts) != world_size() or counts[rank()] != rows.shape[0]:
        raise ValueError(
            f"counts {list(counts)} do not fit {world_size()} ranks, rank {rank()} with {rows.shape[0]} rows"
        )
    return counts


def _pad(rows: Tensor, length: int) -> Tensor:
    if rows.shape[0] == length:
        return rows
    return torch.cat([rows, rows.new_zeros(length - rows.shape[0], *rows.shape[1:])])


def _strip(gathered: Tensor, counts: Sequence[int], longest: int) -> Tensor:
    if all(count == longest for count in counts):
        return gathered
    return torch.cat([gathered[i * longest : i * longest + count] for i, count in enumerate(counts)])


def _all_gather(rows: Tensor) -> Tensor:
    rows = rows.contiguous()
    parts = [torch.empty_like(rows) for _ in range(world_size())]
    dist.all_gather(parts, rows)
    return torch.cat(parts)


class _GatherWithGradient(torch.autograd.Function):
    """All-gather of equal blocks; backward sums the ranks' gradients and keeps this rank's block."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        """Gather [n, ...] to [W * n, ...]."""
        ctx.num_rows = rows.shape[0]
        return _all_gather(rows)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        """Sum [W * n, ...] over the ranks, keep [n, ...]."""
        total = gradients[0].contiguous().clone()
        dist.all_reduce(total)
        return total[rank() * ctx.num_rows : (rank() + 1) * ctx.num_rows]
