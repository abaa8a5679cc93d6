"""A projection that starts where the encoder already is: the principal directions of its pooled states.

A fresh random projection throws away what pretraining taught: cosines after it only resemble those before it. Worse,
all states of an encoder share a large common part, so that every cosine is near 1. Seen from their mean, along their
first E principal directions, they differ by what sets videos apart, and finetuning starts from there. Encoders that
were only pretrained by MLM hold most of their length in a few directions; `power` evens these out (whitening, arXiv
2103.15316, is 1).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from vidsim.data.collators import Batch, to_device
from vidsim.engine.gather import map_rows
from vidsim.modeling.encoder import VideoTextEncoder, VidsimOutput

MAX_VIDEOS: Final = 4_000
"""Enough to find the directions."""
POWERS: Final = {"principal": 0.0, "whitened": 0.5}
"""Of `principal_projection`, by the name of the setting."""


def pooled_states(encoder: VideoTextEncoder, batch: Batch, accelerator: Accelerator) -> Tensor:
    """Pooled hidden states of a batch, float [b, H], on the accelerator's device."""
    output: VidsimOutput = encoder(**encoder.inputs_of(to_device(batch, accelerator.device)))
    return output.pooled


def start_projection(
    encoder: VideoTextEncoder,
    collate: Callable[[np.ndarray], Batch],
    videos: np.ndarray,
    *,
    power: float,
    batch_size: int,
    accelerator: Accelerator,
) -> float:
    """Start an encoder's projection from its own pooled states of some videos, and no others. Collective.

    Args:
        encoder: Is moved to the accelerator's device, and is in training mode afterwards.
        collate: From some of the videos to a batch.
        videos: int64 [n]; at most the first `MAX_VIDEOS` are looked at.
        power: See `principal_projection`.
        batch_size: Videos a call.
        accelerator: Of the run.

    Returns:
        Share of the variance that the directions keep, 0 to 1.
    """
    chosen = videos[:MAX_VIDEOS]
    encoder.to(accelerator.device).eval()
    share = principal_projection(
        encoder.embedding_head.projection,
        lambda positions: pooled_states(encoder, collate(chosen[positions]), accelerator),
        len(chosen),
        power=power,
        batch_size=batch_size,
        accelerator=accelerator,
    )
    encoder.train()
    return share


def principal_projection(
    projection: nn.Linear,
    pool: Callable[[np.ndarray], Tensor],
    num_rows: int,
    *,
    power: float,
    batch_size: int,
    accelerator: Accelerator,
) -> float:
    """Set a projection to the principal directions of pooled states, seen from their mean. Collective.

    Args:
        projection: H to E; with E above H the rows that are left over become 0.
        pool: From positions int64 [b] to pooled states float [b, H], without dropout.
        num_rows: Videos to look at.
        power: Each direction is divided by its standard deviation to this power: 0 keeps cosines, 1 whitens.
        batch_size: Videos a call.
        accelerator: Of the run.

    Returns:
        Share of the variance that the directions keep, 0 to 1.
    """
    dim, width = projection.weight.shape
    states = map_rows(pool, num_rows, width, batch_size=batch_size, accelerator=accelerator).astype(np.float64)
    mean = states.mean(axis=0)
    variances, vectors = np.linalg.eigh(np.cov(states - mean, rowvar=False))
    variances, directions = variances[::-1].clip(min=0.0), vectors[:, ::-1].T
    # Which of the two opposite directions is found depends on the library: take the one that points up.
    directions = directions * np.where(directions.sum(axis=1, keepdims=True) < 0, -1.0, 1.0)
    # A direction in which nothing varies says nothing; scaled up, it would be noise.
    scale = np.maximum(variances / max(variances[0], 1e-30), 1e-6) ** (-power / 2)
    weight = np.zeros((dim, width))
    weight[:width] = (directions * scale[:, None])[:dim]
    with torch.no_grad():
        projection.weight.copy_(torch.from_numpy(weight))
        projection.bias.copy_(torch.from_numpy(-weight @ mean))
    return float(variances[:dim].sum() / max(variances.sum(), 1e-30))
