"""Weights of several losses: fixed, or so that each pulls on the backbone equally hard.

The 2021 winner printed the gradient of each task and scaled the tasks by hand until the magnitudes were alike; with
`gradient_norm` that is done while training. The norms are measured on the shared parameters that the module names.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from vidsim.common.errors import UserError


@dataclass(frozen=True, kw_only=True)
class BalanceConfig:
    """How the losses are weighted against each other."""

    mode: Literal["fixed", "gradient_norm"] = "fixed"
    """`fixed`: the objectives' own weights. `gradient_norm`: these weights times factors that make the gradient norms
    of all weighted losses on the shared parameters equal; the factors have geometric mean 1."""
    every_steps: int = 50
    """Steps between two measurements."""
    momentum: float = 0.9
    """Of the running mean of each norm."""
    log: bool = False
    """Measure and log the gradient norms also with `fixed` weights."""

    def validate(self) -> None:
        """Refuse a cadence below one step."""
        if self.every_steps < 1:
            raise UserError(f"{self.every_steps} is below 1", field="balance.every_steps")
        if not 0 <= self.momentum < 1:
            raise UserError(f"{self.momentum} is not within 0 and 1", field="balance.momentum")


class LossBalancer:
    """Turns named losses into weights; its state goes into the checkpoint.

    Args:
        config: The mode.
        weights: Fixed weight of each loss.
        shared: Parameters on which the norms are measured.
    """

    def __init__(self, config: BalanceConfig, weights: Mapping[str, float], shared: Iterable[nn.Parameter]) -> None:
        """Start without any measurement: factors are 1 until the first one."""
        self.config = config
        self.weights = dict(weights)
        self.shared = [parameter for parameter in shared if parameter.requires_grad]
        self.norms: dict[str, float] = {}

    @property
    def measures(self) -> bool:
        """Whether the norms are ever measured."""
        return self.config.mode == "gradient_norm" or self.config.log

    def is_due(self, step: int) -> bool:
        """Whether the norms are measured in this step."""
        return self.measures and step % self.config.every_steps == 0

    def measure(self, losses: Mapping[str, torch.Tensor]) -> None:
        """Update the running norms from one micro-batch. Collective: call on every rank.

        Args:
            losses: Unweighted losses with their graphs, which are kept.
        """
        measured = []
        for loss in losses.values():
            gradients = torch.autograd.grad(loss, self.shared, retain_graph=True, allow_unused=True)
            squares = [gradient.float().pow(2).sum() for gradient in gradients if gradient is not None]
            measured.append(torch.stack(squares).sum().sqrt() if squares else loss.new_zeros(()))
        norms = torch.stack(measured).detach()
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.all_reduce(norms)
            norms /= torch.distributed.get_world_size()
        momentum = self.config.momentum
        for name, norm in zip(losses, norms.tolist(), strict=True):
            if norm > 0:  # a batch in which this loss had nothing to do says nothing about its scale
                old = self.norms.get(name)
                self.norms[name] = norm if old is None else momentum * old + (1 - momentum) * norm

    def current(self) -> dict[str, float]:
        """Weight of each loss."""
        if self.config.mode == "fixed" or len(self.norms) < len(self.weights):
            return dict(self.weights)
        names = list(self.weights)
        pulls = [self.weights[name] * self.norms[name] for name in names]
        logs = torch.tensor(pulls, dtype=torch.float64).log()
        factors = (logs.mean() - logs).exp().tolist()
        return {name: self.weights[name] * factor for name, factor in zip(names, factors, strict=True)}

    def state(self) -> dict[str, float]:
        """The running norms, for the checkpoint."""
        return dict(self.norms)

    def load_state(self, state: Mapping[str, float]) -> None:
        """Take the running norms of a checkpoint."""
        self.norms = dict(state)
