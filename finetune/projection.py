"""A projection that starts where the encoder already is: the principal directions of its pooled states.

A fresh random projection throws away what pretraining taught: cosines after it only resemble those before it. The
first E right singular vectors of the pooled states of the training videos keep their inner products as well as any
E directions can (Eckart and Young 1936), so finetuning starts from the cosines of the encoder itself.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from vidsim.engine.gather import map_rows


def principal_projection(
    projection: nn.Linear,
    pool: Callable[[np.ndarray], Tensor],
    num_rows: int,
    *,
    batch_size: int,
    accelerator: Accelerator,
) -> float:
    """Set a projection to the principal directions of pooled states; its bias to 0. Collective.

    Args:
        projection: H to E; with E above H the rows that are left over become 0.
        pool: From positions int64 [b] to pooled states float [b, H], without dropout.
        num_rows: Videos to look at.
        batch_size: Videos a call.
        accelerator: Of the run.

    Returns:
        Share of the states' squared length that the directions keep, 0 to 1.
    """
    dim, width = projection.weight.shape
    states = map_rows(pool, num_rows, width, batch_size=batch_size, accelerator=accelerator).astype(np.float64)
    # Each row counts alike, as it does for a cosine.
    states /= np.maximum(np.linalg.norm(states, axis=1, keepdims=True), 1e-12)
    values, vectors = np.linalg.eigh(states.T @ states)
    directions = vectors[:, ::-1][:, :dim].T
    directions *= np.sign(directions.sum(axis=1, keepdims=True)) + (directions.sum(axis=1, keepdims=True) == 0)
    weight = np.zeros((dim, width))
    weight[: len(directions)] = directions
    with torch.no_grad():
        projection.weight.copy_(torch.from_numpy(weight))
        projection.bias.zero_()
    return float(values[::-1][:dim].sum() / max(values.sum(), 1e-12))
