"""Exponential moving average of the parameters, used for evaluation and export."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import nn

from vidsim.common.errors import UserError

_PREFIX = "average."


@dataclass(frozen=True, kw_only=True)
class EmaConfig:
    """Moving average of the weights."""

    decay: float = 0.999
    """Share of the old average that an update keeps, once warmed up."""

    def validate(self) -> None:
        """Refuse a decay that never moves or never remembers."""
        if not 0 < self.decay < 1:
            raise UserError(f"{self.decay} is not within 0 and 1", field="ema.decay")


class ExponentialMovingAverage:
    """average <- d · average + (1 - d) · parameter after each optimizer step.

    d = min(decay, (1 + n) / (10 + n)) at update n = 0, 1, ...; this warm-up makes the average forget the
    initial (for heads: random) weights also in a short run.

    Args:
        module: Its trainable parameters are averaged; the average starts as a copy of them.
        config: The decay.
    """

    def __init__(self, module: nn.Module, config: EmaConfig) -> None:
        """Copy the parameters."""
        self.config = config
        self.num_updates = 0
        self._average = {
            name: parameter.detach().clone() for name, parameter in module.named_parameters() if parameter.requires_grad
        }

    @torch.no_grad()
    def update(self, module: nn.Module) -> None:
        """Take in the parameters after an optimizer step."""
        decay = min(self.config.decay, (1 + self.num_updates) / (10 + self.num_updates))
        parameters = self._of(module)
        averages = list(self._average.values())
        torch._foreach_lerp_(averages, [parameters[name] for name in self._average], 1 - decay)
        self.num_updates += 1

    @contextlib.contextmanager
    def applied(self, module: nn.Module) -> Iterator[None]:
        """Let the module have the averaged parameters inside the block; its own come back bit for bit."""
        parameters = self._of(module)
        own = {name: parameters[name].detach().clone() for name in self._average}
        try:
            _copy(self._average, parameters)
            yield
        finally:
            _copy(own, parameters)

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Everything there is to store, as tensors."""
        averages = {_PREFIX + name: tensor for name, tensor in self._average.items()}
        return {"num_updates": torch.tensor(self.num_updates), **averages}

    def load_state_dict(self, state: Mapping[str, torch.Tensor]) -> None:
        """Take the tensors of `state_dict`; the caller has checked names and shapes."""
        self.num_updates = int(state["num_updates"])
        _copy({name: state[_PREFIX + name] for name in self._average}, self._average)

    def _of(self, module: nn.Module) -> dict[str, torch.Tensor]:
        """Parameters by name; the averages follow them to their device."""
        parameters: dict[str, torch.Tensor] = dict(module.named_parameters())
        for name, average in self._average.items():
            if average.device != parameters[name].device:
                self._average[name] = average.to(parameters[name].device)
        return parameters


@torch.no_grad()
def _copy(source: Mapping[str, torch.Tensor], target: Mapping[str, torch.Tensor]) -> None:
    for name, tensor in source.items():
        target[name].copy_(tensor)
