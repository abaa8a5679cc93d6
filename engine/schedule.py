"""Learning rate as a pure function of the step: no scheduler object, nothing to store or to step twice.

(A scheduler that is prepared by accelerate advances once per process and step, which is a known trap.)
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch

from vidsim.common.errors import UserError


@dataclass(frozen=True, kw_only=True)
class ScheduleConfig:
    """Learning rate over the steps of one stage; the published system: cosine, warm-up 0.06."""

    kind: Literal["cosine", "linear", "constant"] = "cosine"
    """How it falls after the warm-up."""
    warmup_fraction: float = 0.06
    """Share of the steps in which it rises linearly."""
    min_ratio: float = 0.0
    """It falls to this share of its peak."""

    def validate(self) -> None:
        """Refuse shares outside 0 and 1."""
        for name in ("warmup_fraction", "min_ratio"):
            value = getattr(self, name)
            if not 0 <= value <= 1:
                raise UserError(f"{value} is not within 0 and 1", field=f"schedule.{name}")
        if self.kind == "constant" and self.min_ratio > 0:
            raise UserError("a constant rate never falls", field="schedule.min_ratio", fix="set 0, or another kind")


def num_warmup_steps(config: ScheduleConfig, num_steps: int) -> int:
    """Steps in which the learning rate rises: the nearest whole number."""
    return math.floor(config.warmup_fraction * num_steps + 0.5)


def multiplier(config: ScheduleConfig, step: int, num_steps: int) -> float:
    """Share of the peak learning rate that step `step` of a stage uses.

    Warm-up: (step + 1) / w, so that the first step does something and the w-th has the peak. Then, with
    p = (step - w) / (num_steps - w): cosine (1 + cos πp) / 2 or linear 1 - p, scaled to end at `min_ratio`, or
    constant 1.

    Args:
        config: The curve.
        step: Step within the stage, from 0 to num_steps - 1.
        num_steps: Length of the stage.

    Returns:
        Within [0, 1]; from `num_steps` on `min_ratio`, or 1 (constant).

    Raises:
        ValueError: `step` is negative.
    """
    if step < 0:
        raise ValueError(f"step {step} is negative")
    warmup = num_warmup_steps(config, num_steps)
    if step < warmup:
        return (step + 1) / warmup
    progress = min(1.0, (step - warmup) / max(1, num_steps - warmup))
    match config.kind:
        case "cosine":
            fall = 0.5 * (1.0 + math.cos(math.pi * progress))
        case "linear":
            fall = 1.0 - progress
        case "constant":
            return 1.0
    return config.min_ratio + (1.0 - config.min_ratio) * fall


def apply(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set the learning rate of every group to its `base_lr` times `rate`."""
    for group in optimizer.param_groups:
        group["lr"] = group["base_lr"] * rate
