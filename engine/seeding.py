"""Randomness as a pure function of where a run is, so that no random state is ever stored.

Every micro-batch starts from a seed made of (seed of the run, step, micro-step, rank). A resumed run
therefore draws the same dropout masks as the straight run, whatever was drawn before, on the CPU and on every
GPU.
"""

from __future__ import annotations

import random

import numpy as np
import torch

_MASK = 0xFFFF_FFFF_FFFF_FFFF


def mix(*values: int) -> int:
    """Hash integers into 64 bits: splitmix64 (Steele, Lea and Flood 2014) chained over the values.

    Args:
        values: Any integers; their order matters.

    Returns:
        0 <= hash < 2**64. All bits are mixed: the CPU generator of torch looks at the lower 32 only.
    """
    state = 0
    for value in values:
        state = ((state ^ (value & _MASK)) + 0x9E37_79B9_7F4A_7C15) & _MASK
        state = ((state ^ (state >> 30)) * 0xBF58_476D_1CE4_E5B9) & _MASK
        state = ((state ^ (state >> 27)) * 0x94D0_49BB_1331_11EB) & _MASK
        state ^= state >> 31
    return state


def seed_everything(seed: int) -> None:
    """Seed Python, NumPy and torch (CPU and all GPUs), for what comes before the first step: initial weights.

    Args:
        seed: The same on every rank, so that all ranks start from the same weights.
    """
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(mix(seed))


def seed_step(seed: int, step: int, micro_step: int, rank: int) -> None:
    """Seed torch (CPU and all GPUs) for one forward pass.

    Args:
        seed: Seed of the run.
        step: Optimizer step, from 0.
        micro_step: Micro-batch within the step, from 0.
        rank: Process, from 0; each draws its own dropout masks.
    """
    torch.manual_seed(mix(seed, step, micro_step, rank))
