"""How a loss becomes one number: the sum over its items, divided by a count that is the same for every rank.

A mean over the local items would weigh a rank or a micro-batch with few items as much as a full one. So every
additive loss here is `sum over the local items / denominator`: with `denominator` = number of items over all
ranks and micro-batches of the optimizer step, **adding** the losses gives exactly the global mean, however
the batch was cut. (Data-parallel wrappers average gradients over ranks; whoever uses them multiplies by the
world size.)
"""

from __future__ import annotations

import torch
from torch import Tensor

Denominator = Tensor | float | None


def divide(total: Tensor, denominator: Denominator, local_count: Tensor | float) -> Tensor:
    """`total / denominator`, with counts below one taken as one, so that no items give 0 and never NaN.

    Args:
        total: float scalar, the sum over the local items.
        denominator: Global number of items, or None to use `local_count`.
        local_count: Number of local items.
    """
    count = local_count if denominator is None else denominator
    if isinstance(count, Tensor):
        return total / count.to(total).clamp(min=1)
    return total / max(float(count), 1.0)


def full_precision(tensor: Tensor) -> Tensor:
    """The tensor in at least float32; float64 stays."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def no_autocast(tensor: Tensor) -> torch.autocast:
    """A context in which products stay in float32.

    A softmax over thousands of candidates needs more digits than bfloat16 has.
    """
    return torch.autocast(tensor.device.type, enabled=False)
